"""Batches worked on by Ray actors, each of which loads its models once and holds its GPUs.

Belongs here: the pool of actors, handing out batches as actors free up, and streaming results back. Ray places the
actors, moves the data and notices deaths. A dead actor is replaced by a new one rather than restarted by Ray's
`max_restarts`: with that, Ray does not tell what an actor died of (out of memory, its node, a crash), and a batch that
kills its workers could not be told from bad luck. Does not belong here: what is done with a batch, and which batch
comes next after a death (batch_queue.py).
"""

import re
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from resources.batch_queue import BatchQueue, QueuedBatch
from resources.compute_settings import RayComputeSettings
from resources.outcome import Unavailable
from resources.ray_cluster import connect
from resources.ray_worker import Answer, Probe, Worker, WorkerReport, project_code
from storage.refresh import BatchFunction, BatchResult, answered
from storage.remote_files import RemoteFiles

GIB = 2**30
WAIT_SECONDS = 1.0
FAILED_STARTS = 5
"""Actors in a row that die before they can work; then their place is given up."""
RESOLVE_SECONDS = 30.0
REASON_LENGTH = 300


@dataclass(eq=False)
class _Place:
    """One actor's place in the pool, and what its present actor has to do."""

    actor: Any
    starting: Any
    failed_starts: int = 0
    at_work: deque[tuple[Any, QueuedBatch]] = field(default_factory=deque)


@dataclass
class RayMapper:
    """A mapper (storage/refresh.py) over actors. `store` is the folder that workers and driver must share; with
    `own_folders` each node may have its own, a cache of the `places` in an object store, which every worker must reach.
    """

    settings: RayComputeSettings
    store: Path
    places: tuple[RemoteFiles, ...] = ()
    own_folders: bool = False
    _pools: list["_Pool"] = field(default_factory=list, repr=False)

    def __call__(self, function: BatchFunction, batches: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, BatchResult]]:
        """Results as they come. At most `workers * batches_in_flight` batches are out or wait to be taken.

        When something says that work must end (the function raises, its result is `stopped`, drawing a batch raises),
        no batch is given out any more, those under way are yielded, and then it is passed on. Raises Unavailable.
        """
        pool = _Pool(function, self.settings, self._probe())
        self._pools.append(pool)
        try:
            yield from pool.results(iter(batches))
        finally:
            pool.close()
            if pool in self._pools:
                self._pools.remove(pool)

    def _probe(self) -> Probe:
        """The question to each worker; a text is in a file that `_Pool` writes."""
        text = None if self.own_folders else secrets.token_hex(16)
        return Probe(self.store / f".seen-by-workers-{secrets.token_hex(8)}", text, self.places)

    def close(self) -> None:
        """End all actors; what they had at work is lost, and done by the next refresh."""
        while self._pools:
            self._pools.pop().close()


