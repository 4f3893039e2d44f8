"""Every supported text-to-video pipeline, so small that it renders within a test: its own classes, random weights.

Each is saved with `save_pretrained`, so that tests load it by the path that a real checkpoint takes. Texts are cut
into characters by tokenizers that are made here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

VOCABULARY = 512
TEXT_WIDTH = 16
SIDE = 32  # pixels

Arguments = dict[str, int | float | str | bool]


@dataclass(frozen=True)
class TinyPipeline:
    """How one is built, and the arguments that its clips are rendered with."""

    build: Callable[[], Any]
    pipeline_class: str
    arguments: Arguments
    frames: int
    frames_every: int = 4  # it makes so many times n frames, and one
    frames_name: str = "num_frames"


def save_tiny_pipeline(name: str, folder: Path) -> Path:
    """A checkpoint of the pipeline of that name, as `from_pretrained` reads it."""
    import torch

    torch.manual_seed(0)
    pipeline = TINY_PIPELINES[name].build()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            _awaken(component)
    pipeline.save_pretrained(folder)
    return folder


def _awaken(module: Any) -> None:
    """Give weights that start at zero something to do, so that prompt, seed and options show in the pixels."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=max(0.02, parameter[0].numel() ** -0.5))


# ---- texts -----------------------------------------------------------------------------------------------------------


