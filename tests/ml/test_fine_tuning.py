"""SFT and DPO as they are run: settings, and real trainings of a tiny model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
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
    last_state,
    micro_batch_size,
    read_job,
)
from resources.settings import TrainerSettings
from resources.trainer import TrainingFailed, TrainingInterrupted, TrlTrainer
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
        ({"learning_rate": 1e-3, "length_desensitization": 1.5}, "length_desensitization"),
        ({"learning_rate": 1e-3, "length_desensitization": 1, "length_normalization": True}, ""),
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


def test_a_state_that_was_not_saved_to_its_end_is_not_resumed_from(tmp_path: Path) -> None:
    assert last_state(tmp_path) is None
    for step, state in ((20, '{"global_step": 20}'), (40, '{"global_step": 40}'), (60, '{"global_st'), (80, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half of it")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-old").mkdir()
    assert last_state(tmp_path) == str(tmp_path / "checkpoint-40")
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text('{"global_step": 100}')
    assert last_state(tmp_path) == str(tmp_path / "checkpoint-100")  # by number, not by name


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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """A model this small gains nothing by threads, and on a busy machine they wait for one another."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield


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
    method: Literal["sft", "dpo"],
    job: TrainingJob,
    on_progress: Callable[[dict[str, float]], None] | None = None,
    trainer: TrlTrainer | None = None,
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train in a process of its own; the figures that arrived, and the report beside the model."""
    seen: list[dict[str, float]] = []

    def progress(figures: dict[str, float]) -> None:
        seen.append(figures)
        if on_progress is not None:
            on_progress(figures)

    job.output.mkdir(exist_ok=True)
    (trainer or TrlTrainer()).train(method, job, progress)
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


def saved_weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def furthest_apart(one: Path, other: Path) -> float:
    """The largest difference between the weights of two saved models."""
    first, second = saved_weights(one), saved_weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started, and so on."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").glob("*") for child in (task / "children").read_text().split()
    ]
    return children + [later for child in children for later in descendants(child)]


def killed_at(step: int) -> Callable[[dict[str, float]], None]:
    """What kills all processes of a training by SIGKILL when it tells of a step."""

    def kill(figures: dict[str, float]) -> None:
        if figures["step"] == step:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    return kill


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an SFT that ran to its end in one process, undisturbed."""
    job = sft_job(tmp_path_factory.mktemp("undisturbed"), base, **LONG)
    seen, report = trained("sft", job)
    steps = [figures["step"] for figures in seen if "loss" in figures]
    assert steps == list(range(1, STEPS + 1))
    assert {figures["steps"] for figures in seen} == {STEPS}
    assert (report["examples"], report["too_long"], report["steps"]) == (24, 2, STEPS)
    losses = [entry["loss"] for entry in report["curve"] if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    for query, answer in (("red", "a red ball"), ("blue", "a blue box")):
        assert loss_of(job.output, query, answer) < 0.7 * loss_of(base, query, answer)
    return job.output


LONG = {"epochs": 10, "save_every": 10, "micro_batch_size": 2}
STEPS = 60


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds its children in /proc")
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_been(
    tmp_path: Path, base: Path, undisturbed: Path
) -> None:
    job = sft_job(tmp_path, base, **LONG)
    with pytest.raises(TrainingFailed, match=r"status -9(.|\n)*it was killed"):
        trained("sft", job, killed_at(25))
    assert not (job.output / "training.json").exists()
    half = job.work / "checkpoint-30"  # what a kill within a save leaves
    half.mkdir(exist_ok=True)
    (half / "trainer_state.json").unlink(missing_ok=True)
    (half / "model.safetensors").write_bytes(b"half of it")
    seen, report = trained("sft", job)
    steps = [figures["step"] for figures in seen if "loss" in figures]
    assert steps == list(range(21, STEPS + 1))  # behind the last whole state
    assert (report["examples"], report["too_long"], report["steps"]) == (24, 2, STEPS)
    assert len([entry for entry in report["curve"] if "loss" in entry]) == STEPS  # with those from before
    assert furthest_apart(job.output, undisturbed) < 1e-5


def terminated_at(step: int) -> Callable[[dict[str, float]], None]:
    """What asks a training to end by SIGTERM when it tells of a step."""

    def terminate(figures: dict[str, float]) -> None:
        if figures["step"] == step:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    return terminate


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds its children in /proc")
def test_a_training_that_is_asked_to_end_saves_its_state_and_goes_on_from_it(
    tmp_path: Path, base: Path, undisturbed: Path
) -> None:
    job = sft_job(tmp_path, base, **LONG)
    with pytest.raises(TrainingInterrupted, match=rf"after step \d+ of {STEPS}; its state is saved"):
        trained("sft", job, terminated_at(25))
    assert list(job.output.iterdir()) == []
    state = last_state(job.work)
    assert state is not None
    reached = int(Path(state).name.removeprefix("checkpoint-"))
    assert reached >= 25  # where only every tenth is saved anyway
    seen, report = trained("sft", job)
    assert [figures["step"] for figures in seen if "loss" in figures] == list(range(reached + 1, STEPS + 1))
    assert report["steps"] == STEPS
    assert furthest_apart(job.output, undisturbed) < 1e-5


@pytest.mark.slow
def test_interrupting_the_run_saves_the_state_of_its_training(tmp_path: Path, base: Path) -> None:
    def interrupt(figures: dict[str, float]) -> None:
        if figures["step"] == 25:
            raise KeyboardInterrupt

    job = sft_job(tmp_path, base, **LONG)
    with pytest.raises(KeyboardInterrupt):
        trained("sft", job, interrupt)
    state = last_state(job.work)
    assert state is not None and int(Path(state).name.removeprefix("checkpoint-")) >= 25
    assert list(job.output.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds its children in /proc")
def test_several_processes_that_are_asked_to_end_agree_on_the_step(tmp_path: Path, base: Path) -> None:
    job = sft_job(tmp_path, base, **LONG)
    pair = TrlTrainer(TrainerSettings(accelerate="ddp", processes=2))
    with pytest.raises(TrainingFailed):
        trained("sft", job, terminated_at(25), trainer=pair)
    state = last_state(job.work)
    assert state is not None and int(Path(state).name.removeprefix("checkpoint-")) >= 25
    assert list(job.output.iterdir()) == []


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tmp_path: Path, base: Path, undisturbed: Path) -> None:
    job = sft_job(tmp_path, base, **LONG)
    seen, report = trained("sft", job, trainer=TrlTrainer(TrainerSettings(accelerate="ddp", processes=2)))
    assert [figures["step"] for figures in seen if "loss" in figures] == list(range(1, STEPS + 1))  # told once
    assert report["steps"] == STEPS
    (state,) = job.work.glob("checkpoint-*")
    assert sorted(file.name for file in state.glob("rng_state_*")) == ["rng_state_0.pth", "rng_state_1.pth"]
    assert furthest_apart(job.output, undisturbed) < 1e-3  # sums in another order, sixty steps long


class Sharded(TrlTrainer):
    """The trainer, for machines without a GPU: see tests/sharded_on_cpu.py."""

    def _command(self, method: str, job_file: Path) -> list[str]:
        command = super()._command(method, job_file)
        command.insert(command.index(f"ml.{method}"), "tests.sharded_on_cpu")
        return command


SHARDINGS = ["fsdp", *(["zero3"] if find_spec("deepspeed") else [])]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds its children in /proc")
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_model_in_pieces_is_resumed_and_saved_whole(tmp_path: Path, base: Path, sharding: str) -> None:
    job = sft_job(tmp_path, base, epochs=2, micro_batch_size=2, gradient_checkpointing=True)
    job = job.model_copy(update={"dtype": "bfloat16"})
    trainer = Sharded(TrainerSettings(accelerate=sharding, processes=2))
    with pytest.raises(TrainingFailed, match="status -9"):
        trained("sft", job, killed_at(7), trainer)
    seen, report = trained("sft", job, trainer=trainer)
    assert [figures["step"] for figures in seen if "loss" in figures] == list(range(7, 13))
    assert report["steps"] == 12
    weights = saved_weights(job.output)
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.bfloat16"}
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in saved_weights(base).items()
    }
    assert json.loads((job.output / "config.json").read_text())["dtype"] == "bfloat16"
    assert loss_of(job.output, "red", "a red ball") < 0.5 * loss_of(base, "red", "a red ball")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_an_adapter_in_pieces_is_merged_into_a_whole_model(tmp_path: Path, base: Path, sharding: str) -> None:
    alone = dpo_job(tmp_path, base, lora={"rank": 4, "alpha": 8}, micro_batch_size=2)
    trained("dpo", alone)
    (tmp_path / "split").mkdir()
    job = dpo_job(tmp_path / "split", base, lora={"rank": 4, "alpha": 8}, micro_batch_size=2)
    trained("dpo", job, trainer=Sharded(TrainerSettings(accelerate=sharding, processes=2)))
    assert not list(job.output.glob("adapter*"))
    moved = furthest_apart(alone.output, base)
    assert moved > 0.01
    assert furthest_apart(job.output, alone.output) < 0.05 * moved


