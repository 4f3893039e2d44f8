"""The video models that are trained on the shapes world, by name: all that training and examining one must know.

Belongs here: one row a model. Does not belong here: their architectures (model.py, latte.py), the words of their
captions (dialects.py) or the training itself (train.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from ml.shapes import latte, model
from ml.shapes.dialects import PLAIN, SHOT_LIST, Dialect
from ml.shapes.scene import FRAMES, SIDE


@dataclass(frozen=True)
class CropStage:
    """A stretch of an autoencoder's training, which ends at `until` (share of its steps): batches of `count` crops
    of `frames` frames and `side` pixels."""

    until: float
    frames: int
    side: int
    count: int


@dataclass(frozen=True)
class VideoModel:
    """One architecture and the dialect that it is captioned in.

    `autoencoding` and `denoising` wrap parts into the one forward pass that is trained; `arguments` are those that the
    finished pipeline's call needs beside steps and guidance.
    """

    name: str
    dialect: Dialect
    lower_case: bool
    text_tokens: int
    arguments: Mapping[str, int | bool]
    crops: tuple[CropStage, ...]
    normalises_queries: bool
    build_autoencoder: Callable[[], Any]
    autoencoding: Callable[[Any], torch.nn.Module]
    encode: Callable[[Any, torch.Tensor], torch.Tensor]
    build_transformer: Callable[[], Any]
    denoising: Callable[[Any, Any], torch.nn.Module]
    build_scheduler: Callable[[], Any]
    pipeline: str

    def text(self, caption: str) -> str:
        """A caption as the pipeline will hand it to the tokenizer."""
        return caption.lower().strip() if self.lower_case else caption

    def build_tokenizer(self) -> Any:
        """A tokenizer of the words of this model's captions."""
        return model.build_tokenizer(dialect=self.dialect, lower_case=self.lower_case)

    def build_pipeline(self, tokenizer: Any, text_encoder: Any, autoencoder: Any, transformer: Any) -> Any:
        """The plain pipeline of diffusers that everything else loads with `from_pretrained`."""
        import diffusers

        return getattr(diffusers, self.pipeline)(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=autoencoder,
            transformer=transformer,
            scheduler=self.build_scheduler(),
        )


COGVIDEOX = VideoModel(
    name="cogvideox",
    dialect=PLAIN,
    lower_case=False,
    text_tokens=model.TEXT_TOKENS,
    arguments=MappingProxyType(
        {"num_frames": FRAMES, "height": SIDE, "width": SIDE, "max_sequence_length": model.TEXT_TOKENS}
    ),
    crops=(CropStage(0.25, 1, SIDE // 2, 16), CropStage(0.8, FRAMES, SIDE // 2, 4), CropStage(1.0, FRAMES, SIDE, 2)),
    normalises_queries=True,
    build_autoencoder=model.build_autoencoder,
    autoencoding=model.Autoencoding,
    encode=model.encode,
    build_transformer=model.build_transformer,
    denoising=model.Denoising,
    build_scheduler=model.build_scheduler,
    pipeline="CogVideoXPipeline",
)

LATTE = VideoModel(
    name="latte",
    dialect=SHOT_LIST,
    lower_case=True,
    text_tokens=latte.TEXT_TOKENS,
    # Without these, the pipeline cuts texts off according to what else is in the batch.
    arguments=MappingProxyType(
        {"video_length": FRAMES, "height": SIDE, "width": SIDE, "mask_feature": False, "clean_caption": False}
    ),
    crops=(CropStage(0.7, 1, SIDE // 2, 32), CropStage(1.0, 1, SIDE, 16)),
    normalises_queries=False,
    build_autoencoder=latte.build_autoencoder,
    autoencoding=latte.Autoencoding,
    encode=latte.encode,
    build_transformer=latte.build_transformer,
    denoising=latte.Denoising,
    build_scheduler=latte.build_scheduler,
    pipeline="LattePipeline",
)

MODELS: Mapping[str, VideoModel] = MappingProxyType({one.name: one for one in (COGVIDEOX, LATTE)})
