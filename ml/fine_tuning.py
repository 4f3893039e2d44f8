"""What SFT and DPO share: their settings, the job file they are started with, progress, and saving the result.

Belongs here: everything around TRL that is the same for both. Does not belong here: the losses themselves
(ml/sft.py, ml/dpo.py), starting processes (resources/trainer.py) and writing weights (ml/saving.py).
"""

import hashlib
import json
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ml.alignment_settings import AlignmentSettings
from ml.parent_death import die_with_parent
from ml.saving import save_model
from ml.supervision import FAILURE_MARK, INTERRUPTED, ParentProcess, Supervisor, tell

STATES_KEPT = 1
"""A new state is whole before the one before it goes."""


class LoraSettings(BaseModel):
    """Low-rank adaptation of all linear layers; the result is merged into the model before it is saved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class TrainingSettings(BaseModel):
    """Settings of SFT and DPO alike. Batch sizes count examples; a pair is one example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1, description="examples a step, over all devices and accumulation steps")
    micro_batch_size: int = Field(8, ge=1, description="examples that pass through the model at once, per device")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    max_length: int = Field(2048, ge=16, description="tokens of prompt and answer together")
    lora: LoraSettings | None = None
    gradient_checkpointing: bool = True
    save_every: int = Field(50, ge=1, description="steps between the states that a crashed run resumes from")
    seed: int | None = Field(None, description="default: the profile's seed")


class DpoSettings(TrainingSettings):
    """DPO's own settings; beta is the strength of the tie to the reference policy."""

    beta: float = Field(0.1, gt=0)
    sft_weight: float = Field(0.0, ge=0, description="weight of an added SFT loss on the chosen prompts")
    precompute_reference: bool = Field(True, description="the reference policy is asked once, before training")
    length_desensitization: float | None = Field(
        None,
        ge=0,
        le=1,
        description="against prompts that grow longer and longer: how much the tokens count by which one prompt of a "
        "pair is longer than the other (LD-DPO's alpha, arXiv 2409.06411); none: as much as all others",
    )
    length_normalization: bool = Field(
        False, description="against the same: compare means over tokens instead of sums; wants a larger beta"
    )

    @model_validator(mode="after")
    def _one_remedy(self) -> "DpoSettings":
        if self.length_normalization and self.length_desensitization is not None:
            raise ValueError("length_desensitization and length_normalization are two ways to one end: set one of them")
        return self


class TrainingJob(BaseModel):
    """One training run, as it is handed to the training process in a JSON file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    data: Path = Field(description="Parquet file of the examples")
    work: Path = Field(description="folder for states to resume from")
    output: Path = Field(description="folder for the trained model")
    sft: TrainingSettings | None = None
    dpo: DpoSettings | None = None
    alignment: AlignmentSettings | None = None
    clips: Path | None = Field(None, description="of an alignment: folder of its films, one .npy each")
    max_sequence_length: int | None = Field(None, description="of an alignment: tokens that a text is cut to")


@dataclass
class TrainingReport:
    """What came of a run: counts of examples, the curve of logged figures, and seconds."""

    examples: int
    too_long: int
    steps: int
    seconds: float
    curve: list[dict[str, float]]

    def save(self, folder: Path) -> None:
        """Write the report beside the model as training.json."""
        (folder / "training.json").write_text(json.dumps(vars(self), indent=1))


class NothingToLearn(RuntimeError):
    """No example is left to train on."""


class Interrupted(RuntimeError):
    """The training was asked to end (SIGTERM), and saved its state."""


def interrupted_after(step: int, steps: int) -> Interrupted:
    """What a training raises when it has ended as it was asked to."""
    return Interrupted(
        f"it was asked to end and did, after step {step} of {steps}; its state is saved, and the next run goes on from "
        "there"
    )


def run(train: Callable[[TrainingJob], None]) -> None:
    """The whole of a training process: read the job, train, and leave what went wrong where the trainer finds it.

    With several processes, the launcher's own report would otherwise bury the reason of the first failure.
    """
    job = read_job(sys.argv)
    try:
        train(job)
        end_together()
    except Interrupted as interrupted:
        end_together()
        tell(FAILURE_MARK, str(interrupted))
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        tell(FAILURE_MARK, f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


def end_together() -> None:
    """Wait for the process that writes the model. One that ends before it takes the others with it."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def read_job(argv: list[str]) -> TrainingJob:
    """The job whose file is named on the command line. The process ends with whoever started it."""
    die_with_parent()
    if len(argv) != 2:
        raise SystemExit(f"usage: python -m {argv[0]} JOB.json")
    return TrainingJob.model_validate_json(Path(argv[1]).read_text())


def load_model_and_tokenizer(job: TrainingJob, settings: TrainingSettings) -> tuple[Any, Any]:
    """The base model, and its tokenizer with a padding token. TRL's configuration must have been made before: it
    tells transformers whether the weights are to be sharded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base_model, revision=job.revision)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = weights_dtype(job, settings, sharded=is_sharded(os.environ))
    model = AutoModelForCausalLM.from_pretrained(job.base_model, revision=job.revision, dtype=getattr(torch, dtype))
    return model, tokenizer


def is_sharded(environment: Mapping[str, str]) -> bool:
    """Whether accelerate was told to shard the weights (FSDP, DeepSpeed)."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(environment.get(name, "").lower() == "true" for name in names)


def weights_dtype(job: TrainingJob, settings: TrainingSettings, *, sharded: bool) -> str:
    """The dtype that the weights are held in while they are trained.

    Weights that are trained themselves are held in float32, whatever they are computed in: next to a weight of 0.02,
    an update of 2e-6 is nothing in bfloat16, so that nothing would be learned. FSDP and DeepSpeed keep such copies
    themselves; under LoRA only the adapters are trained, and PEFT holds them in float32.
    """
    return job.dtype if settings.lora or sharded else "float32"