@pytest.mark.slow
def test_full_training_keeps_its_weights_in_full_precision(tmp_path: Path, base: Path) -> None:
    job = sft_job(tmp_path, base, epochs=1).model_copy(update={"dtype": "bfloat16"})
    trained("sft", job)
    (state,) = job.work.glob("checkpoint-*")
    assert {str(weight.dtype) for weight in saved_weights(state).values()} == {"torch.float32"}
    assert {str(weight.dtype) for weight in saved_weights(job.output).values()} == {"torch.bfloat16"}


@pytest.mark.slow
def test_the_reference_is_not_asked_again_after_a_crash(tmp_path: Path, base: Path) -> None:
    job = dpo_job(tmp_path, base)
    trained("dpo", job)
    computed = {file: file.stat().st_mtime_ns for file in (job.work / "examples").glob("*.arrow")}
    assert len(computed) >= 2
    log = (job.work / "training.log").read_text()
    trained("dpo", job)
    assert {file: file.stat().st_mtime_ns for file in (job.work / "examples").glob("*.arrow")} == computed
    again = (job.work / "training.log").read_text().removeprefix(log)
    assert "Caching reference log probs" not in again


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
def test_one_of_several_processes_that_fails_says_why_before_all_else(tmp_path: Path, base: Path) -> None:
    job = sft_job(tmp_path, base, batch_size=3)  # two processes cannot share it
    with pytest.raises(TrainingFailed) as caught:
        trained("sft", job, trainer=TrlTrainer(TrainerSettings(accelerate="ddp", processes=2)))
    message = str(caught.value)
    reason = "ValueError: batch_size 3 is no multiple of the 2 devices that share it"
    assert message.splitlines()[0].startswith(f"sft ended with status 1: {reason}; the log is ")
    assert "ChildFailedError" not in message  # the launcher's report of what is known by then
    assert "Traceback" in (job.work / "training.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["none", "ddp"])
@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to their parent on Linux only")
def test_killing_the_run_ends_its_training(tmp_path: Path, base: Path, accelerate: str) -> None:
    job = sft_job(tmp_path, base, epochs=500, lora=LoraSettings(rank=2).model_dump())
    (tmp_path / "job.json").write_text(job.model_dump_json())
    driver = """
        import sys
        from pathlib import Path
        from ml.fine_tuning import TrainingJob
        from resources.settings import TrainerSettings
        from resources.trainer import TrlTrainer
        job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_text())
        settings = TrainerSettings(accelerate=sys.argv[2], processes="auto" if sys.argv[2] == "none" else 2)
        TrlTrainer(settings).train("sft", job, lambda figures: print(figures["step"], flush=True))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(driver), tmp_path / "job.json", accelerate],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    children = descendants(process.pid)
    assert len(children) == (1 if accelerate == "none" else 3)  # with the launcher
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert all(is_gone(pid) for pid in children)
