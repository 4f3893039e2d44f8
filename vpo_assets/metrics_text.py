"""What a monitoring system wants to know of a home, as Prometheus reads it.

Belongs here: figures of the lake, in Prometheus' words. Does not belong here: serving them. `vpo metrics` prints them;
`vpo metrics --out FILE` replaces a file at once, for the textfile collector of Prometheus' node_exporter.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from storage.tables import BRANCH, CHECKPOINTS, FAILURES, THROUGHPUT, TRUNK
from vpo_assets.platform import Platform

Samples = Sequence[tuple[Sequence[str], float]]


class HomeMetrics(Collector):
    """Gauges of one home, read anew for each scrape."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def describe(self) -> list[GaugeMetricFamily]:
        """None beforehand: registering asks nothing of the lake."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every figure that the lake has; tables that were never refreshed have no pace."""
        lake = self._platform.lake
        tables = [*TRUNK, *(table.at(target) for target in self._platform.profile.targets for table in BRANCH)]
        yield _gauge("vpo_rows", "Rows of a table.", ["table"], [([t.label], lake.count(t)) for t in tables])
        yield _gauge(
            "vpo_rows_in_quarantine", "Rows that gave no result.", ["table"], self._counted(FAILURES.qualified)
        )
        last = lake.query(
            f'SELECT table_name, rows, seconds, epoch("at") AS ended FROM {THROUGHPUT.qualified} '
            'QUALIFY row_number() OVER (PARTITION BY table_name ORDER BY "at" DESC, throughput_id) = 1 ORDER BY 1'
        ).to_pylist()
        for name, help_text, column in (
            ("vpo_last_refresh_rows", "Rows that the last refresh with work to do has computed.", "rows"),
            ("vpo_last_refresh_seconds", "Seconds that it took, commits included.", "seconds"),
            ("vpo_last_refresh_timestamp_seconds", "When it ended.", "ended"),
        ):
            yield _gauge(name, help_text, ["table"], [([row["table_name"]], float(row[column])) for row in last])
        trained = lake.query(
            f"SELECT stage, coalesce(target, '') AS target, count(*) AS n, max(epoch(made_at)) AS ended "
            f"FROM {CHECKPOINTS.qualified} GROUP BY ALL ORDER BY ALL"
        ).to_pylist()
        labels = ["stage", "target"]
        yield _gauge(
            "vpo_checkpoints", "Trained checkpoints.", labels, [([r["stage"], r["target"]], r["n"]) for r in trained]
        )
        yield _gauge(
            "vpo_last_checkpoint_timestamp_seconds",
            "When the last of them was trained.",
            labels,
            [([r["stage"], r["target"]], r["ended"]) for r in trained],
        )
        free = shutil.disk_usage(self._platform.home).free
        yield _gauge("vpo_home_free_bytes", "Free space of the disk that the home is on.", [], [([], free)])

    def _counted(self, table: str) -> Samples:
        rows = self._platform.lake.query(f"SELECT table_name, count(*) AS n FROM {table} GROUP BY ALL ORDER BY ALL")
        return [([row["table_name"]], row["n"]) for row in rows.to_pylist()]


def _gauge(name: str, help_text: str, labels: Sequence[str], samples: Samples) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def metrics_text(platform: Platform) -> str:
    """All figures in Prometheus' text format."""
    return generate_latest(_registry(platform)).decode()


def write_metrics(platform: Platform, file: Path) -> None:
    """The same into a file, which is replaced when it is whole. Raises OSError."""
    write_to_textfile(str(file), _registry(platform))


def _registry(platform: Platform) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(HomeMetrics(platform))
    return registry
