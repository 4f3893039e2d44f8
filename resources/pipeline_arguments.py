"""What a diffusers pipeline is called with: the profile's arguments, held against the pipeline's own call.

Belongs here: which arguments a pipeline takes, which must be set, and which values its model can work with. Does not
belong here: calling it (diffusers_generator.py), or how fast it runs (pipeline_options.py).
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resources.outcome import Unavailable

Scalar = int | float | str | bool

DEFAULT = "default"
"""Stands for what the pipeline itself chooses. Said by the user, as a pipeline's default is seldom what fits."""

FRAMES = ("num_frames", "frames", "video_length")
SIZE = ("height", "width")
STEPS = "num_inference_steps"
GUIDANCE = "guidance_scale"

# What the platform gives the call itself, and where that comes from.
_GIVEN = {
    "prompt": "comes from the rows",
    "negative_prompt": "stands beside arguments, as negative_prompt",
    "generator": "is made from each row's seed",
    "num_videos_per_prompt": "is 1; a target's seeds_per_prompt says how many videos a prompt has",
    "output_type": "is set by the platform",
    "return_dict": "is set by the platform",
}
_ENDINGS_OF_TENSORS = ("_embeds", "_mask", "_embeds_2", "_mask_2", "latents")
# Pipelines tell their compression of time and space under different names.
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")


@dataclass(frozen=True)
class Call:
    """The arguments of a call that are the same for every batch, and what its clips must then look like."""

    arguments: Mapping[str, Any]
    frames: int | None  # None: left to the pipeline
    height: int | None
    width: int | None


def check_names(pipeline_class: type, arguments: Mapping[str, Scalar], negative_prompt: str | None) -> None:
    """Raise Unavailable unless the pipeline takes every argument and every argument that it needs is there.

    Looks at the class only, so that a wrong profile is found before any weights are loaded.
    """
    name = pipeline_class.__name__
    parameters = _parameters(pipeline_class)
    frames = next((key for key in FRAMES if key in parameters), None)
    if frames is None or not {"prompt", "generator", "output_type"} <= set(parameters):
        raise Unavailable(f"{name} does not make videos from texts: name a text-to-video pipeline as the model")
    if negative_prompt is not None and "negative_prompt" not in parameters:
        raise Unavailable(f"{name} takes no negative_prompt: remove it from the target's video_generator")
    taken = _settable(pipeline_class)
    for key in arguments:
        if key in _GIVEN:
            raise Unavailable(f"video_generator.arguments.{key} cannot be set: it {_GIVEN[key]}")
        if key not in taken:
            raise Unavailable(
                f"{name} takes no argument {key}: remove it from video_generator.arguments; it takes "
                f"{', '.join(sorted(taken))}"
            )
    needed = [frames, *(key for key in (*SIZE, STEPS, GUIDANCE) if key in taken)]
    missing = [_with_default(key, parameters) for key in needed if key not in arguments]
    if missing:
        raise Unavailable(
            f"{name} needs {', '.join(missing)} in video_generator.arguments: set what the model was made for, or "
            f"`{DEFAULT}` for what the pipeline chooses"
        )


def call_of(pipeline: Any, arguments: Mapping[str, Scalar], negative_prompt: str | None) -> Call:
    """The call for a loaded pipeline. Raises Unavailable for values that its model cannot work with.

    A guidance scale that the call does not take goes to the pipeline's guider object.
    """
    chosen = {key: value for key, value in arguments.items() if value != DEFAULT}
    for key in (*FRAMES, *SIZE, STEPS):
        if key in chosen and (type(chosen[key]) is not int or int(chosen[key]) < 1):
            raise Unavailable(f"video_generator.arguments.{key} must be a whole number above zero")
    if GUIDANCE in chosen and GUIDANCE not in _parameters(type(pipeline)):
        _guide(pipeline, chosen.pop(GUIDANCE))
    frames = next((int(chosen[key]) for key in FRAMES if key in chosen), None)
    height, width = (int(chosen[key]) if key in chosen else None for key in SIZE)
    _check_frames(pipeline, frames)
    _check_negative_prompt(pipeline, chosen, negative_prompt)
    if not _sizes_are_fitted(pipeline, chosen):
        _check_size(pipeline, {"height": height, "width": width})
        _check_by_pipeline(pipeline, chosen, negative_prompt)
    return Call(chosen, frames, height, width)


