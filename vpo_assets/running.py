"""Runs started from the command line: the same code location, job and records as a run that the UI starts.

Belongs here: choosing assets, making a run and executing it in this process. Does not belong here: the commands
themselves (command_line.py) or what is printed (progress.py).
"""

# Dagster offers no public way to execute a run of a code location in one's own process: its own command
# (`dagster asset materialize`) uses the modules below, and so do we; the version is pinned.

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dagster import AssetKey, DagsterInstance, EventLogEntry, RepositoryDefinition
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.utils import make_new_run_id
from dagster._utils.interrupts import capture_interrupts

from storage.plan import Mode
from vpo_assets.instance import this_process
from vpo_assets.publishing.assets import ON_REQUEST

CODE_LOCATION = "vpo"
"""The name that workspace.yaml gives to the code location."""

WORKSPACE = Path(__file__).parent.parent / "workspace.yaml"
_MODULE, _ATTRIBUTE = "vpo_assets.definitions", "defs"


class UnknownAsset(ValueError):
    """A name that no asset has; says which come near."""


class OptionsDoNotApply(ValueError):
    """Refresh options for assets that take none."""


@dataclass(frozen=True)
class Options:
    """How the assets of a run are refreshed; see RefreshOptions."""

    full: bool = False
    limit: int | None = None
    append: bool = False
    accept_stale_inputs: bool = False

    def __post_init__(self) -> None:
        if self.full and self.append:
            raise OptionsDoNotApply("--full makes every row again, --append keeps earlier ones: choose one")

    @property
    def mode(self) -> Mode:
        """How tables are refreshed."""
        return Mode.FULL if self.full else Mode.APPEND if self.append else Mode.INCREMENTAL

    def config(self) -> dict[str, Any]:
        """The run config of one asset; empty where nothing differs from the defaults."""
        mode = self.mode.name if self.mode is not Mode.INCREMENTAL else None  # Dagster knows an enum by its names
        chosen = {"mode": mode, "limit": self.limit, "accept_stale_inputs": self.accept_stale_inputs}
        return {name: value for name, value in chosen.items() if value}


class CodeLocation:
    """The assets of the profile, as Dagster loads them."""

    def __init__(self) -> None:
        # Imported here first, so that a mistake in the settings comes out as it is and not wrapped.
        import vpo_assets.definitions  # noqa: F401

        self._source = ReconstructableRepository.for_module(_MODULE, _ATTRIBUTE)

    @cached_property
    def _repository(self) -> RepositoryDefinition:
        return self._source.get_definition()

    @cached_property
    def asset_names(self) -> list[str]:
        """Every asset that can be materialized, upstream first: `queries`, `shapes/videos`."""
        return [key.to_user_string() for key in self._repository.asset_graph.toposorted_asset_keys]

    @cached_property
    def steps(self) -> dict[str, str]:
        """The asset that each step makes, by the step's key."""
        return {assets.op.name: key.to_user_string() for key, assets in self._repository.assets_defs_by_key.items()}

    def select(self, names: Sequence[str]) -> list[AssetKey]:
        """The keys of assets by name; for no name all of them but those that are made on request only. Raises
        UnknownAsset."""
        for name in names:
            if name not in self.asset_names:
                near = difflib.get_close_matches(name, self.asset_names, n=3, cutoff=0.4)
                near += [other for other in self.asset_names if other.endswith(f"/{name}") and other not in near]
                raise UnknownAsset(f"there is no asset {name[:80]!r}; near it: {', '.join(near or self.asset_names)}")
        keys = [AssetKey.from_user_string(name) for name in self.asset_names]
        graph = self._repository.asset_graph
        return [
            key for key in keys if (key.to_user_string() in names if names else ON_REQUEST not in graph.get(key).tags)
        ]

    def run_config(self, keys: Sequence[AssetKey], options: Options) -> dict[str, Any]:
        """Run config for the assets among these that take refresh options. Raises OptionsDoNotApply if none does."""
        config = options.config()
        if not config:
            return {}
        ops = {}
        for key in keys:
            assets = self._repository.assets_defs_by_key[key]
            fields = getattr(assets.op.config_schema.as_field().config_type, "fields", None) or {}
            if taken := {name: value for name, value in config.items() if name in fields}:
                ops[assets.op.name] = {"config": taken}
        if not ops:
            named = ", ".join(key.to_user_string() for key in keys)
            raise OptionsDoNotApply(f"{_named(config)} do not apply to {named}: it is computed as a whole")
        return {"ops": ops}

    def execute(
        self,
        instance: DagsterInstance,
        keys: Sequence[AssetKey],
        options: Options,
        listener: Callable[[EventLogEntry], None],
        run_id: str,
        tags: Mapping[str, str] | None = None,
    ) -> bool:
        """Materialize the assets in this process; `listener` sees every entry of the run's log. Whether all went
        well. An interrupt ends the run, and is recorded as its end.
        """
        job_name = self._repository.get_implicit_job_def_for_assets(keys).name  # type: ignore[union-attr]
        job = self._source.get_reconstructable_job(job_name)
        origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(CODE_LOCATION), self._repository.name)
        # The console is ours; everything goes to the instance, and by the listener to the run's log file.
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        run = instance.create_run_for_job(
            job_def=job.get_definition(),
            run_id=run_id,
            run_config={**self.run_config(keys, options), **quiet},
            # Its person is there to start it again, and would not expect a daemon to do so.
            tags={"vpo/started_by": "command line", MAX_RETRIES_TAG: "0", **(tags or {})},
            asset_selection=set(keys),
            remote_job_origin=origin.get_job_origin(job_name),
            job_code_origin=job.get_python_origin(),
            repository_load_data=self._repository.repository_load_data,
        )
        instance.add_event_listener(run.run_id, listener)
        # The words and data of a run that the UI starts: `clear_dead_runs` and people find the process by them.
        instance.report_engine_event(f"Started process for run (pid: {os.getpid()}).", run, this_process())
        with capture_interrupts():
            return execute_run(job, run, instance).success


def _named(config: Mapping[str, Any]) -> str:
    """Options as they are typed."""
    return "--full, --append and --limit" if config.keys() & {"mode", "limit"} else "--accept-stale-inputs"


def new_run_id() -> str:
    """An id for a run that is about to be made."""
    return make_new_run_id()
