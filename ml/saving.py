"""Writing a trained model as one whole checkpoint, however its weights were spread over devices.

Belongs here: gathering, merging of adapters, dtype and files. Does not belong here: training (ml/fine_tuning.py).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def save_model(trainer: Any, *, base_model: str, revision: str | None, dtype: str, output: Path, sharded: bool) -> None:
    """Save the trainer's model in `dtype` into a folder that `from_pretrained` reads. Every process calls this.

    Adapters are merged. Where weights are sharded no process holds a model to merge into, so the first one loads the
    base model again, on the CPU, and merges the gathered adapter there.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = _gathered(trainer) if sharded else None
    if not trainer.is_world_process_zero():
        return
    if _has_adapter(model):
        if weights is None:
            model = model.merge_and_unload()
        else:
            model = _merged(base_model, revision, dtype, model, weights)
            weights = None
    _save(model, weights, dtype, output)


def _has_adapter(model: Any) -> bool:
    return hasattr(model, "merge_and_unload")


def _gathered(trainer: Any) -> Mapping[str, Any]:
    """All weights, whole, in the first process's memory; the others take part and get little or nothing."""
    wrapped = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
    weights: Mapping[str, Any] = trainer.accelerator.get_state_dict(wrapped)
    return weights


def _merged(base_model: str, revision: str | None, dtype: str, model: Any, weights: Mapping[str, Any]) -> Any:
    """The base model with the adapter of `model`, whose weights are among the gathered ones, merged into it."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    _load_whole_from_now_on()
    base = AutoModelForCausalLM.from_pretrained(base_model, revision=revision, dtype=getattr(torch, dtype))
    fresh = get_peft_model(base, model.peft_config["default"])
    outcome = set_peft_model_state_dict(fresh, get_peft_model_state_dict(model, state_dict=dict(weights)))
    if outcome.unexpected_keys:
        raise RuntimeError(f"the gathered adapter does not fit its base model: {outcome.unexpected_keys[:3]}")
    return fresh.merge_and_unload()


def _load_whole_from_now_on() -> None:
    """Undo what makes `from_pretrained` shard what it loads over processes that no longer wait for it."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)


def _save(model: Any, weights: Mapping[str, Any] | None, dtype: str, output: Path) -> None:
    import torch
    from transformers import AutoConfig

    target = getattr(torch, dtype)
    if weights is None:
        model.to(target).save_pretrained(output)
        return
    # Tensors that were one stay one: they are cast once.
    cast: dict[int, Any] = {}
    for tensor in weights.values():
        cast.setdefault(tensor.data_ptr(), tensor.to(target) if tensor.is_floating_point() else tensor)
    model.save_pretrained(output, state_dict={name: cast[tensor.data_ptr()] for name, tensor in weights.items()})
    config = AutoConfig.from_pretrained(output)
    config.dtype = dtype
    config.save_pretrained(output)
