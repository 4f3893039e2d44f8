"""Dagster's runs in Postgres: what one machine runs, another sees."""

from pathlib import Path

import pytest
from dagster import AssetKey

from resources.doctor.findings import Level
from resources.doctor.machine import ThisMachine
from resources.doctor.shared import check_shared
from resources.settings import load_profile
from services.local_servers.postgres import LocalPostgres
from tests.assets.conftest import World, queries_of, write_queries
from vpo_assets.definitions import EVERYTHING
from vpo_assets.instance import dagster_home, prepared_instance
from vpo_assets.table_assets import GPU_POOL

pytestmark = pytest.mark.cluster


def test_runs_of_one_machine_are_seen_by_another_and_pools_hold_for_both(
    postgres: LocalPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    address = postgres.create_database("runs")
    write_queries(tmp_path / "queries.jsonl", queries_of(4))
    worlds = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        worlds.append(World(tmp_path / name, queries__files=[str(tmp_path / "queries.jsonl")]))
    folder = dagster_home(worlds[0].profile)
    assert "sqlite" in (folder / "dagster.yaml").read_text()
    for world in worlds:
        world.change(run_storage=address)

    with prepared_instance(worlds[0].profile) as instance:
        result = (
            worlds[0]
            .definitions.resolve_job_def(EVERYTHING)
            .execute_in_process(instance=instance, asset_selection=[AssetKey("raw_prompts")])
        )
        assert result.success
    assert "sqlite" not in (folder / "dagster.yaml").read_text()
    with prepared_instance(worlds[1].profile) as other:
        assert [run.run_id for run in other.get_runs()] == [result.run_id]
        event = other.get_latest_materialization_event(AssetKey("raw_prompts"))
        assert event is not None and event.run_id == result.run_id
        assert other.event_log_storage.get_concurrency_info(GPU_POOL).slot_count == 1

    (folder / "dagster.yaml").write_text("# mine\n")
    assert (dagster_home(worlds[0].profile) / "dagster.yaml").read_text() == "# mine\n"


def test_the_doctor_asks_the_server_of_the_runs(
    postgres: LocalPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPO_RUN_STORAGE", postgres.create_database("asked"))
    (found,) = check_shared(load_profile(), ThisMachine())
    assert (found.subject, found.level) == ("run_storage", Level.OK)
    assert found.text.endswith("/asked answers")
    monkeypatch.setenv("PGPASSWORD", "not the password")
    (found,) = check_shared(load_profile(), ThisMachine())
    assert (found.subject, found.level) == ("run_storage", Level.FAULT)
    assert "does not answer" in found.text and "not the password" not in f"{found.text}{found.remedy}"
