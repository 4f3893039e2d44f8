"""Batches on a real two-node Ray cluster on this machine: nothing lost or twice, whoever dies; and one clear message
where it cannot work."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resources.compute_settings import RayComputeSettings
from resources.doctor.compute import check_compute
from resources.doctor.findings import Level
from resources.doctor.machine import ThisMachine
from resources.outcome import Unavailable
from resources.ray_compute import RayMapper
from resources.settings import load_profile
from storage.refresh import BatchResult, Guarded, StopRefresh
from tests.resources.ray_nodes import HEAD, Nodes, two_nodes

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (the extra `ray`)"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def settings(nodes: Nodes) -> Callable[..., RayComputeSettings]:
    def make(**changes: Any) -> RayComputeSettings:
        return RayComputeSettings(address=nodes.address, node_address=HEAD, **changes)

    return make


def batches_of(count: int, size: int = 4) -> list[pa.Table]:
    return [
        pa.table({"input_id": [f"{batch}-{row}" for row in range(size)], "n": list(range(size))})
        for batch in range(count)
    ]


@dataclass(frozen=True)
class Doubled:
    """Doubles n, and writes down each row that it works on; has its way with some."""

    log: Path
    seconds: float = 0.0
    dies_on: tuple[str, ...] = ()
    dies_once_on: str | None = None
    fails_on: str | None = None
    stops_on: str | None = None
    breaks_off_on: str | None = None

    def __call__(self, batch: pa.Table) -> BatchResult:
        ids = batch["input_id"].to_pylist()
        with self.log.open("a") as log:
            log.write("".join(f"{os.getpid()} {id_}\n" for id_ in ids))
        time.sleep(self.seconds)
        if set(self.dies_on) & set(ids):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.dies_once_on in ids and self.log.read_text().count(f" {self.dies_once_on}\n") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails_on in ids:
            raise ValueError(f"cannot do {self.fails_on}")
        if self.stops_on in ids:
            raise NoMoreMoney("the budget is spent", 7)
        rows = batch.set_column(1, "n", pa.array([2 * n for n in batch["n"].to_pylist()]))
        if self.breaks_off_on in ids:
            return BatchResult(rows.slice(0, 1), stopped="the server is gone")
        return BatchResult(rows)


class NoMoreMoney(StopRefresh):
    """Cannot be unpickled, as many exceptions with a constructor of their own."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def everything(found: Sequence[tuple[pa.Table, BatchResult]]) -> dict[str, int]:
    """n by input id, each once."""
    rows = [row for _, result in found for row in result.rows.to_pylist()]
    assert len({row["input_id"] for row in rows}) == len(rows)
    return {row["input_id"]: row["n"] for row in rows}


def doubled(batches: Sequence[pa.Table]) -> dict[str, int]:
    return {row["input_id"]: 2 * row["n"] for batch in batches for row in batch.to_pylist()}


def test_workers_on_both_nodes_share_the_batches(settings: Any, tmp_path: Path) -> None:
    batches = batches_of(12)
    found = list(RayMapper(settings(), tmp_path)(Doubled(tmp_path / "log", 0.05), batches))
    assert everything(found) == doubled(batches)
    assert all(batch["input_id"].equals(result.rows["input_id"]) for batch, result in found)
    assert len({line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}) == 2
    assert not list(tmp_path.glob(".seen*"))


def test_batches_are_drawn_as_they_are_wanted(settings: Any, tmp_path: Path) -> None:
    drawn, most = 0, 0

    def source() -> Iterator[pa.Table]:
        nonlocal drawn
        for batch in batches_of(40):
            drawn += 1
            yield batch

    taken = 0
    for _ in RayMapper(settings(batches_in_flight=3), tmp_path)(Doubled(tmp_path / "log"), source()):
        taken += 1
        most = max(most, drawn - taken)
        time.sleep(0.01)  # a slow commit
    assert taken == 40
    assert most < 2 * 3


def test_a_row_that_fails_is_quarantined_as_it_is_here(settings: Any, tmp_path: Path) -> None:
    work = Guarded(Doubled(tmp_path / "log", fails_on="3-1"))
    found = list(RayMapper(settings(), tmp_path)(work, batches_of(6)))
    assert [failure for _, result in found for failure in result.failures] == [
        *work(batches_of(6)[3]).failures,
    ]
    assert len(everything(found)) == 6 * 4 - 1


def test_what_stops_a_refresh_crosses_the_border_as_itself_after_what_is_under_way(
    settings: Any, tmp_path: Path
) -> None:
    found = []
    with pytest.raises(StopRefresh, match=r"^the budget is spent$"):
        work = Guarded(Doubled(tmp_path / "log", 0.1, stops_on="4-0"))
        for one in RayMapper(settings(), tmp_path)(work, batches_of(40)):
            found.append(one)  # noqa: PERF402 (to have them when it raises)
    begun = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert set(everything(found)) == {id_ for id_ in begun if not id_.startswith("4-")}
    assert 4 <= len(found) < 12


def test_a_batch_that_is_broken_off_comes_last(settings: Any, tmp_path: Path) -> None:
    found = list(RayMapper(settings(), tmp_path)(Doubled(tmp_path / "log", 0.1, breaks_off_on="4-0"), batches_of(40)))
    assert [result.stopped for _, result in found] == [None] * (len(found) - 1) + ["the server is gone"]
    assert len(found) < 12