def common_arguments(job: TrainingJob, settings: TrainingSettings) -> dict[str, Any]:
    """The arguments that SFTConfig and DPOConfig have in common."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        **chosen_arguments(job, settings, devices=int(os.environ.get("WORLD_SIZE", "1"))),
        "output_dir": str(job.work),
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": STATES_KEPT,
        "save_only_model": False,  # the optimizer is part of what a crashed run resumes from
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
    }


def chosen_arguments(job: TrainingJob, settings: TrainingSettings, devices: int) -> dict[str, Any]:
    """What the profile's settings are called by TRL, for so many devices."""
    micro = micro_batch_size(settings, devices)
    return {
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // (micro * devices),
        "warmup_steps": settings.warmup,  # below 1 it is a share of all steps
        "lr_scheduler_type": settings.schedule,
        "max_length": settings.max_length,
        "bf16": job.dtype == "bfloat16",
        "fp16": job.dtype == "float16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed or 0,
        "data_seed": settings.seed or 0,
    }


def micro_batch_size(settings: TrainingSettings, devices: int) -> int:
    """The most examples at once, at most what is set, with which a step sees exactly `batch_size` examples.

    Raises ValueError where the devices cannot share a batch evenly.
    """
    share, rest = divmod(settings.batch_size, devices)
    if rest:
        raise ValueError(f"batch_size {settings.batch_size} is no multiple of the {devices} devices that share it")
    return max(size for size in range(1, min(share, settings.micro_batch_size) + 1) if share % size == 0)


def lora_config(settings: TrainingSettings) -> Any:
    """PEFT's configuration for the settings' LoRA, or None for full fine-tuning."""
    if settings.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def too_long_count(tokenizer: Any, conversations: list[list[dict[str, str]]], max_length: int) -> int:
    """How many conversations exceed `max_length` tokens and would be cut."""
    return sum(
        len(tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]) > max_length
        for conversation in conversations
    )


def progress_callback(supervisor: Supervisor) -> Any:
    """A callback that tells of every logged step."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            del args, control
            if state.is_world_process_zero and logs:
                figures = {key: value for key, value in logs.items() if isinstance(value, int | float)}
                supervisor.progress({"step": state.global_step, "steps": state.max_steps, **figures})

    return Progress()


def interruption_callback(supervisor: Supervisor) -> Any:
    """A callback that ends the training, when that is asked, after the step under way, with a state to go on from.

    Several processes are not told at the same step, so that each step they ask one another: all of them save after the
    same one.
    """
    from transformers import TrainerCallback

    class Interruption(TrainerCallback):  # type: ignore[misc]
        stopped = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, state, control
            supervisor.listen()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step < state.max_steps and _any_process(supervisor.end_is_asked(), args.device):
                control.should_save = True
                control.should_training_stop = True
                self.stopped = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, state, control
            supervisor.stop_listening()

    return Interruption()


def _any_process(asked: bool, device: Any) -> bool:
    """Whether it is so in any of the processes that train together."""
    import torch
    import torch.distributed as distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return asked
    flag = torch.tensor(int(asked), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def dataset_file(job: TrainingJob, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The examples as a dataset in a file of the work folder, written once.

    A dataset in memory would do for one process. In a file, what TRL computes from it (tokens, the reference's log
    probabilities) is found by the other processes, and again after a crash.
    """
    from accelerate import PartialState
    from datasets import Dataset

    with job.data.open("rb") as stream:
        name = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    file = job.work / "examples" / f"{name}.arrow"
    with PartialState().main_process_first():
        if not file.exists():
            _write_arrow(file, rows)
        return Dataset.from_file(str(file))


def _write_arrow(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist([dict(row) for row in rows])
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{uuid.uuid4().hex}")  # processes of several machines may write it at once
    with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    beside.rename(file)


def train_and_save(
    trainer: Any,
    tokenizer: Any,
    job: TrainingJob,
    examples: int,
    too_long: int,
    supervisor: Supervisor | None = None,
) -> None:
    """Train from the last saved state, if there is one; save model, tokenizer and report. Raises Interrupted."""
    supervisor = supervisor or ParentProcess()
    started = time.monotonic()
    interruption = interruption_callback(supervisor)
    trainer.add_callback(progress_callback(supervisor))
    trainer.add_callback(interruption)
    trainer.train(resume_from_checkpoint=last_state(job.work))
    if interruption.stopped:
        raise interrupted_after(trainer.state.global_step, trainer.state.max_steps)
    save_model(
        trainer,
        base_model=job.base_model,
        revision=job.revision,
        dtype=job.dtype,
        output=job.output,
        sharded=is_sharded(os.environ),
    )
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(job.output)
    curve = [
        {key: float(value) for key, value in entry.items() if isinstance(value, int | float)}
        for entry in trainer.state.log_history
    ]
    TrainingReport(examples, too_long, trainer.state.global_step, round(time.monotonic() - started, 1), curve).save(
        job.output
    )


def last_state(work: Path) -> str | None:
    """The newest whole state to resume from. A run that was killed while it saved leaves one that is not whole.

    The trainer writes `trainer_state.json` after everything else, so a state that has it, readable, has the rest.
    """
    states = [folder for folder in work.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdigit()]
    whole = [folder for folder in states if _is_whole(folder)]
    return str(max(whole, key=_step)) if whole else None


def _step(state: Path) -> int:
    return int(state.name.removeprefix("checkpoint-"))


def _is_whole(state: Path) -> bool:
    try:
        return bool(json.loads((state / "trainer_state.json").read_text())["global_step"] == _step(state))
    except (OSError, ValueError, KeyError):
        return False