def _parameters(pipeline_class: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a pipeline's call by name."""
    parameters = dict(inspect.signature(pipeline_class.__call__).parameters)
    parameters.pop("self", None)
    return parameters


def _settable(pipeline_class: Any) -> set[str]:
    """The arguments that a profile may set: those that are numbers, words or switches."""
    settable = {
        key
        for key, parameter in _parameters(pipeline_class).items()
        if key not in _GIVEN and not key.endswith(_ENDINGS_OF_TENSORS) and _is_scalar(parameter)
    }
    if "guider" in inspect.signature(pipeline_class.__init__).parameters:
        settable.add(GUIDANCE)
    return settable


def _is_scalar(parameter: inspect.Parameter) -> bool:
    if isinstance(parameter.default, bool | int | float | str):
        return True
    annotation = str(parameter.annotation)
    if any(word in annotation for word in ("list", "List", "dict", "Dict", "Callable", "Tensor", "Generator")):
        return False
    return any(word in annotation for word in ("int", "float", "str", "bool"))


def _with_default(key: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    default = parameters[key].default if key in parameters else None
    return f"{key} (the pipeline would take {default})" if default is not None else key


def _guide(pipeline: Any, scale: Scalar) -> None:
    """Set the scale of the guider object that some pipelines have instead of an argument."""
    guider = pipeline.guider
    if GUIDANCE not in guider.config:
        raise Unavailable(
            f"the guider {type(guider).__name__} of {type(pipeline).__name__} has no {GUIDANCE}: set it to `{DEFAULT}`"
        )
    pipeline.guider = guider.new(**{GUIDANCE: scale})


def _check_frames(pipeline: Any, frames: int | None) -> None:
    """A model that compresses time makes certain counts of frames only; pipelines round or go wrong over others."""
    every = next((int(getattr(pipeline, name)) for name in _TEMPORAL if hasattr(pipeline, name)), 1)
    if type(pipeline).__name__.startswith("CogVideoX") and every > 1:
        # Its autoencoder decodes latent frames in pairs after a first one, and 1.5 is made for pairs of those.
        every *= 2 * (pipeline.transformer.config.patch_size_t or 1)
    if frames is None or (frames - 1) % every == 0:
        return
    below = (frames - 1) // every * every + 1
    raise Unavailable(
        f"{type(pipeline).__name__} makes {every}n + 1 frames, not {frames}: set video_generator.arguments to "
        f"{below} or {below + every}"
    )


def _check_negative_prompt(pipeline: Any, arguments: Mapping[str, Any], negative_prompt: str | None) -> None:
    """Models whose guidance is distilled into them heed a negative prompt only at the price of a second pass."""
    true_guidance = _parameters(type(pipeline)).get("true_cfg_scale")
    if negative_prompt is None or true_guidance is None:
        return
    if float(arguments.get("true_cfg_scale", true_guidance.default)) <= 1:
        raise Unavailable(
            f"{type(pipeline).__name__} heeds a negative_prompt only with true_cfg_scale above 1: set it in "
            "video_generator.arguments, or remove the negative_prompt"
        )


def _sizes_are_fitted(pipeline: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the pipeline itself renders in a size that it knows and cuts the clips to the size asked for."""
    binning = _parameters(type(pipeline)).get("use_resolution_binning")
    return binning is not None and bool(arguments.get("use_resolution_binning", binning.default))


def _check_size(pipeline: Any, size: Mapping[str, int | None]) -> None:
    spatial = next((int(getattr(pipeline, name)) for name in _SPATIAL if hasattr(pipeline, name)), 1)
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "transformer_2", None)
    patch = denoiser.config.get("patch_size", 1) if denoiser is not None else 1
    every = spatial * int(patch if isinstance(patch, int) else patch[-1])
    for key, pixels in size.items():
        if pixels is None or pixels % every == 0:
            continue
        below = max(pixels // every * every, every)
        raise Unavailable(
            f"{type(pipeline).__name__}: {key} must be a multiple of {every}, not {pixels}: set "
            f"video_generator.arguments.{key} to {below} or {below + every}"
        )


def _check_by_pipeline(pipeline: Any, arguments: Mapping[str, Any], negative_prompt: str | None) -> None:
    """Let the pipeline look at the call before the first batch does, where it has a method for that."""
    if not hasattr(pipeline, "check_inputs"):
        return
    defaults = {key: parameter.default for key, parameter in _parameters(type(pipeline)).items()}
    call = {**defaults, **arguments, "prompt": ["x"], "negative_prompt": negative_prompt and [negative_prompt]}
    wanted = inspect.signature(pipeline.check_inputs).parameters
    unknown = any(key not in call and parameter.default is parameter.empty for key, parameter in wanted.items())
    if unknown or any(call.get(key) is None for key in SIZE):
        return  # it asks for what only its call can know
    try:
        pipeline.check_inputs(**{key: call[key] for key in wanted if key in call})
    except (ValueError, TypeError) as error:
        raise Unavailable(
            f"{type(pipeline).__name__} does not take these video_generator.arguments: {str(error).splitlines()[0]}"
        ) from error