@cache
def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of bytes, behind the special tokens of every tokenizer here."""
    from tokenizers import pre_tokenizers

    special = ["<pad>", "</s>", "<unk>", "<s>", "<|endoftext|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: index for index, token in enumerate([*special, *letters, *(f"{x}</w>" for x in letters)])}, []


def _t5_tokenizer() -> Any:
    import string

    from transformers import T5Tokenizer

    letters = "▁" + string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, unk_id=2)


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _byte_pairs()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", bos_token="<s>")


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocabulary, merges = _byte_pairs()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _qwen_tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    vocabulary, merges = _byte_pairs()
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    # The real template puts a fixed count of tokens before the prompt, and the pipeline cuts just those off.
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}"
        "{% else %}{{ message['content'][:108] }}{% endif %}{% endfor %}"
    )
    return tokenizer


def _t5_settings() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "d_model": TEXT_WIDTH,
        "d_kv": 8,
        "num_heads": 2,
        "d_ff": 32,
        "num_layers": 1,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    }


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_t5_settings())).eval()


def _umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**_t5_settings())).eval()


def _decoder_settings() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 3,
        "eos_token_id": 1,
    }


# ---- pipelines -------------------------------------------------------------------------------------------------------


def _flow_scheduler(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)


def _cogvideox_with(scheduler: Any, *, latent_side: int = 8, **transformer: Any) -> Any:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

    return CogVideoXPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_t5(),
        vae=AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            sample_height=SIDE,
            sample_width=SIDE,
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=TEXT_WIDTH,
            num_layers=2,
            sample_width=SIDE // latent_side,
            sample_height=SIDE // latent_side,
            sample_frames=9,
            max_text_seq_length=64,
            **transformer,
        ),
        scheduler=scheduler,
    )


def _cogvideox_2b() -> Any:
    from diffusers import CogVideoXDDIMScheduler

    return _cogvideox_with(
        CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0, clip_sample=False
        )
    )


def _cogvideox_5b() -> Any:
    from diffusers import CogVideoXDPMScheduler

    return _cogvideox_with(
        CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        use_rotary_positional_embeddings=True,
    )


def _cogvideox_1_5() -> Any:
    from diffusers import CogVideoXDPMScheduler

    return _cogvideox_with(
        CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        use_rotary_positional_embeddings=True,
        patch_size_t=2,
        patch_bias=False,
    )


def _wan_transformer() -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def _wan_autoencoder() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 1.5, 0.5]
    )


def _wan_2_1() -> Any:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    return WanPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_umt5(),
        vae=_wan_autoencoder(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=_wan_transformer(),
    )


def _wan_2_2() -> Any:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    return WanPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_umt5(),
        vae=_wan_autoencoder(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(),
        boundary_ratio=0.875,
    )


def _skyreels_v2() -> Any:
    from diffusers import SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

    return SkyReelsV2Pipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_umt5(),
        transformer=SkyReelsV2Transformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=TEXT_WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        vae=_wan_autoencoder(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
    )


def _hunyuan_video() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    return HunyuanVideoPipeline(
        text_encoder=LlamaModel(LlamaConfig(**_decoder_settings())).eval(),
        tokenizer=_byte_tokenizer(),
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            text_embed_dim=TEXT_WIDTH,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        ),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            mid_block_add_attention=True,
        ),
        scheduler=_flow_scheduler(shift=7.0),
        text_encoder_2=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=1024,
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                projection_dim=8,
                bos_token_id=5,
                eos_token_id=4,
                pad_token_id=4,
            )
        ).eval(),
        tokenizer_2=_clip_tokenizer(),
    )


def _hunyuan_video_1_5() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**_decoder_settings(), rope_parameters=rope)).eval(),
        tokenizer=_qwen_tokenizer(),
        transformer=HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=1,
            attention_head_dim=8,
            num_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=TEXT_WIDTH,
            text_embed_2_dim=TEXT_WIDTH,
            image_embed_dim=8,
            rope_axes_dim=(2, 2, 4),
            target_size=SIDE,
            task_type="t2v",
        ),
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, scaling_factor=1.03682
        ),
        scheduler=_flow_scheduler(shift=7.0),
        text_encoder_2=_t5(),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=1.5),
    )


def _ltx() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    return LTXPipeline(
        scheduler=_flow_scheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=TEXT_WIDTH,
        ),
    )


def _ltx_2() -> Any:
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    text = Gemma3TextConfig(**{**_decoder_settings(), "head_dim": 8})
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    gemma = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    )
    return LTX2Pipeline(
        scheduler=_flow_scheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 16, 32),  # each twice as wide as the one that it is upsampled to
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            decoder_spatial_padding_mode="zeros",  # the usual one, reflection, needs more than one latent pixel
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        ),
        audio_vae=AutoencoderKLLTX2Audio(
            base_channels=8, ch_mult=(1, 2, 4), num_res_blocks=1, latent_channels=2, mel_bins=16
        ),
        text_encoder=gemma.eval(),
        tokenizer=_byte_tokenizer(),
        connectors=LTX2TextConnectors(
            caption_channels=TEXT_WIDTH,
            text_proj_in_factor=3,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=8,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
            rope_double_precision=False,
        ),
        transformer=LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=8,
            audio_out_channels=8,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=2,
            caption_channels=TEXT_WIDTH,
            rope_double_precision=False,
        ),
        vocoder=LTX2Vocoder(
            in_channels=32,
            hidden_channels=16,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
    )


def _mochi() -> Any:
    from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

    return MochiPipeline(
        scheduler=_flow_scheduler(invert_sigmas=True),
        vae=AutoencoderKLMochi(
            encoder_block_out_channels=(32, 32, 32, 32),  # its normalisation makes 32 groups
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        transformer=MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=TEXT_WIDTH,
            time_embed_dim=4,
            max_sequence_length=64,
        ),
    )


def _sana_video() -> Any:
    from diffusers import DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel
    from transformers import Gemma2Config, Gemma2Model

    return SanaVideoPipeline(
        tokenizer=_byte_tokenizer(),
        text_encoder=Gemma2Model(Gemma2Config(**{**_decoder_settings(), "head_dim": 8})).eval(),
        vae=_wan_autoencoder(),
        transformer=SanaVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=TEXT_WIDTH,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0, algorithm_type="dpmsolver++"
        ),
    )


def _size(side: int = SIDE, steps: int = 3) -> Arguments:
    return {"height": side, "width": side, "num_inference_steps": steps}


TINY_PIPELINES: dict[str, TinyPipeline] = {
    "cogvideox-2b": TinyPipeline(
        _cogvideox_2b,
        "CogVideoXPipeline",
        {"num_frames": 9, **_size(), "guidance_scale": 6.0, "max_sequence_length": 64},
        frames=9,
        frames_every=8,
    ),
    "cogvideox-5b": TinyPipeline(
        _cogvideox_5b,
        "CogVideoXPipeline",
        {"num_frames": 9, **_size(), "guidance_scale": 6.0, "use_dynamic_cfg": True, "max_sequence_length": 64},
        frames=9,
        frames_every=8,
    ),
    "cogvideox-1.5": TinyPipeline(
        _cogvideox_1_5,
        "CogVideoXPipeline",
        {"num_frames": 17, **_size(), "guidance_scale": 6.0, "max_sequence_length": 64},
        frames=17,
        frames_every=16,
    ),
    "wan-2.1": TinyPipeline(
        _wan_2_1,
        "WanPipeline",
        {"num_frames": 5, **_size(), "guidance_scale": 5.0, "max_sequence_length": 64},
        frames=5,
    ),
    "wan-2.2": TinyPipeline(
        _wan_2_2,
        "WanPipeline",
        {
            "num_frames": 5,
            **_size(),
            "guidance_scale": 4.0,
            "guidance_scale_2": 3.0,
            "max_sequence_length": 64,
        },
        frames=5,
    ),
    "hunyuan-video": TinyPipeline(
        _hunyuan_video,
        "HunyuanVideoPipeline",
        # Its template alone is some six hundred characters here.
        {"num_frames": 5, **_size(), "guidance_scale": 6.0, "true_cfg_scale": 2.0, "max_sequence_length": 800},
        frames=5,
    ),
    "hunyuan-video-1.5": TinyPipeline(
        # Its texts are padded to two thousand tokens, which makes it slow however small it is.
        _hunyuan_video_1_5,
        "HunyuanVideo15Pipeline",
        {"num_frames": 5, **_size(steps=2), "guidance_scale": 6.0},
        frames=5,
    ),
    "ltx": TinyPipeline(
        _ltx,
        "LTXPipeline",
        {"num_frames": 9, **_size(), "guidance_scale": 3.0, "frame_rate": 25, "max_sequence_length": 64},
        frames=9,
        frames_every=8,
    ),
    "ltx-2": TinyPipeline(
        _ltx_2,
        "LTX2Pipeline",
        {
            "num_frames": 9,
            **_size(),
            "guidance_scale": 3.0,
            "stg_scale": 0.0,
            "audio_stg_scale": 0.0,
            "max_sequence_length": 64,
        },
        frames=9,
        frames_every=8,
    ),
    "mochi": TinyPipeline(
        _mochi,
        "MochiPipeline",
        {"num_frames": 7, **_size(), "guidance_scale": 4.5, "max_sequence_length": 64},
        frames=7,
        frames_every=6,
    ),
    "skyreels-v2": TinyPipeline(
        _skyreels_v2,
        "SkyReelsV2Pipeline",
        {"num_frames": 5, **_size(), "guidance_scale": 6.0, "max_sequence_length": 64},
        frames=5,
    ),
    "sana-video": TinyPipeline(
        _sana_video,
        "SanaVideoPipeline",
        {
            "frames": 5,
            **_size(),
            "guidance_scale": 6.0,
            "use_resolution_binning": False,
            "max_sequence_length": 64,
        },
        frames=5,
        frames_name="frames",
    ),
}
