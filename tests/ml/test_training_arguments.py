"""What the profile's settings become at TRL: the paper's settings to the letter, and the ways of our own."""

from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig, SFTConfig

from ml import dpo, sft
from ml.fine_tuning import (
    DpoSettings,
    LoraSettings,
    TrainingJob,
    TrainingSettings,
    chosen_arguments,
    common_arguments,
    is_sharded,
    weights_dtype,
)
from resources.settings import PAPER_DPO, PAPER_SFT, Profile, TargetSettings, load_profile

PAPER_DEVICES = 8


def job_of(folder: Path, **settings: Any) -> TrainingJob:
    return TrainingJob(base_model="base", data=folder / "data", work=folder / "work", output=folder / "out", **settings)


def at_the_paper(folder: Path, method: str) -> tuple[TrainingJob, TrainingSettings]:
    """The job that the profile `paper` makes for a target."""
    profile = load_profile("paper")
    settings = profile.sft if method == "sft" else profile.targets["cogvideox_2b"].dpo
    return job_of(folder, dtype=profile.trained_model.dtype, **{method: settings}), settings


def test_the_paper_s_sft_is_what_trl_is_told(home: Path, tmp_path: Path) -> None:
    job, settings = at_the_paper(tmp_path, "sft")
    assert chosen_arguments(job, settings, PAPER_DEVICES) | sft.own_arguments() == {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-6,
        "num_train_epochs": 5,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0.1,
        "max_length": 2048,
        "bf16": True,
        "fp16": False,
        "completion_only_loss": True,
        # ours
        "gradient_checkpointing": True,
        "seed": 0,
        "data_seed": 0,
    }


def test_the_paper_s_dpo_is_what_trl_is_told(home: Path, tmp_path: Path) -> None:
    job, settings = at_the_paper(tmp_path, "dpo")
    assert isinstance(settings, DpoSettings)
    assert load_profile("paper").targets["cogvideox_5b"].dpo == settings
    assert chosen_arguments(job, settings, PAPER_DEVICES) | dpo.own_arguments(settings) == {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5e-7,
        "num_train_epochs": 1,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "max_length": 2048,
        "bf16": True,
        "fp16": False,
        "beta": 0.1,
        "loss_type": ["sigmoid"],
        "loss_weights": [1.0],
        "ld_alpha": None,
        # ours
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": True,
        "seed": 0,
        "data_seed": 0,
    }


def test_the_defaults_are_the_paper_s(home: Path) -> None:
    paper = load_profile("paper")
    own = {"save_every"}
    assert paper.sft.model_dump(exclude=own) == PAPER_SFT.model_dump(exclude=own)
    assert paper.targets["cogvideox_2b"].dpo.model_dump(exclude=own) == PAPER_DPO.model_dump(exclude=own)
    assert Profile.model_fields["sft"].default == PAPER_SFT
    assert TargetSettings.model_fields["dpo"].default == PAPER_DPO


def test_one_gpu_sees_the_paper_s_batch_in_eight_goes(home: Path, tmp_path: Path) -> None:
    job, settings = at_the_paper(tmp_path, "sft")
    arguments = chosen_arguments(job, settings, 1)
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (2, 8)


def test_trl_takes_every_argument(home: Path, tmp_path: Path) -> None:
    job, settings = at_the_paper(tmp_path, "sft")
    config = SFTConfig(**common_arguments(job, settings), **sft.own_arguments())
    assert (config.warmup_steps, config.max_length, config.completion_only_loss) == (0.1, 2048, True)
    assert config.get_warmup_steps(100) == 10  # a share of the steps
    assert not config.save_only_model  # else there would be no optimizer to resume with
    job, settings = at_the_paper(tmp_path, "dpo")
    assert isinstance(settings, DpoSettings)
    preference = DPOConfig(**common_arguments(job, settings), **dpo.own_arguments(settings))
    assert (preference.beta, preference.loss_type, preference.ld_alpha) == (0.1, ["sigmoid"], None)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sft_weight": 0.2}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}),
        ({"length_desensitization": 0.5}, {"ld_alpha": 0.5, "loss_type": ["sigmoid"]}),
        ({"length_desensitization": 0.0}, {"ld_alpha": 0.0}),
        ({"length_normalization": True}, {"loss_type": ["sigmoid_norm"], "loss_weights": [1.0], "ld_alpha": None}),
        (
            {"length_normalization": True, "sft_weight": 0.2},
            {"loss_type": ["sigmoid_norm", "sft"], "loss_weights": [1.0, 0.2]},
        ),
        ({"precompute_reference": False}, {"precompute_ref_log_probs": False}),
    ],
)
def test_settings_of_dpo_are_told_to_trl(settings: dict[str, Any], told: dict[str, Any]) -> None:
    arguments = dpo.own_arguments(DpoSettings.model_validate({"learning_rate": 1e-6, **settings}))
    assert {name: arguments[name] for name in told} == told


@pytest.mark.parametrize(
    ("dtype", "lora", "sharded", "held_in"),
    [
        ("bfloat16", None, False, "float32"),  # an update of 2e-6 is lost in bfloat16
        ("float16", None, False, "float32"),
        ("bfloat16", None, True, "bfloat16"),  # FSDP and DeepSpeed keep copies in float32 themselves
        ("bfloat16", LoraSettings(), False, "bfloat16"),  # the adapters are in float32
        ("float32", None, False, "float32"),
    ],
)
def test_trained_weights_are_held_where_small_updates_count(
    tmp_path: Path, dtype: Any, lora: LoraSettings | None, sharded: bool, held_in: str
) -> None:
    settings = TrainingSettings(learning_rate=2e-6, lora=lora)
    assert weights_dtype(job_of(tmp_path, dtype=dtype, sft=settings), settings, sharded=sharded) == held_in


@pytest.mark.parametrize(
    ("environment", "sharded"),
    [
        ({}, False),
        ({"ACCELERATE_USE_FSDP": "true"}, True),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, True),
        ({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_CPU": "True"}, False),
    ],
)
def test_accelerate_says_whether_weights_are_sharded(environment: dict[str, str], sharded: bool) -> None:
    assert is_sharded(environment) == sharded
