"""What SFT and DPO share: their settings, the job file they are started with, progress, and saving the result.

Belongs here: everything around TRL that is the same for both. Does not belong here: the losses themselves
(ml/sft.py, ml/dpo.py) and starting processes (resources/trainer.py).
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ml.parent_death import die_with_parent

PROGRESS_MARK = "vpo-progress "


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
    precompute_reference: bool = True


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


def read_job(argv: list[str]) -> TrainingJob:
    """The job whose file is named on the command line. The process ends with whoever started it."""
    die_with_parent()
    if len(argv) != 2:
        raise SystemExit(f"usage: python -m {argv[0]} JOB.json")
    return TrainingJob.model_validate_json(Path(argv[1]).read_text())


def load_model_and_tokenizer(job: TrainingJob) -> tuple[Any, Any]:
    """The base model in the job's dtype, and its tokenizer with a padding token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base_model, revision=job.revision)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job.base_model, revision=job.revision, dtype=getattr(torch, job.dtype))
    return model, tokenizer


def common_arguments(job: TrainingJob, settings: TrainingSettings) -> dict[str, Any]:
    """The arguments that SFTConfig and DPOConfig have in common."""
    import os

    import torch

    devices = int(os.environ.get("WORLD_SIZE", "1"))
    micro = micro_batch_size(settings, devices)
    return {
        "output_dir": str(job.work),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // (micro * devices),
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": settings.schedule,
        "max_length": settings.max_length,
        "bf16": job.dtype == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed or 0,
        "data_seed": settings.seed or 0,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
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


def progress_callback() -> Any:
    """A callback that prints every logged step as one JSON line, for whoever started the process."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            del args, control
            if state.is_world_process_zero and logs:
                figures = {key: value for key, value in logs.items() if isinstance(value, int | float)}
                line = {"step": state.global_step, "steps": state.max_steps, **figures}
                sys.stdout.write(PROGRESS_MARK + json.dumps(line) + "\n")
                sys.stdout.flush()

    return Progress()


def train_and_save(trainer: Any, tokenizer: Any, job: TrainingJob, examples: int, too_long: int) -> None:
    """Train from the last saved state, if there is one; merge any adapter; save model, tokenizer and report."""
    started = time.monotonic()
    trainer.add_callback(progress_callback())
    trainer.train(resume_from_checkpoint=_last_state(job.work))
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(job.output)
    tokenizer.save_pretrained(job.output)
    curve = [
        {key: float(value) for key, value in entry.items() if isinstance(value, int | float)}
        for entry in trainer.state.log_history
    ]
    TrainingReport(examples, too_long, trainer.state.global_step, round(time.monotonic() - started, 1), curve).save(
        job.output
    )


def _last_state(work: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(work)) if work.exists() else None
