"""The second video model's architecture, in diffusers' own Latte classes.

It sees space and time in turns, reads the text by cross attention, and has an autoencoder of single frames, where the
first model (model.py) does all of it in one attention over clips. Belongs here: the configuration of its parts and
how they are called and put together into a plain `LattePipeline`. Does not belong here: training (train.py) or what
both models share (model.py).
"""

from typing import Any

import torch

from ml.shapes.model import LATENT_CHANNELS, SPATIAL_COMPRESSION, TEXT_WIDTH, TRAIN_TIMESTEPS
from ml.shapes.scene import FRAMES, SIDE

TEXT_TOKENS = 120  # as many as the pipeline always encodes
GATES = [2, 5]  # rows of a block's table that scale what attention and the feed-forward layer add


def build_autoencoder() -> Any:
    """AutoencoderKL: each frame by itself, 4x smaller."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


class Autoencoding(torch.nn.Module):
    """Encode and decode in one forward pass, so that data-parallel wrappers see it."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips (batch, 3, frames, height, width) in -1..1 -> reconstruction, and KL per latent value."""
        frames = clips.transpose(1, 2)
        latents = self.autoencoder.encode(frames.flatten(0, 1)).latent_dist
        divergence = 0.5 * (latents.mean.pow(2) + latents.var - 1 - latents.logvar).mean()
        decoded = self.autoencoder.decode(latents.sample()).sample
        return decoded.reshape(frames.shape).transpose(1, 2), divergence


def encode(autoencoder: Any, clips: torch.Tensor) -> torch.Tensor:
    """Clips (batch, 3, frames, height, width) in -1..1 -> latents (batch, frames, channels, h, w)."""
    frames = clips.transpose(1, 2)
    latents: torch.Tensor = autoencoder.encode(frames.flatten(0, 1)).latent_dist.mode()
    return latents.reshape(*frames.shape[:2], *latents.shape[1:])


def build_transformer() -> Any:
    """LatteTransformer3DModel; the output layer starts at zero, so that training starts calm, and the gates of its
    blocks start open, so that all of them learn from the first step.

    It has twice the channels that it needs: the pipeline drops the second half, which is for a learned variance.
    """
    from diffusers import LatteTransformer3DModel

    transformer = LatteTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,
        num_layers=3,
        cross_attention_dim=128,
        attention_bias=True,
        sample_size=SIDE // SPATIAL_COMPRESSION,
        patch_size=4,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=TRAIN_TIMESTEPS,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=TEXT_WIDTH,
        video_length=FRAMES,
    )
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    for block in [*transformer.transformer_blocks, *transformer.temporal_transformer_blocks]:
        with torch.no_grad():
            block.scale_shift_table[GATES] += 1
    return transformer


class TextOncePerClip:
    """Cross attention of all frames of a clip to its text at once: what the transformer does frame by frame, with a
    copy of the text for each. The same result for a fifth of the work on the text."""

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **others: Any
    ) -> torch.Tensor:
        """Tokens (batch * frames, n, width) and their text (batch * frames, TEXT_TOKENS, width) to (the first)."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        clips = hidden_states.reshape(len(hidden_states) // FRAMES, -1, hidden_states.shape[-1])
        attended: torch.Tensor = AttnProcessor2_0()(attn, clips, encoder_hidden_states[::FRAMES], **others)
        return attended.reshape(hidden_states.shape)


class Denoising(torch.nn.Module):
    """Text encoder and transformer in one forward pass: caption tokens and a noisy latent to a clean latent."""

    def __init__(self, text_encoder: Any, transformer: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer
        for block in transformer.transformer_blocks:
            block.attn2.set_processor(TextOncePerClip())

    def forward(self, tokens: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, TEXT_TOKENS), noisy (batch, frames, channels, h, w), timestep (batch,)."""
        text = self.text_encoder(tokens, attention_mask=tokens != 0)[0]
        prediction: torch.Tensor = self.transformer(
            hidden_states=noisy.transpose(1, 2), encoder_hidden_states=text, timestep=timestep, return_dict=False
        )[0]
        return prediction[:, :LATENT_CHANNELS].transpose(1, 2)


def build_scheduler() -> Any:
    """DDIM that predicts the clean latent, with zero terminal SNR and more noise than usual halfway."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
