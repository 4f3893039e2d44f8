"""FSDP and DeepSpeed without a GPU: `python -m tests.sharded_on_cpu ml.sft JOB.json`, started by accelerate.

accelerate 1.15 shards on accelerators only and falls back to copies of the model on CPUs. PyTorch and DeepSpeed
themselves can, over gloo. So accelerate is told here that the CPUs are GPUs; everything else is what runs on GPUs too.
"""

import importlib
import os
import sys
from typing import Any

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import transformers.training_args
from accelerate.state import PartialState
from accelerate.utils import DistributedType

import ml.fine_tuning


def _gloo_as_if_on_gpus(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def main() -> None:
    """Train as the job says, sharded."""
    PartialState._prepare_backend = _gloo_as_if_on_gpus
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    usual = ml.fine_tuning.common_arguments
    ml.fine_tuning.common_arguments = lambda *arguments: {**usual(*arguments), "use_cpu": False}
    method = importlib.import_module(sys.argv.pop(1))
    ml.fine_tuning.run(method.train)


if __name__ == "__main__":
    main()
