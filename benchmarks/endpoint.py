"""How well a language model behind a bad endpoint is asked: nothing lost, nothing twice, and the time made use of.

    python benchmarks/endpoint.py

Starts a chat endpoint in a process of its own (tests/resources/stub_endpoint.py) that takes 200 ms for an answer and
fails 30% of the tries in five ways: 429 with Retry-After, 500, silence until the client's timeout, a connection cut
in the middle of the answer, and garbage. Asks it through `EndpointLanguageModel`, 500 requests first and 2,000 then.

What was possible is computed from the failures that the server really served, in two ways. Both let a try hold one
of the allowed places for as long as the server takes for it (a silence: the client's timeout; 429 and 500: no time)
and neither knows of backoff or of computing.
  full:     the sum of all that, over the number of places: as if no place were ever empty. No client can reach it,
            as the last tries of a run cannot fill all places.
  schedule: every place takes what is next as soon as it is free: first what is to be tried again (after a 429 as soon
            as the server allows), then what was not tried yet.

"answered twice" counts good answers that the server sent once more because the first came after the client's timeout:
where it is not 0, the machine was too busy for server and client together, and the ratios say that and nothing else.
tests/resources/test_endpoint_pace.py measures the ratio to the schedule without computing, on a clock that jumps.
"""

import argparse
import heapq
import os
import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from resources.backend_settings import EndpointModelSettings
from resources.endpoint_model import EndpointLanguageModel
from resources.language_model import Reply, Sampling
from vpo_assets.report.tables import print_tables

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Terms:
    """How the server behaves and how it is asked. Times are in seconds."""

    share: float
    seconds: float
    retry_after: float
    concurrency: int
    timeout: float

    def held(self, kind: str) -> float:
        """How long a try of this kind holds its place."""
        return {"silence": self.timeout, "cut": self.seconds / 2, "429": 0.0, "500": 0.0}.get(kind, self.seconds)

    def wait(self, kind: str) -> float:
        """How long the next try has to wait after it."""
        return self.retry_after if kind == "429" else 0.0


def full_seconds(chains: Sequence[Sequence[str]], terms: Terms) -> float:
    """Seconds if no place were ever empty."""
    return sum(terms.held(kind) for chain in chains for kind in chain) / terms.concurrency


def schedule_seconds(chains: Sequence[Sequence[str]], terms: Terms) -> float:
    """Seconds if every place took what is next as soon as it is free. A chain is the kinds of a request's tries."""
    free = [0.0] * terms.concurrency
    again: list[tuple[float, int, int]] = []  # when it may be tried, chain, try
    fresh, end = 0, 0.0
    while again or fresh < len(chains):
        now = heapq.heappop(free)
        if again and (again[0][0] <= now or fresh == len(chains)):
            ready, chain, turn = heapq.heappop(again)
        else:
            ready, chain, turn, fresh = now, fresh, 0, fresh + 1
        kind = chains[chain][turn]
        done = max(now, ready) + terms.held(kind)
        heapq.heappush(free, done)
        end = max(end, done)
        if turn + 1 < len(chains[chain]):
            heapq.heappush(again, (done + terms.wait(kind), chain, turn + 1))
    return end


def run(base_url: str, prefix: str, requests: int, terms: Terms) -> dict[str, object]:
    """Ask so many times, and compare what came with what the server says it did."""
    settings = EndpointModelSettings(
        base_url=base_url, model="stub", concurrency=terms.concurrency, timeout=terms.timeout, retries=12
    )
    model = EndpointLanguageModel(settings)
    texts = [f"{prefix} {i}" for i in range(requests)]
    started, computed = time.monotonic(), time.process_time()
    outcomes = model.generate([[{"role": "user", "content": t}] for t in texts], Sampling(), range(requests))
    seconds, computed = time.monotonic() - started, time.process_time() - computed
    good = sum(
        isinstance(o, Reply) and o.text == f"re: {t} #{i}" for i, (t, o) in enumerate(zip(texts, outcomes, strict=True))
    )
    counts = httpx.get(f"{base_url}/counts").json()
    chains = defaultdict(list)
    for name, kind in counts["tries"]:
        if name.startswith(f"{prefix} "):
            chains[name].append(kind)
    kinds = Counter(kind for chain in chains.values() for kind in chain)
    answered = [counts["answered"].get(name, 0) for name in chains]
    full, schedule = full_seconds(list(chains.values()), terms), schedule_seconds(list(chains.values()), terms)
    return {
        "requests": requests,
        "lost": requests - good,
        "received twice": model.spent.requests - good,
        "answered twice": sum(times > 1 for times in answered),
        "tries": sum(kinds.values()),
        **{kind: kinds[kind] for kind in ("429", "500", "silence", "cut", "garbage")},
        "failed": f"{1 - kinds['good'] / sum(kinds.values()):.1%}",
        "seconds": f"{seconds:.2f}",
        "a second": f"{requests / seconds:.0f}",
        "of schedule": f"{schedule / seconds:.3f}",
        "of full": f"{full / seconds:.3f}",
        "own CPU seconds": f"{computed:.2f}",
        "peak MiB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f}",
    }


def main() -> None:
    """Start the server, ask it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.3, help="of the tries that fail")
    parser.add_argument("--seconds", type=float, default=0.2, help="that an answer takes")
    parser.add_argument("--retry-after", type=float, default=0.3, help="seconds that a 429 asks for")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds of the client")
    arguments = parser.parse_args()
    terms = Terms(arguments.share, arguments.seconds, arguments.retry_after, arguments.concurrency, arguments.timeout)
    plan = [f"--share={terms.share}", f"--seconds={terms.seconds}", f"--retry-after={terms.retry_after}"]
    command = [sys.executable, "-m", "tests.resources.stub_endpoint", *plan]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            base_url = server.stdout.readline().strip()
            rows = [run(base_url, f"critique {n} of", n, terms) for n in arguments.requests]
        finally:
            server.terminate()
    load = os.getloadavg()[0]
    print(f"concurrency {terms.concurrency}, {os.cpu_count()} CPUs, load {load:.1f} (it takes two cores to itself)")
    columns = [{"figure": name, **{str(row["requests"]): row[name] for row in rows}} for name in rows[0]]
    print_tables({"Asking a bad endpoint": columns})
    if any(row["lost"] or row["received twice"] for row in rows):
        raise SystemExit("requests were lost or received twice")


if __name__ == "__main__":
    main()
