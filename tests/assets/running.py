"""Runs of a world's assets with options, as the Launchpad gives them."""

from typing import Any

from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult

from tests.assets.conftest import World
from vpo_assets.definitions import EVERYTHING


def materialize_with(
    world: World, options: dict[str, Any], *assets: str, instance: DagsterInstance | None = None, fails: bool = False
) -> ExecuteInProcessResult:
    """Materialize these assets, each with the same options."""
    config = {
        "ops": {asset.replace("/", "__"): {"config": options} for asset in assets},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    with DagsterInstance.ephemeral() as own:
        result = world.definitions.resolve_job_def(EVERYTHING).execute_in_process(
            instance=instance or own,
            raise_on_error=not fails,
            asset_selection=[AssetKey.from_user_string(asset) for asset in assets],
            run_config=config,
        )
    assert result.success is not fails
    return result
