"""The first video model's architecture, in diffusers' own CogVideoX classes, and the text encoder of both models.

Belongs here: the configuration of its autoencoder, text encoder, tokenizer, transformer and scheduler, and how they
are called in training. Does not belong here: the second model (latte.py), training (train.py) or sampling.
"""

import math
import string
from collections import Counter
from typing import Any

import numpy as np
import torch

from ml.shapes.captions import caption
from ml.shapes.dialects import PLAIN, Dialect
from ml.shapes.scene import FRAMES, SIDE, draw_scene

TEXT_TOKENS = 64
TEXT_WIDTH = 96
LATENT_CHANNELS = 8
SPATIAL_COMPRESSION = 4
TRAIN_TIMESTEPS = 1000


def build_autoencoder() -> Any:
    """AutoencoderKLCogVideoX: 4x smaller in space, as long in time (five frames are too few to compress)."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 16, 32),
        latent_channels=LATENT_CHANNELS,
        temporal_compression_ratio=1,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=SIDE,
        sample_width=SIDE,
        scaling_factor=1.0,
    )


class Autoencoding(torch.nn.Module):
    """Encode and decode in one forward pass, so that data-parallel wrappers see it."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips (batch, 3, frames, height, width) in -1..1 -> reconstruction, and KL per latent value."""
        latents = self.autoencoder.encode(clips).latent_dist
        divergence = 0.5 * (latents.mean.pow(2) + latents.var - 1 - latents.logvar).mean()
        return self.autoencoder.decode(latents.sample()).sample, divergence


def encode(autoencoder: Any, clips: torch.Tensor) -> torch.Tensor:
    """Clips (batch, 3, frames, height, width) in -1..1 -> latents (batch, frames, channels, h, w)."""
    latents: torch.Tensor = autoencoder.encode(clips).latent_dist.mode()
    return latents.permute(0, 2, 1, 3, 4)


def build_text_encoder(vocabulary: int) -> Any:
    """A two-layer T5 encoder, trained together with the transformer."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=24,
            num_heads=4,
            d_ff=256,
            num_layers=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def build_transformer() -> Any:
    """CogVideoXTransformer3DModel; output layers start at zero, so that training starts calm."""
    from diffusers import CogVideoXTransformer3DModel

    latent_side = SIDE // SPATIAL_COMPRESSION
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=64,
        text_embed_dim=TEXT_WIDTH,
        num_layers=4,
        sample_width=latent_side,
        sample_height=latent_side,
        sample_frames=FRAMES,
        patch_size=4,
        temporal_compression_ratio=1,
        max_text_seq_length=TEXT_TOKENS,
        spatial_interpolation_scale=1.0,
        temporal_interpolation_scale=1.0,
    )
    modulations = [norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm2)]
    for layer in [transformer.proj_out, *modulations]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return transformer


class Denoising(torch.nn.Module):
    """Text encoder and transformer in one forward pass: caption tokens and a noisy latent to a clean latent."""

    def __init__(self, text_encoder: Any, transformer: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer

    def forward(self, tokens: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, TEXT_TOKENS), noisy (batch, frames, channels, h, w), timestep (batch,)."""
        text = self.text_encoder(tokens)[0]
        prediction: torch.Tensor = self.transformer(
            hidden_states=noisy, encoder_hidden_states=text, timestep=timestep, return_dict=False
        )[0]
        return prediction


def build_scheduler() -> Any:
    """DDIM that predicts the clean latent, with zero terminal SNR and CogVideoX's SNR shift."""
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=3.0,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build_tokenizer(
    captions: int = 8000, subword_pieces: int = 400, dialect: Dialect = PLAIN, lower_case: bool = False
) -> Any:
    """A unigram T5 tokenizer: every word of the captions is one piece; subwords and letters catch the rest."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    rng = np.random.default_rng(5)
    texts = [caption(draw_scene(rng), rng, dialect) for _ in range(captions)]
    if lower_case:
        texts = [text.lower() for text in texts]
    words: Counter[str] = Counter()
    marks: Counter[str] = Counter()
    for word in " ".join(texts).split():
        stem, ending = _split_ending(word)
        words["▁" + stem] += 1
        marks.update(ending)
    subwords = Tokenizer(models.Unigram())
    subwords.pre_tokenizer = pre_tokenizers.Metaspace()
    subwords.train_from_iterator(
        sorted(word[1:] for word in words) * 3,
        trainers.UnigramTrainer(
            vocab_size=subword_pieces, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
        ),
    )
    total = words.total() + marks.total()
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0}
    for piece, count in (words + marks).most_common():
        scores.setdefault(piece, math.log(count / total))
    for piece, score in _unigram_pieces(subwords):
        scores.setdefault(piece, min(score, -6.0) - 9.0)
    for letter in "▁" + string.ascii_letters + string.digits + string.punctuation:
        scores.setdefault(letter, -24.0)
    return T5Tokenizer(
        vocab=list(scores.items()),
        extra_ids=0,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        unk_id=2,
    )


def _split_ending(word: str) -> tuple[str, str]:
    stem = word.rstrip(".,")
    return stem, word[len(stem) :]


def _unigram_pieces(tokenizer: Any) -> list[tuple[str, float]]:
    import json

    return [(str(piece), float(score)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
