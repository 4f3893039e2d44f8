"""Looking after the instance while a daemon runs.

Belongs here: what is put right, or warned of, by itself every minute. Does not belong here: what is done before a
command's own run (instance.py), or new data (automation.py).
"""

from dagster import DagsterInstance, DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from vpo_assets.instance import GPU_SLOTS, clear_dead_runs
from vpo_assets.table_assets import GPU_POOL

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


def pool_fault(instance: DagsterInstance) -> str | None:
    """What is wrong with the pool that keeps models from being loaded side by side; None if it is in order."""
    storage = instance.event_log_storage
    remedy = f"set it with `dagster instance concurrency set {GPU_POOL} {GPU_SLOTS}`, or start by `vpo ui`"
    if not storage.supports_global_concurrency_limits:
        return f"this instance's storage knows no pools, so the pool {GPU_POOL} has no limit"
    if GPU_POOL not in storage.get_concurrency_keys():
        return f"the pool {GPU_POOL} has no limit, so several models may be loaded at once: {remedy}"
    if storage.get_concurrency_info(GPU_POOL).slot_count < 1:
        return f"the pool {GPU_POOL} has no slot, so no model can ever run: {remedy}"
    return None
