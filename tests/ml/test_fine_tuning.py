"""SFT and DPO as they are run: settings, and real trainings of a tiny model."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ml import dpo, sft
from ml.fine_tuning import (
    DpoSettings,
    LoraSettings,
    NothingToLearn,
    TrainingJob,
    TrainingSettings,
    micro_batch_size,
    read_job,
)
from resources.trainer import TrainingFailed, TrlTrainer
from tests.resources.test_trainer import is_gone
from tests.tiny_model import save_tiny_model

# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "learning_rate"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": 1e-3, "epochs": 0}, "epochs"),
        ({"learning_rate": 1e-3, "batch_size": 0}, "batch_size"),
        ({"learning_rate": 1e-3, "warmup": 1}, "warmup"),
        ({"learning_rate": 1e-3, "schedule": "sawtooth"}, "schedule"),
        ({"learning_rate": 1e-3, "max_length": 3}, "max_length"),
        ({"learning_rate": 1e-3, "lora": {"rank": 0}}, "lora.rank"),
        ({"learning_rate": 1e-3, "lora": {"dropout": 1}}, "lora.dropout"),
        ({"learning_rate": 1e-3, "learning_rat": 1}, "learning_rat"),
        ({"learning_rate": 1e-3, "beta": 0}, "beta"),
        ({"learning_rate": 1e-3, "sft_weight": -1}, "sft_weight"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DpoSettings.model_validate(settings)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [fault]


def test_sft_takes_no_settings_of_dpo() -> None:
    with pytest.raises(ValidationError, match="beta"):
        TrainingSettings.model_validate({"learning_rate": 1e-3, "beta": 0.1})


@pytest.mark.parametrize("batch", range(1, 33))
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_step_sees_as_many_examples_as_set_whatever_fits_at_once(batch: int, devices: int) -> None:
    for micro in (1, 3, 8, 100):
        settings = TrainingSettings(learning_rate=1e-3, batch_size=batch, micro_batch_size=micro)
        if batch % devices:
            with pytest.raises(ValueError, match=f"batch_size {batch} is no multiple of the {devices} devices"):
                micro_batch_size(settings, devices)
            continue
        size = micro_batch_size(settings, devices)
        assert 1 <= size <= micro
        assert batch % (size * devices) == 0
        assert micro < batch // devices or size == batch // devices  # all at once where all fit


@pytest.mark.parametrize("arguments", [["ml.sft"], ["ml.sft", "a", "b"]])
def test_the_command_says_how_it_is_used(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml.fine_tuning.die_with_parent", lambda: None)
    with pytest.raises(SystemExit, match=r"usage: python -m ml.sft JOB.json"):
        read_job(arguments)


def test_a_set_with_nothing_to_learn_from_is_refused_with_what_to_do(tmp_path: Path) -> None:
    job = TrainingJob(
        base_model="no/such-model",
        data=tmp_path / "empty.parquet",
        work=tmp_path,
        output=tmp_path,
        sft=TrainingSettings(learning_rate=1e-3),
        dpo=DpoSettings(learning_rate=1e-3),
    )
    columns = {"messages": pa.array([], MESSAGES), "chosen": pa.array([], pa.string())}
    pq.write_table(pa.table({**columns, "rejected": pa.array([], pa.string())}), job.data)
    with pytest.raises(NothingToLearn, match="sft_dataset"):
        sft._conversations(job)
    with pytest.raises(NothingToLearn, match="no preference pairs"):
        dpo._pairs(job)


# ---- trainings -----------------------------------------------------------------------------------------------------

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "batch_size": 4,
    "micro_batch_size": 4,
    "max_length": 96,
    "gradient_checkpointing": False,
    "save_every": 2,
}
TOO_LONG = "z" * 120


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def request_of(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def sft_job(folder: Path, base: Path, **settings: Any) -> TrainingJob:
    pairs = [("red", "a red ball"), ("blue", "a blue box")] * 11 + [("long", TOO_LONG)] * 2
    rows = [[*request_of(query), {"role": "assistant", "content": answer}] for query, answer in pairs]
    pq.write_table(pa.table({"messages": pa.array(rows, MESSAGES)}), folder / "sft.parquet")
    return TrainingJob(
        base_model=str(base),
        dtype="float32",
        data=folder / "sft.parquet",
        work=folder / "work",
        output=folder / "output",
        sft=TrainingSettings.model_validate({**SETTINGS, "epochs": 2, **settings}),
    )


def dpo_job(folder: Path, base: Path, **settings: Any) -> TrainingJob:
    rows = 12
    table = pa.table(
        {
            "messages": pa.array([request_of("red")] * rows, MESSAGES),
            "chosen": ["a red ball"] * (rows - 1) + [TOO_LONG],
            "rejected": ["a vintage feel"] * rows,
        }
    )
    pq.write_table(table, folder / "dpo.parquet")
    return TrainingJob(
        base_model=str(base),
        dtype="float32",
        data=folder / "dpo.parquet",
        work=folder / "work",
        output=folder / "output",
        dpo=DpoSettings.model_validate({**SETTINGS, "learning_rate": 3e-3, "epochs": 2, **settings}),
    )


def trained(
    method: Literal["sft", "dpo"], job: TrainingJob, on_progress: Callable[[dict[str, float]], None] | None = None
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train in a process of its own; the figures that arrived, and the report beside the model."""
    seen: list[dict[str, float]] = []

    def progress(figures: dict[str, float]) -> None:
        seen.append(figures)
        if on_progress is not None:
            on_progress(figures)

    job.output.mkdir(exist_ok=True)
    TrlTrainer().train(method, job, progress)
    return seen, json.loads((job.output / "training.json").read_text())


