"""What makes a diffusers pipeline faster or smaller: offloading, tiling, compiling, other attention, step caches.

Belongs here: switching each on, saying in one line where it does not apply, and which of them show in the pixels.
Does not belong here: loading or calling the pipeline (diffusers_generator.py).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resources.backend_settings import DiffusersSettings
from resources.language_model import Identity
from resources.outcome import Unavailable

# Step caches that start and then break in the middle of a clip, tried with each of these pipelines.
_NO_CACHE = {
    "fastercache": {
        "WanPipeline": "it renders with and without the prompt in two passes",
        "SkyReelsV2Pipeline": "it renders with and without the prompt in two passes",
        "LTXPipeline": "its latents are packed",
        "LTX2Pipeline": "its latents are packed",
    },
    "pab": {"LTX2Pipeline": "its passes differ in their number of rows"},
}
_PASSES_APART = ("HunyuanVideoPipeline", "HunyuanVideo15Pipeline")
# Diffusers' mask for this autoencoder's attention fits one clip only.
_DECODES_ONE_BY_ONE = ("AutoencoderKLHunyuanVideo15",)


def identity_of_options(settings: DiffusersSettings) -> Identity:
    """The options that show in the pixels, with their values; none where all are off.

    Measured on small models of every pipeline: caches and float8 weights change clips beyond recognition, tiles are
    blended at their seams, and other kernels (compiled ones, attention backends) round otherwise, which is one level
    of 255 at most in float32 but dozens of them in bfloat16. Slicing and offloading compute the same: in float32, they
    move what comes before the rounding to 255 levels by a hundred-thousandth.
    """
    identity: Identity = {}
    if settings.cache != "none":
        identity["cache"] = settings.cache
        for name, value in sorted(settings.cache_arguments.items()):
            identity[f"cache {name}"] = value if isinstance(value, int | float | str) else str(value)
    for name in ("layerwise_casting", "compile", "vae_tiling"):
        if getattr(settings, name):
            identity[name] = True
    if settings.attention_backend is not None:
        identity["attention_backend"] = settings.attention_backend
    return identity


def options_in_force(settings: DiffusersSettings) -> list[str]:
    """The options that a pipeline may turn out not to bear, as they stand in the profile."""
    named: Mapping[str, object] = {
        "cache": settings.cache if settings.cache != "none" else None,
        "offload": settings.offload if settings.offload != "none" else None,
        "attention_backend": settings.attention_backend,
        "compile": settings.compile or None,
        "layerwise_casting": settings.layerwise_casting or None,
        "vae_tiling": settings.vae_tiling or None,
    }
    return [f"{name} = {str(value).lower()}" for name, value in named.items() if value is not None]


def rows_at_once(settings: DiffusersSettings) -> int:
    """Clips in a batch. One where the first block decides for the whole batch what is computed again."""
    return 1 if settings.cache == "first_block" else settings.batch_size


def check_options(settings: DiffusersSettings, device: str) -> None:
    """Raise Unavailable for options that do not go with each other or with the device; nothing is loaded yet."""
    if settings.offload != "none" and device == "cpu":
        raise Unavailable(
            f"video_generator.offload = {settings.offload} moves weights to a GPU and back, and there is none here: "
            "set it to none"
        )
    if settings.cache_arguments and settings.cache == "none":
        raise Unavailable("video_generator.cache_arguments are set but cache is none: name a cache or remove them")


def switch_on(pipeline: Any, settings: DiffusersSettings, device: str) -> None:
    """Put the pipeline where it runs, with every option of the settings. Raises Unavailable for one that it lacks."""
    _slice_and_tile(pipeline, settings)
    if settings.attention_backend is not None:
        _attend_by(pipeline, settings.attention_backend)
    if settings.layerwise_casting:
        _cast_layerwise(pipeline, settings)
    if settings.cache != "none":
        _cache_steps(pipeline, settings)
    _place(pipeline, settings, device)
    if settings.compile:
        _compile(pipeline)


def _denoisers(pipeline: Any) -> list[Any]:
    """The transformers that take the steps: one, or two for Wan 2.2."""
    found = [getattr(pipeline, name, None) for name in ("transformer", "transformer_2")]
    return [denoiser for denoiser in found if denoiser is not None]


def _slice_and_tile(pipeline: Any, settings: DiffusersSettings) -> None:
    wanted = {"tiling": settings.vae_tiling, "slicing": settings.vae_slicing}
    if type(pipeline.vae).__name__ in _DECODES_ONE_BY_ONE:
        wanted["slicing"] = True
    for what in (name for name, on in wanted.items() if on):
        try:
            getattr(pipeline.vae, f"enable_{what}")()
        except (AttributeError, NotImplementedError):
            raise _inapplicable(pipeline, f"vae_{what}", "its autoencoder cannot") from None


def _attend_by(pipeline: Any, backend: str) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    for denoiser in _denoisers(pipeline):
        processors = [getattr(module, "processor", None) for module in denoiser.modules()]
        if not any(hasattr(processor, "_attention_backend") for processor in processors):
            raise _inapplicable(pipeline, f"attention_backend = {backend}", "its attention is of the older kind")
        if backend.lower() not in {name.value for name in AttentionBackendName}:
            public = ", ".join(name.value for name in AttentionBackendName if not name.value.startswith("_"))
            raise Unavailable(f"video_generator.attention_backend = {backend}: must be one of {public}")
        try:
            # Diffusers would also make it the backend of every other model in this process, for good.
            with attention_backend("native"):
                denoiser.set_attention_backend(backend)
        except (ValueError, RuntimeError, ImportError) as error:
            raise Unavailable(
                f"video_generator.attention_backend = {backend} does not work here: {_first_line(error)}"
            ) from error


def _cast_layerwise(pipeline: Any, settings: DiffusersSettings) -> None:
    import torch

    for denoiser in _denoisers(pipeline):
        denoiser.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=getattr(torch, settings.dtype)
        )


def _cache_steps(pipeline: Any, settings: DiffusersSettings) -> None:
    name = type(pipeline).__name__
    option = f"cache = {settings.cache}"
    if name in _NO_CACHE.get(settings.cache, {}):
        raise _inapplicable(pipeline, option, _NO_CACHE[settings.cache][name])
    for denoiser in _denoisers(pipeline):
        if not hasattr(denoiser, "enable_cache"):
            raise _inapplicable(pipeline, option, "it keeps nothing between steps")
        before = _count_of_hooks(denoiser)
        try:
            denoiser.enable_cache(_cache_config(pipeline, settings))
        except (ValueError, IndexError) as error:
            raise _inapplicable(pipeline, option, _first_line(error)) from error
        if _count_of_hooks(denoiser) == before:
            raise _inapplicable(
                pipeline, option, "it finds no layers there by their names; cache_arguments may name others"
            )


def _count_of_hooks(denoiser: Any) -> int:
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    return sum(len(registry.hooks) for registry in registries if registry is not None)


def _cache_config(pipeline: Any, settings: DiffusersSettings) -> Any:
    """The configuration object of the cache: the user's values over what follows from the pipeline."""
    import diffusers

    classes = {
        "pab": diffusers.PyramidAttentionBroadcastConfig,
        "fastercache": diffusers.FasterCacheConfig,
        "first_block": diffusers.FirstBlockCacheConfig,
        "magcache": diffusers.MagCacheConfig,
        "taylorseer": diffusers.TaylorSeerCacheConfig,
    }
    config_class = classes[settings.cache]
    values: dict[str, Any] = _values_of(pipeline, settings) | {
        key: _value_of(value) for key, value in settings.cache_arguments.items()
    }
    known = [field.name for field in dataclasses.fields(config_class)]
    for key in values:
        if key not in known:
            public = ", ".join(name for name in known if not name.startswith("_") and not name.endswith("_callback"))
            raise Unavailable(f"video_generator.cache_arguments.{key}: {settings.cache} takes {public}")
    return config_class(**values)


