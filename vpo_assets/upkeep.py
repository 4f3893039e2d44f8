"""Looking after the instance while a daemon runs.

Belongs here: what is put right, or warned of, by itself every minute. Does not belong here: what is done before a
command's own run (instance.py), or new data (automation.py).
"""

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from vpo_assets.instance import clear_dead_runs, pool_fault

SECONDS_BETWEEN_LOOKS = 60


@sensor(
    name="dead_runs",
    minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    default_status=DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process is gone, and frees their slots; warns if the gpu pool has no "
    "limit. What they had finished is kept, and the next refresh goes on from there.",
)
def dead_runs(context: SensorEvaluationContext) -> SkipReason:
    """One look; it never starts a run."""
    if fault := pool_fault(context.instance):
        context.log.warning(fault)
    cleared = clear_dead_runs(context.instance)
    if not cleared:
        return SkipReason(fault or "no dead runs")
    context.log.warning(f"cleared {len(cleared)} dead runs: {', '.join(cleared)}")
    return SkipReason(f"cleared {', '.join(cleared)}")