def loss_of(folder: Path, query: str, answer: str) -> float:
    """Mean loss of a saved model on an answer, and the proof that it loads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    asked = tokenizer.apply_chat_template(request_of(query), tokenize=False, add_generation_prompt=True)
    start = len(tokenizer(asked, add_special_tokens=False).input_ids)
    tokens = torch.tensor([tokenizer(asked + answer, add_special_tokens=False).input_ids])
    labels = tokens.clone()
    labels[:, :start] = -100
    with torch.inference_mode():
        return float(model(tokens, labels=labels).loss)


@pytest.mark.slow
def test_sft_learns_resumes_and_says_what_it_did(tmp_path: Path, base: Path) -> None:
    # Steps enough that the training cannot end before the interruption reaches it.
    job = sft_job(tmp_path, base, epochs=40, save_every=20)

    class Interrupted(Exception):
        pass

    def interrupt(figures: dict[str, float]) -> None:
        if figures["step"] >= 45:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained("sft", job, interrupt)
    assert not (job.output / "training.json").exists()
    seen, report = trained("sft", job)
    steps = [figures["step"] for figures in seen if "loss" in figures]
    assert steps[0] > 40 and steps[0] % 20 == 1  # behind the last saved state
    assert steps == list(range(int(steps[0]), 241))
    assert {figures["steps"] for figures in seen} == {240}
    assert (report["examples"], report["too_long"], report["steps"]) == (24, 2, 240)
    losses = [entry["loss"] for entry in report["curve"] if "loss" in entry]
    assert len(losses) == 240  # with those from before the interruption
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    for query, answer in (("red", "a red ball"), ("blue", "a blue box")):
        assert loss_of(job.output, query, answer) < 0.7 * loss_of(base, query, answer)


@pytest.mark.slow
def test_dpo_with_lora_learns_to_prefer_and_saves_a_whole_model(tmp_path: Path, base: Path) -> None:
    job = dpo_job(tmp_path, base, lora={"rank": 4, "alpha": 8}, sft_weight=0.1)
    seen, report = trained("dpo", job)
    assert [figures["step"] for figures in seen if "loss" in figures] == [1, 2, 3, 4, 5, 6]
    assert (report["examples"], report["too_long"], report["steps"]) == (12, 1, 6)
    margins = [entry["rewards/margins"] for entry in report["curve"] if "rewards/margins" in entry]
    assert abs(margins[0]) < 1e-4  # the policy begins as its own reference
    assert margins[-1] > 0.01
    assert not list(job.output.glob("adapter*"))
    gained = {
        answer: loss_of(base, "red", answer) - loss_of(job.output, "red", answer)
        for answer in ("a red ball", "a vintage feel")
    }
    assert gained["a red ball"] > gained["a vintage feel"]


@pytest.mark.slow
def test_a_training_that_fails_says_why(tmp_path: Path, base: Path) -> None:
    job = sft_job(tmp_path, base).model_copy(update={"data": tmp_path / "gone.parquet"})
    with pytest.raises(TrainingFailed, match=r"sft ended with status 1(.|\n)*FileNotFoundError.*gone\.parquet"):
        trained("sft", job)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to their parent on Linux only")
def test_killing_the_run_ends_its_training(tmp_path: Path, base: Path) -> None:
    job = sft_job(tmp_path, base, epochs=500, lora=LoraSettings(rank=2).model_dump())
    (tmp_path / "job.json").write_text(job.model_dump_json())
    driver = """
        import sys
        from pathlib import Path
        from ml.fine_tuning import TrainingJob
        from resources.trainer import TrlTrainer
        job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_text())
        TrlTrainer().train("sft", job, lambda figures: print(figures["step"], flush=True))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(driver), tmp_path / "job.json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert all(is_gone(pid) for pid in children)