def test_an_error_of_the_source_waits_for_what_is_under_way(settings: Any, tmp_path: Path) -> None:
    def source() -> Iterator[pa.Table]:
        yield from batches_of(5)
        raise OSError("no room")

    found = []
    with pytest.raises(OSError, match="no room"):
        for one in RayMapper(settings(), tmp_path)(Doubled(tmp_path / "log", 0.1), source()):
            found.append(one)  # noqa: PERF402 (to have them when it raises)
    assert everything(found) == doubled(batches_of(5))


def test_a_worker_that_is_killed_costs_what_it_had_at_work(settings: Any, tmp_path: Path) -> None:
    batches = batches_of(20)
    found = list(RayMapper(settings(), tmp_path)(Doubled(tmp_path / "log", 0.05, dies_once_on="5-2"), batches))
    assert everything(found) == doubled(batches)
    worked = Counter(line.split()[1] for line in (tmp_path / "log").read_text().splitlines())
    assert worked["5-2"] == 2 and sum(worked.values()) == 21 * 4


def test_a_row_that_kills_its_workers_ends_in_quarantine(settings: Any, tmp_path: Path) -> None:
    batches = batches_of(8)
    started = time.monotonic()
    found = list(RayMapper(settings(), tmp_path)(Doubled(tmp_path / "log", dies_on=("2-1",)), batches))
    failures = [failure for _, result in found for failure in result.failures]
    assert [failure.input_id for failure in failures] == ["2-1"]
    assert failures[0].error.startswith("WorkerDied: its worker died 2 times on this row alone: The actor is dead")
    assert everything(found) == {id_: n for id_, n in doubled(batches).items() if id_ != "2-1"}
    deaths = Counter(line.split()[1] for line in (tmp_path / "log").read_text().splitlines())["2-1"]
    # On the batch, on its half, on the row alone; once more where a result that was on its way died with its worker:
    # then the batch before is blamed for that death.
    assert 2 + 1 + 2 <= deaths <= 2 + 1 + 2 + 1
    assert time.monotonic() - started < 60


def test_where_every_worker_dies_no_row_is_blamed(settings: Any, tmp_path: Path) -> None:
    batches = batches_of(30)
    every = tuple(id_ for batch in batches for id_ in batch["input_id"].to_pylist())
    with pytest.raises(Unavailable, match="workers died one after the other and none finished a batch"):
        list(RayMapper(settings(), tmp_path)(Doubled(tmp_path / "log", dies_on=every), batches))


def test_a_node_that_is_killed_costs_what_it_had_at_work(nodes: Nodes, settings: Any, tmp_path: Path) -> None:
    batches, found = batches_of(40), []
    victim = nodes.add()
    for one in RayMapper(settings(workers=3, batches_in_flight=1), tmp_path)(Doubled(tmp_path / "log", 0.1), batches):
        found.append(one)
        if len(found) == 10:
            nodes.kill(victim)
    assert everything(found) == doubled(batches)
    worked = sum(Counter((tmp_path / "log").read_text().splitlines()).values())
    assert 40 * 4 <= worked <= 42 * 4


def test_a_worker_that_asks_for_too_much_is_not_waited_for_for_ever(settings: Any, tmp_path: Path) -> None:
    asking = settings(cpus_per_worker=64, start_seconds=3)
    with pytest.raises(Unavailable, match=r"has not started a worker for 3 s .* each asks for 64 CPUs and 0 GPUs"):
        list(RayMapper(asking, tmp_path)(Doubled(tmp_path / "log"), batches_of(2)))


def test_a_worker_without_the_driver_s_code_is_told(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("resources.ray_compute.project_code", lambda: "other")
    with pytest.raises(Unavailable, match="runs other source code of the project"):
        list(RayMapper(settings(), tmp_path)(Doubled(tmp_path / "log"), batches_of(2)))


def test_a_run_that_is_given_up_leaves_no_worker(settings: Any, tmp_path: Path) -> None:
    mapper = RayMapper(settings(), tmp_path)
    results = iter(mapper(Doubled(tmp_path / "log", 0.05), batches_of(100)))
    next(results)
    mapper.close()
    workers = {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()}
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return "Worker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_the_doctor_joins_the_cluster_for_a_moment(settings: Any) -> None:
    import ray

    ray.shutdown()
    profile = load_profile("local").model_copy(update={"compute": settings(workers=2)})
    (finding,) = check_compute(profile, ThisMachine())
    assert "answers with" in finding.text and finding.level is Level.OK
    assert not ray.is_initialized()


OWN_CLUSTER = """
import sys
from pathlib import Path

from resources.compute_settings import RayComputeSettings
from resources.ray_compute import RayMapper
from tests.resources.test_ray_compute import Doubled, batches_of, doubled, everything

if __name__ == "__main__":
    folder, batches = Path(sys.argv[1]), batches_of(4)
    found = list(RayMapper(RayComputeSettings(local_cpus=2), folder)(Doubled(folder / "log"), batches))
    assert everything(found) == doubled(batches)
    import ray

    print(ray.get_runtime_context().gcs_address)
"""


def test_without_an_address_a_cluster_is_started_for_the_run(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    script = tmp_path / "own_cluster.py"
    script.write_text(OWN_CLUSTER)
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    host, _, port = ended.stdout.split()[-1].rpartition(":")
    with pytest.raises(OSError):  # it is gone with its run
        socket.create_connection((host, int(port)), 5)
    assert not (tmp_path / ".ray").exists(), "a token was written where others may read it"
