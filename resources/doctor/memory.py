"""How much memory a model needs: arithmetic on its shape and the settings. Estimates, good to a tenth or two.

Belongs here: the formulas. Does not belong here: finding out shapes (weights.py) or judging what is enough
(memory_checks.py).

What is left out on purpose: CUDA's own context (about half a GiB a process) and fragmentation. MARGIN stands for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.fine_tuning import LoraSettings, TrainingSettings, micro_batch_size

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MARGIN = 0.9
"""What share of a GPU an estimate may fill before it counts as tight."""

ADAM = 8
"""Bytes of optimizer state for each trained weight: two means in float32."""
GRADIENT = 4
MASTER = 4
"""Bytes of a trained weight: it is held in float32, whatever it is computed in."""
ACTIVATIONS_OF_A_LAYER = 34
"""Bytes in 16 bits for each token and each number of the model's width, of one transformer layer without the attention
matrix, which today's attention never holds (Korthikanti et al., arXiv 2205.05198, equation 1)."""


@dataclass(frozen=True)
class ModelShape:
    """What of a language model's configuration decides its memory."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    window: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: int) -> "ModelShape | None":
        """From a config.json; None where it does not say enough."""
        text = config.get("text_config", config)
        try:
            heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
            return cls(
                parameters=parameters,
                layers=int(text["num_hidden_layers"]),
                hidden=hidden,
                intermediate=int(text.get("intermediate_size") or 4 * hidden),
                heads=heads,
                key_value_heads=int(text.get("num_key_value_heads") or heads),
                head_size=int(text.get("head_dim") or hidden // heads),
                window=text.get("max_position_embeddings"),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None


def cache_bytes(shape: ModelShape, tokens: int, dtype: str) -> int:
    """Keys and values of so many tokens."""
    return 2 * shape.layers * shape.key_value_heads * shape.head_size * BYTES[dtype] * tokens


def adapter_parameters(shape: ModelShape, lora: LoraSettings) -> int:
    """Weights of the adapters of all linear layers, of a Llama-like model: four in attention, three in the MLP."""
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    sides = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys) + 3 * (shape.hidden + shape.intermediate)
    return shape.layers * lora.rank * sides


@dataclass(frozen=True)
class TrainingNeed:
    """Bytes on each GPU: for the weights that are trained or only read, their gradients, the optimizer's state, the
    reference policy where it stays in memory, and activations.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.reference + self.activations


def training_need(
    shape: ModelShape,
    settings: TrainingSettings,
    *,
    dtype: str,
    processes: int,
    sharded: bool,
    pairs: bool,
    reference_stays: bool,
) -> TrainingNeed:
    """What one GPU holds while it trains. Sharding splits everything but the activations over the processes.

    `pairs`: an example is two texts. `reference_stays`: another whole model is there to be asked; under LoRA the
    model itself without its adapter is the reference. Raises ValueError where the processes cannot share a batch.
    """
    width = BYTES[dtype]
    share = processes if sharded else 1
    if settings.lora is None:
        trained, weights = shape.parameters, shape.parameters * MASTER
        if width < MASTER:  # each step computes with a copy in the model's dtype
            weights += shape.parameters * width
    else:
        trained = adapter_parameters(shape, settings.lora)
        weights = shape.parameters * width + trained * MASTER
    reference = shape.parameters * width if reference_stays and settings.lora is None else 0
    return TrainingNeed(
        weights=weights // share,
        gradients=trained * GRADIENT // share,
        optimizer=trained * ADAM // share,
        reference=reference // share,
        activations=activation_bytes(
            shape,
            tokens=micro_batch_size(settings, processes) * (2 if pairs else 1) * settings.max_length,
            width=width,
            checkpointing=settings.gradient_checkpointing,
        ),
    )


def activation_bytes(shape: ModelShape, *, tokens: int, width: int, checkpointing: bool) -> int:
    """What is kept of so many tokens for the way back: all of every layer, or with checkpointing each layer's input
    and all of the one layer that is computed again.
    """
    layer = tokens * shape.hidden * ACTIVATIONS_OF_A_LAYER * width // 2
    if not checkpointing:
        return shape.layers * layer
    return shape.layers * tokens * shape.hidden * width + layer
