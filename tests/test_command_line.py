"""`vpo` as people use it: what it prints, and how it says that something is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus

from resources.optimizer_settings import OPTIMIZER_FILE, OptimizerSettings
from storage.checkpoints import CheckpointManifest
from storage.tables import DRAFTS, PREFERENCE_PAIRS, QUERIES, RAW_PROMPTS, THROUGHPUT, VIDEOS
from tests.conftest import Vpo, vpo_process
from tests.hand_filled import DPO, HOSTILE, QUERY_ID, SFT, fill, fill_evaluation
from tests.tiny_model import save_tiny_model
from vpo_assets.platform import Platform

LINKS = ("\x1b", "\r")


def test_settings_are_the_profile_with_what_the_environment_changes(
    vpo: Vpo, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPO_SFT__EPOCHS", "7")
    result = vpo("settings")
    assert result.exit_code == 0
    settings = yaml.safe_load(result.stdout)
    assert settings["home"] == str(home)
    assert settings["sft"]["epochs"] == 7
    assert settings["language_model"]["model"] == "embedded"
    assert list(settings)[:3] == ["home", "seed", "templates"]  # the order of the schema, not of the alphabet


def test_help_and_settings_answer_at_once() -> None:
    heavy = (
        "import sys, vpo_assets.command_line; print([m for m in ('torch', 'dagster', 'duckdb') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_ingest_says_what_became_of_the_rows(vpo: Vpo, platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "wishes.jsonl"
    file.write_text('"one"\n"two"\n{"text": 5}\n"one"\n')
    result = vpo("ingest", str(file))
    assert result.exit_code == 0
    assert "wishes.jsonl: 4 rows read, 2 new, 1 known, 1 quarantined" in result.stdout
    assert "line 3: the query is no text (int)" in result.stderr
    assert sorted(platform.lake.read(RAW_PROMPTS)["text"].to_pylist()) == ["one", "two"]


def test_ingest_goes_on_after_a_file_it_cannot_read(vpo: Vpo, platform: Platform, tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_text("one\n")
    result = vpo("ingest", str(tmp_path / "nowhere.csv"), str(good))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"{tmp_path / 'nowhere.csv'}: there is no such file"]
    assert platform.lake.count(RAW_PROMPTS) == 1


def test_a_file_without_a_single_good_row_is_an_error(vpo: Vpo, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("5\n")
    assert vpo("ingest", str(tmp_path / "bad.jsonl")).exit_code == 2


def test_metrics_are_what_prometheus_reads(vpo: Vpo, platform: Platform, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    fill(platform, tmp_path)
    with platform.lake.write({"text": "test"}) as transaction:
        for at, rows in (("2026-01-01", 5), ("2026-01-02", 7)):
            transaction.execute(
                f"INSERT INTO {THROUGHPUT.qualified} VALUES (?, 'drafts', 'r', ?, 3.5, ?::TIMESTAMPTZ)",
                [at, rows, f"{at} 00:00:00+00"],
            )
    result = vpo("metrics")
    assert result.exit_code == 0
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(result.stdout)
        for sample in family.samples
    }
    assert found["vpo_rows", "drafts"] == platform.lake.count(DRAFTS) > 0
    assert found["vpo_rows", "shapes.videos"] == platform.lake.count(VIDEOS.at("shapes"))
    assert found["vpo_last_refresh_rows", "drafts"] == 7
    assert found["vpo_last_refresh_seconds", "drafts"] == 3.5
    assert found["vpo_last_refresh_timestamp_seconds", "drafts"] == datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    assert found["vpo_checkpoints", "sft", ""] >= 1
    assert found["vpo_home_free_bytes",] > 0
    file = tmp_path / "vpo.prom"
    assert vpo("metrics", "--out", str(file)).exit_code == 0
    assert file.read_text().startswith("# HELP vpo_rows ")
    assert [other.name for other in tmp_path.glob("vpo.prom*")] == ["vpo.prom"]
    missing = vpo("metrics", "--out", str(tmp_path / "nowhere" / "vpo.prom"))
    assert missing.exit_code == 2
    assert "nowhere" in missing.stderr


def test_sql_answers_in_a_table_and_as_csv(vpo: Vpo, platform: Platform, tmp_path: Path) -> None:
    fill(platform, tmp_path)
    table = vpo("sql", "SELECT query, params FROM queries")
    assert table.exit_code == 0
    assert "[bold red]a disc[/]" in table.stdout
    assert not [mark for mark in LINKS if mark in table.stdout]
    assert "1 rows" in table.stdout
    as_csv = vpo("sql", "--csv", "SELECT query, keep, [1, 2] AS l, NULL AS n FROM queries")
    assert list(csv.reader(io.StringIO(as_csv.stdout))) == [
        ["query", "keep", "l", "n"],
        [HOSTILE, "True", "[1, 2]", ""],
    ]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP TABLE queries", "only reads"),
        ("SELECT * FROM read_csv('/etc/passwd')", "not allowed"),
        ("SELECT nothing FROM queries", "nothing"),
        ("SELEC 1", "syntax error"),
    ],
)
def test_sql_that_is_wrong_or_writes_is_refused(vpo: Vpo, platform: Platform, statement: str, said: str) -> None:
    result = vpo("sql", statement)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert platform.lake.exists(QUERIES)


def test_evaluation_as_json_has_the_promised_shape(vpo: Vpo, platform: Platform) -> None:
    fill_evaluation(platform)
    result = vpo("evaluation", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found) == {"targets", "transfer", "alignment"}
    assert list(found["targets"]) == ["shapes"]
    found = found["targets"]["shapes"]
    assert set(found) == {"queries", "text_level", "video_level", "safety", "prompts", "gains", "people", "vbench"}
    assert found["queries"] == 100
    methods = ["original", "few_shot", "sft", "vpo"]
    assert [row["method"] for row in found["text_level"]] == methods
    assert found["text_level"][0] == {
        "method": "original",
        "aligned": 70.0,
        "unsafe": 5.0,
        "imprecise": 20.0,
        "refusal": 5.0,
    }
    assert [row["method"] for row in found["video_level"]] == methods
    assert found["video_level"][3] == {
        "method": "vpo",
        "score": 4.0,
        "low": 3.5,
        "high": 4.5,
        "alignment": 0.8,
        "safety": 0.5,
    }
    assert found["gains"] == [
        {"method": "sft", "against": "original", "mean": 2.0, "low": 1.5, "high": 2.5},
        {"method": "vpo", "against": "original", "mean": 3.0, "low": 2.5, "high": 3.5},
        {"method": "vpo", "against": "sft", "mean": 1.0, "low": 0.5, "high": 1.5},
    ]


def test_evaluation_as_tables_shows_win_rates_and_the_report(vpo: Vpo, platform: Platform, home: Path) -> None:
    fill_evaluation(platform)
    report = home / "reports" / "shapes.html"
    report.parent.mkdir()
    report.write_text("<html></html>")
    result = vpo("evaluation", "--target", "shapes")
    assert result.exit_code == 0
    assert "75%" in result.stdout
    assert str(report) in result.stdout


def test_evaluation_shows_every_target_and_says_which_has_none(
    vpo: Vpo, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_evaluation(platform)
    monkeypatch.setenv("VPO_TARGETS__LARGER__LIKE", "shapes")
    shown = vpo("evaluation").stdout
    assert "shapes ────" in shown
    assert "target larger has no evaluation yet: run `vpo materialize larger/evaluation`" in shown
    assert list(json.loads(vpo("evaluation", "--json").stdout)["targets"]) == ["shapes"]
    alone = vpo("evaluation", "--target", "shapes").stdout
    assert "Text level" in alone and "shapes ────" not in alone and "larger" not in alone
    none = vpo("evaluation", "--target", "larger")
    assert (none.exit_code, none.stdout) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluation"], "target shapes has no evaluation yet: run `vpo materialize shapes/evaluation`"),
        (["evaluation", "--target", "circles"], "there is no target 'circles'; name one with --target: shapes"),
        (["optimize", "a cube"], "target shapes has no evaluation yet"),
        (["optimize", "a cube", "--checkpoint", "dpo-nothing"], "there is no checkpoint dpo-nothing"),
        (["optimize", "a cube", "--checkpoint", "../x"], "cannot name a checkpoint"),
        (["optimize", "a cube", "--folder", "."], "is no prompt optimizer: it has no vpo_optimizer.json"),
        (["serve", "--port", "0", "--folder", "."], "is no prompt optimizer: it has no vpo_optimizer.json"),
        (["trace", "[red]nothing"], "nothing in the lake has the id '[red]nothing'"),
        (["materialize", "video"], "there is no asset 'video'; near it: "),
        (["materialize", "videos"], "shapes/videos"),
        (["materialize", "queries", "--limit", "3"], "--full, --append and --limit do not apply to queries"),
        (["ingest", "."], "is a folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(vpo: Vpo, arguments: list[str], said: str) -> None:
    result = vpo(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("checkpoint ")]
    assert len(lines) == 1, result.stderr
    assert said in lines[0]


def test_a_mistake_in_the_settings_is_one_line_in_every_command(vpo: Vpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_JUDGE__BACKEND", "oracle")
    for arguments in (["settings"], ["plan"], ["sql", "SELECT 1"], ["evaluation"]):
        result = vpo(*arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line == "local.yaml: judge.backend = 'oracle': must be 'rules' or 'llm' or 'python'"


def test_debug_shows_where_an_error_came_from(vpo: Vpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_DEBUG", "1")
    result = vpo("trace", "nothing")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "UnknownId"


def test_a_port_that_is_taken_is_said_before_anything_starts(vpo: Vpo) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = vpo("ui", "--port", str(port))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"port {port} cannot be used (Address already in use): vpo ui --port N takes another"
    ]


@pytest.mark.slow
def test_plan_lists_every_asset_upstream_first(vpo: Vpo) -> None:
    result = vpo("plan")
    assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert names.index("queries") < names.index("drafts") < names.index("sft_checkpoint")
    assert names.index("shapes/videos") < names.index("shapes/dpo_checkpoint") < names.index("shapes/evaluation")


# ---- trace -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_leads_to_the_line_of_the_file_its_queries_came_from(
    vpo: Vpo, platform: Platform, tmp_path: Path
) -> None:
    fill(platform, tmp_path)
    # What happens later does not change what the checkpoint was trained on.
    with platform.lake.write({}) as transaction:
        transaction.delete(DRAFTS, ["draft1"])
    result = vpo("trace", DPO)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    order = [
        f"checkpoint {DPO}",
        "trained from",
        f"checkpoint {SFT}",
        "1 rows of sft_dataset",
        "draft draft1",
        "critique the direction is missing",
        "source wishes.jsonl, line 2",
        "1 rows of shapes.preference_pairs",
        "pair pair1",
        "chosen the good prompt",
        "video video-good",
        "score 3.000",
        "rejected the poor prompt",
        f"query {QUERY_ID}",
        "source wishes.jsonl, line 2",
    ]
    position = 0
    for wanted in order:
        position = next((i for i in range(position, len(lines)) if wanted in lines[i]), -1)
        assert position >= 0, f"{wanted} is missing, or out of order:\n{result.stdout}"
        position += 1


@pytest.mark.parametrize("identifier", [QUERY_ID, "draft1", "good", "video-good", "pair1", SFT, DPO])
def test_every_kind_of_id_leads_to_its_source_and_hostile_text_stays_text(
    vpo: Vpo, platform: Platform, tmp_path: Path, identifier: str
) -> None:
    fill(platform, tmp_path)
    result = vpo("trace", identifier)
    assert result.exit_code == 0, result.output
    assert "source wishes.jsonl, line 2" in result.stdout
    assert "[bold red]a disc[/] <b>heads</b>" in result.stdout
    assert "[link=file:///etc/passwd]" in result.stdout
    assert not [mark for mark in LINKS if mark in result.stdout]


def test_a_missing_video_file_and_a_broken_checkpoint_are_pointed_out(
    vpo: Vpo, platform: Platform, tmp_path: Path
) -> None:
    fill(platform, tmp_path)
    for file in platform.videos.root.rglob("*.webp"):
        file.unlink()
    (platform.checkpoints.path(DPO) / "weights").unlink()
    result = vpo("trace", DPO)
    assert result.exit_code == 0
    assert result.stdout.count("missing or damaged") == 2
    assert "weights is missing" in " ".join(result.stdout.split())


def test_the_chosen_side_of_a_text_pair_is_said_to_be_a_refinement(
    vpo: Vpo, platform: Platform, tmp_path: Path
) -> None:
    fill(platform, tmp_path)
    table = PREFERENCE_PAIRS.at("shapes")
    pairs = platform.lake.read(table)
    place = pairs.schema.get_field_index("chosen_prompt_id")
    with platform.lake.write({}) as transaction:
        transaction.upsert(table, pairs.set_column(place, "chosen_prompt_id", pa.nulls(pairs.num_rows, pa.string())))
    result = vpo("trace", "pair1")
    assert "refined from the rejected prompt" in result.stdout
    assert "not in the lake any more" not in result.stdout


# ---- optimize ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_optimize_takes_the_best_checkpoint_and_answers_in_one_line(vpo: Vpo, platform: Platform) -> None:
    for name in ("tiny-sft", "tiny-vpo"):
        manifest = CheckpointManifest(id=name, stage="dpo", base="none", recipe={})
        platform.checkpoints.commit(name, manifest, lambda folder: {"saved": str(save_tiny_model(folder).name)})
    fill_evaluation(platform, {"sft": "tiny-sft", "vpo": "tiny-vpo"})
    result = vpo("optimize", "a cube &amp; a disc -ar 16:9")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == "checkpoint tiny-vpo (vpo, score 4.000 on shapes)"
    assert len(result.stdout.splitlines()) == 1
    assert vpo("optimize", "a cube &amp; a disc -ar 16:9").stdout == result.stdout  # the same every time
    named = vpo("optimize", "-", "--checkpoint", "tiny-sft", stdin="a cube\n-ar 16:9\na disc\n")
    assert named.stderr.splitlines()[0] == "checkpoint tiny-sft"
    assert "there is nothing to optimize in '-ar 16:9'" in named.stderr
    lines = named.stdout.split("\n")
    assert len(lines) == 4 and lines[1] == ""
    assert named.exit_code == 2


@pytest.mark.slow
def test_optimize_by_a_published_folder_needs_no_home(vpo: Vpo, home: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    settings = OptimizerSettings.model_validate(
        {"name": "dpo-elsewhere", "template": "{{ query }}", "dtype": "float32", "sampling": {"max_new_tokens": 8}}
    )
    (folder / OPTIMIZER_FILE).write_text(settings.model_dump_json())
    result = vpo("optimize", "a cube", "--folder", str(folder))
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == f"dpo-elsewhere of {folder}"  # bars of loading weights may follow
    assert len(result.stdout.splitlines()) == 1
    assert not (home / "lake").exists()
    both = vpo("optimize", "a cube", "--folder", str(folder), "--checkpoint", "dpo-0123456789abcdef")
    assert both.exit_code == 2
    assert "leave out --checkpoint and --target" in " ".join(both.stderr.split())


# ---- materialize, in processes of its own ------------------------------------------------------------------------


@pytest.mark.slow
def test_materialize_runs_what_the_ui_would_and_records_it_there(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    queries = tmp_path / "queries.txt"
    queries.write_text("a red disc heads east\na lime cube just chilling\n")
    files = {"VPO_QUERIES__FILES": json.dumps([str(queries)])}
    first = vpo_process("materialize", "queries", "raw_prompts", **files)
    assert first.returncode == 0, first.stderr
    assert "2 rows, 2 new" in first.stdout
    assert first.stdout.index("raw_prompts ") < first.stdout.index("queries ")
    with DagsterInstance.from_config(str(home / "dagster")) as instance:
        (run,) = instance.get_runs()
        assert run.status is DagsterRunStatus.SUCCESS
        assert run.remote_job_origin is not None
        assert run.remote_job_origin.location_name == "vpo"
        assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 1
        log = (home / "logs" / f"{run.run_id}.log").read_text()
    assert "ASSET_CHECK_EVALUATION" in log
    assert "DEBUG" not in first.stdout + first.stderr

    queries.write_text("")
    failing = vpo_process("materialize", "raw_prompts", **files)
    assert failing.returncode == 1
    assert f"raw_prompts failed: {queries}: is empty" in failing.stderr
    assert "everything that was logged: " in failing.stderr
    assert "Traceback" not in failing.stderr + failing.stdout


@pytest.mark.slow
def test_a_killed_run_is_cleared_away_by_the_next(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 leaves a run that looks alive and holds the GPU's only slot; the next command takes both back."""
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    hang = (
        "import time; from storage import ingestion; import vpo_assets.prompts as prompts; "
        "prompts.ingest = lambda *_, **__: (print('HANGING', flush=True), time.sleep(600)); "
        "import sys; sys.argv = ['vpo', 'materialize', 'raw_prompts']; "
        "from vpo_assets.command_line import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", hang], env=os.environ, stdout=subprocess.DEVNULL)
    storage = home / "dagster"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and "raw_prompts STEP_START" not in all_logs(home):
        time.sleep(0.5)
    with DagsterInstance.from_config(str(storage)) as instance:
        (run,) = instance.get_runs()
        assert instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "some_step").is_claimed
    process.send_signal(signal.SIGKILL)
    process.wait()

    queries = tmp_path / "queries.txt"
    queries.write_text("a red disc heads east\n")
    again = vpo_process("materialize", "raw_prompts", VPO_QUERIES__FILES=json.dumps([str(queries)]))
    assert again.returncode == 0, again.stderr
    with DagsterInstance.from_config(str(storage)) as instance:
        killed = instance.get_run_by_id(run.run_id)
        assert killed is not None and killed.status is DagsterRunStatus.FAILURE
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0


def all_logs(home: Path) -> str:
    return "".join(file.read_text() for file in (home / "logs").glob("*.log")) if (home / "logs").exists() else ""