class _Pool:
    """The actors of one map."""

    def __init__(self, function: BatchFunction, settings: RayComputeSettings, probe: Probe) -> None:
        self._ray = connect(settings)
        self._settings = settings
        self._packed = self._ray.cloudpickle.dumps(function)
        self._probe = probe
        if probe.text is not None:
            probe.file.parent.mkdir(parents=True, exist_ok=True)
            probe.file.write_text(probe.text)
        self._places: list[_Place] = []
        self._worked_at = time.monotonic()
        self._error: Exception | None = None
        self._last: tuple[pa.Table, BatchResult] | None = None

    def results(self, batches: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, BatchResult]]:
        """All results; `RayMapper.__call__` says in which manner."""
        queue = BatchQueue(batches, self._settings.deaths_per_batch, self._settings.workers)
        self._places = [self._new_place() for _ in range(self._settings.workers)]
        while True:
            self._hand_out(queue)
            if queue.is_empty and not any(place.at_work for place in self._places):
                break
            yield from self._next(queue)
        if self._last is not None:
            yield self._last
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End every actor."""
        self._probe.file.unlink(missing_ok=True)
        places, self._places = self._places, []
        with suppress(self._ray.exceptions.RayError):  # a connection that is lost has no actors
            for place in places:
                self._ray.kill(place.actor)

    # ---- batches -----------------------------------------------------------------------------------------

    def _hand_out(self, queue: BatchQueue) -> None:
        """Give every actor that can work as many batches as it may have, the idle ones first."""
        for depth in range(self._settings.batches_in_flight):
            for place in self._places:
                if place.starting is None and len(place.at_work) <= depth:
                    try:
                        batch = queue.next()
                    except Exception as error:  # the caller's own: no room on the disk, say
                        self._stop(queue, error)
                        return
                    if batch is None:
                        return
                    place.at_work.append((place.actor.work.remote(batch.rows), batch))

    def _next(self, queue: BatchQueue) -> Iterator[tuple[pa.Table, BatchResult]]:
        """Wait for the next thing to happen, and deal with it."""
        waiting = {place.starting: place for place in self._places if place.starting is not None}
        waiting |= {reference: place for place in self._places for reference, _ in place.at_work}
        try:
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=WAIT_SECONDS)
        except self._ray.exceptions.LocalRayletDiedError as error:
            raise Unavailable("the Ray node that this process is connected to is gone: start the run again") from error
        if not ready:
            self._raise_if_nobody_works()
            return
        place = waiting[ready[0]]
        if place.starting is not None:
            self._start(queue, place)
        else:
            yield from self._take(queue, place, ready[0])

    def _take(self, queue: BatchQueue, place: _Place, reference: Any) -> Iterator[tuple[pa.Table, BatchResult]]:
        """What a finished call has brought."""
        try:
            answer: Answer = self._ray.get(reference)
        except self._ray.exceptions.LocalRayletDiedError as error:
            raise Unavailable("the Ray node that this process is connected to is gone: start the run again") from error
        except self._ray.exceptions.RayTaskError as error:
            raise Unavailable(f"a batch or its result could not be moved: {death_in_words(error)}") from error
        except self._ray.exceptions.RayError as error:
            yield from self._died(queue, place, error)
            return
        entry = next(entry for entry in place.at_work if entry[0] == reference)
        place.at_work.remove(entry)
        yield from self._answered(queue, entry[1], answer)

    def _answered(
        self, queue: BatchQueue, batch: QueuedBatch, answer: Answer
    ) -> Iterator[tuple[pa.Table, BatchResult]]:
        if answer.error is not None or answer.result is None:
            self._stop(queue, answer.error)
            return
        queue.finished()
        found = batch.rows, answer.result
        if answer.result.stopped is None:
            yield found
            return
        self._stop(queue)
        if self._last is None:
            self._last = found
        else:
            yield answered(*found), replace(answer.result, stopped=None)

    def _stop(self, queue: BatchQueue, error: Exception | None = None) -> None:
        """Give out nothing more; the error is raised when what is under way has ended."""
        if self._error is None:
            self._error = error
        queue.close()

    # ---- actors ------------------------------------------------------------------------------------------

    def _new_place(self, failed_starts: int = 0) -> _Place:
        settings = self._settings
        options: dict[str, Any] = {
            "num_cpus": settings.cpus_per_worker,
            "num_gpus": settings.gpus_per_worker,
            "scheduling_strategy": "SPREAD",
        }
        if settings.memory_gb_per_worker is not None:
            options["memory"] = int(settings.memory_gb_per_worker * GIB)
        if settings.environment:
            options["runtime_env"] = settings.environment
        actor = self._ray.remote(Worker).options(**options).remote(self._packed)
        return _Place(actor, actor.report.remote(self._probe), failed_starts)

    def _start(self, queue: BatchQueue, place: _Place) -> None:
        """The actor of a place has answered for the first time, or died before it could."""
        exceptions = self._ray.exceptions
        try:
            report: WorkerReport = self._ray.get(place.starting)
        except (exceptions.RuntimeEnvSetupError, exceptions.ActorUnschedulableError, exceptions.RayTaskError) as error:
            raise Unavailable(f"Ray cannot start a worker: {death_in_words(error)}") from error
        except exceptions.RayError as error:
            self._ray.kill(place.actor)
            self._replace(queue, place, death_in_words(error), place.failed_starts + 1)
            return
        raise_if_unfit(report)
        place.starting, place.failed_starts = None, 0
        self._worked_at = time.monotonic()

    def _died(self, queue: BatchQueue, place: _Place, error: Exception) -> Iterator[tuple[pa.Table, BatchResult]]:
        """A place's actor is dead. It worked on one batch after the other, so the first that it did not finish is to
        blame, and those behind it are not."""
        reason = death_in_words(error)
        self._ray.kill(place.actor)
        blamed = False
        for reference, batch in place.at_work:
            try:
                answer: Answer = self._ray.get(reference, timeout=RESOLVE_SECONDS)
            except self._ray.exceptions.RayError:
                if blamed:
                    queue.lost(batch)
                    continue
                blamed = True
                try:
                    quarantined = queue.killed(batch, reason)
                except Unavailable as hopeless:
                    self._stop(queue, hopeless)
                    continue
                if quarantined is not None:
                    yield quarantined
            else:
                yield from self._answered(queue, batch, answer)
        self._replace(queue, place, reason)

    def _replace(self, queue: BatchQueue, place: _Place, reason: str, failed_starts: int = 0) -> None:
        """A new actor in the place of a dead one; none where they die again and again before they can work."""
        self._places.remove(place)
        if queue.is_closed:
            return
        if failed_starts < FAILED_STARTS:
            self._places.append(self._new_place(failed_starts))
        elif not self._places:
            raise Unavailable(f"{failed_starts} workers died one after the other before they could work: {reason}")

    def _raise_if_nobody_works(self) -> None:
        """Raise Unavailable if Ray has had nothing to place an actor on for `start_seconds`."""
        if any(place.starting is None for place in self._places):
            self._worked_at = time.monotonic()
            return
        if time.monotonic() - self._worked_at > self._settings.start_seconds:
            settings = self._settings
            has = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU", "memory")}
            asked = f"{settings.cpus_per_worker:g} CPUs and {settings.gpus_per_worker:g} GPUs"
            if settings.memory_gb_per_worker is not None:
                asked += f" and {settings.memory_gb_per_worker:g} GB"
            raise Unavailable(
                f"Ray has not started a worker for {settings.start_seconds:g} s (compute.start_seconds): each asks for "
                f"{asked}, and the nodes together have {has['CPU']:g} CPUs, {has['GPU']:g} GPUs and "
                f"{has['memory'] / GIB:.0f} GB, part of which others may hold. Ask for less, or add nodes"
            )


def death_in_words(error: Exception) -> str:
    """What an actor died of, in one line."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or "running low on memory" in text:
        used = re.search(r"Memory on the node \(IP: ([^,]+),[^)]*\) was (\S+) used / (\S+) limit", text)
        where = f" (node {used[1]}, {used[2]} of {used[3]} used)" if used else ""
        return (
            f"out of memory{where}: take smaller batches, fewer workers a node (compute.cpus_per_worker, "
            "compute.memory_gb_per_worker), or nodes with more memory"
        )
    detail = re.search(r"(The actor (?:died|is dead) because .*|The node .*|Worker exit detail: .*)", text)
    return (detail[1] if detail else text)[:REASON_LENGTH]


def raise_if_unfit(report: WorkerReport) -> None:
    """Raise Unavailable if a worker could not do what this process would do."""
    where = f"the Ray worker on {report.host}"
    if report.fault is not None:
        raise Unavailable(
            f"{where} cannot load the work: {report.fault}. The project must be installed on every node as it is here"
        )
    if report.code != project_code():
        raise Unavailable(
            f"{where} runs other source code of the project than this process: install the same on every node (and "
            "leave it alone while a run goes on), or rows would not be what their recipe says"
        )
    if report.store is not None:
        raise Unavailable(
            f"{where} does not see the same store: {report.store}. All nodes need the same VPO_HOME, on a file system "
            "that they share"
        )
    if report.place is not None:
        raise Unavailable(
            f"{where} cannot use the object store: {report.place}. Every node needs the store's keys in the "
            "environment of `ray start`, and a VPO_HOME that it can write to"
        )