def _value_of(value: object) -> object:
    """A value of the profile as diffusers takes it: sequences as lists, and torch's dtypes themselves."""
    import torch

    if isinstance(value, tuple):
        return list(value)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes.get(value, value) if isinstance(value, str) else value


def _values_of(pipeline: Any, settings: DiffusersSettings) -> dict[str, Any]:
    """What a cache needs to know of its pipeline."""
    name = type(pipeline).__name__

    def timestep() -> Any:
        return pipeline._current_timestep  # the one that every pipeline has; some lack the public name for it

    if settings.cache == "pab":
        return {"current_timestep_callback": timestep}
    if settings.cache == "fastercache":
        return {
            "current_timestep_callback": timestep,
            "tensor_format": "BFCHW" if name.startswith("CogVideoX") else "BCFHW",
            "is_guidance_distilled": name in _PASSES_APART,
            "attention_weight_callback": lambda _: 0.5,  # diffusers' own default, which it warns of
        }
    if settings.cache == "magcache":
        return {"num_inference_steps": settings.arguments.get("num_inference_steps", 28)}
    return {}


def _place(pipeline: Any, settings: DiffusersSettings, device: str) -> None:
    import torch

    if settings.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif settings.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif settings.offload == "group":
        # Layer by layer; on CUDA the next layer is fetched while this one computes.
        pipeline.enable_group_offload(
            onload_device=torch.device(device), offload_type="leaf_level", use_stream=device.startswith("cuda")
        )
    else:
        pipeline.to(device)


def _compile(pipeline: Any) -> None:
    for denoiser in _denoisers(pipeline):
        if getattr(denoiser, "_repeated_blocks", None):
            denoiser.compile_repeated_blocks()  # far quicker to compile, and as fast afterwards
        else:
            denoiser.compile()


def _inapplicable(pipeline: Any, option: str, why: str) -> Unavailable:
    return Unavailable(f"video_generator.{option} does not apply to {type(pipeline).__name__}: {why}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
