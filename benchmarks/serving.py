"""How many requests a running `vpo serve` answers: one after the other, and many at once.

    vpo serve &
    python benchmarks/serving.py --requests 100

Every request is another query of the shapes world, sent by the official OpenAI client.
"""

import argparse
import asyncio
import os
import time

import numpy as np
import openai

from ml.shapes.queries import write_query


def queries_of(count: int) -> list[str]:
    """Different queries."""
    texts: dict[str, None] = {}
    seed = 0
    while len(texts) < count:
        texts[write_query(np.random.default_rng(seed), unsafe=False)] = None
        seed += 1
    return list(texts)


async def ask(client: openai.AsyncOpenAI, query: str) -> float:
    """Seconds until the answer."""
    started = time.monotonic()
    await client.chat.completions.create(model="vpo", messages=[{"role": "user", "content": query}])
    return time.monotonic() - started


async def measure(address: str, requests: int, alone: int) -> None:
    """Both ways, on the standard output."""
    queries = queries_of(requests + alone)
    key = os.environ.get("VPO_SERVE_KEY", "none")
    async with openai.AsyncOpenAI(base_url=address, api_key=key, max_retries=0, timeout=600) as client:
        one_by_one = sum([await ask(client, query) for query in queries[:alone]])
        print(f"one after the other: {alone / one_by_one:.2f} requests/s")
        started = time.monotonic()
        waits = await asyncio.gather(*(ask(client, query) for query in queries[alone:]))
        seconds = time.monotonic() - started
    middle, slowest = np.median(waits), max(waits)
    print(f"{requests} at once: {requests / seconds:.2f} requests/s, median {middle:.1f} s, slowest {slowest:.1f} s")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8700/v1")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--alone", type=int, default=10)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.address, arguments.requests, arguments.alone))


if __name__ == "__main__":
    main()
