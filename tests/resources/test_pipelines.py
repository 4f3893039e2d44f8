"""Every supported pipeline, rendered through the adapter from a tiny checkpoint of its own class."""

import functools
import gc
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from resources.backend_settings import DiffusersSettings
from resources.diffusers_generator import DiffusersVideoGenerator
from resources.outcome import Failed, Unavailable
from resources.video_generator import Clip
from tests.resources.tiny_pipelines import SIDE, TINY_PIPELINES, save_tiny_pipeline
from tests.resources.video_generator_contract import VideoGeneratorContract, clip_of

PROMPTS = ["a red cat runs", "two blue dogs", "a red cat runs"]
SEEDS = [1, 2, 3]
EVERY = pytest.mark.parametrize("name", TINY_PIPELINES)
QUICK = "wan-2.1"  # where any pipeline will do

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The folder of a tiny checkpoint, made when it is first asked for."""
    root = tmp_path_factory.mktemp("pipelines")
    return functools.cache(lambda name: save_tiny_pipeline(name, root / name))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for more, and the order of sums stays the same."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments that reach any pipeline, call by call."""
    seen: list[dict[str, Any]] = []
    for class_name in {tiny.pipeline_class for tiny in TINY_PIPELINES.values()}:
        pipeline_class = getattr(diffusers, class_name)
        monkeypatch.setattr(pipeline_class, "__call__", _recording(pipeline_class.__call__, seen))
    return seen


def _recording(original: Callable[..., Any], seen: list[dict[str, Any]]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, **arguments: Any) -> Any:
        seen.append(arguments)
        return original(self, **arguments)

    return call


def generator_for(name: str, folder: Path, **changes: Any) -> DiffusersVideoGenerator:
    values: dict[str, Any] = {"model": str(folder), "device": "cpu", "arguments": TINY_PIPELINES[name].arguments}
    return DiffusersVideoGenerator(DiffusersSettings(**{**values, **changes}))


def rendered(generator: DiffusersVideoGenerator, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS) -> list[Clip]:
    return [clip_of(outcome) for outcome in generator.generate(prompts, seeds)]


def difference(one: Clip, other: Clip) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def refusal(name: str, folder: Path, **changes: Any) -> str:
    """The one line that settings are refused with."""
    with pytest.raises(Unavailable) as caught:
        generator_for(name, folder, **changes).generate(PROMPTS[:1], SEEDS[:1])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_arguments(name: str, **changes: Any) -> dict[str, Any]:
    return {"arguments": {**TINY_PIPELINES[name].arguments, **changes}}


# ---- every pipeline --------------------------------------------------------------------------------------------------


@EVERY
def test_it_renders_and_gets_what_the_profile_says(
    name: str, checkpoint: Checkpoint, calls: list[dict[str, Any]]
) -> None:
    tiny = TINY_PIPELINES[name]
    generator = generator_for(name, checkpoint(name), batch_size=3, negative_prompt="ugly")
    clips = rendered(generator)
    assert [clip.shape for clip in clips] == [(tiny.frames, SIDE, SIDE, 3)] * 3
    assert min(difference(clips[0], clip) for clip in clips[1:]) > 3
    (call,) = calls
    assert call.pop("prompt") == [PROMPTS[0], PROMPTS[2], PROMPTS[1]]  # rows of a prompt together
    assert [g.initial_seed() for g in call.pop("generator")] == [SEEDS[0], SEEDS[2], SEEDS[1]]
    assert call.pop("negative_prompt") == ["ugly"] * 3
    assert call.pop("output_type") == "np"
    expected = dict(tiny.arguments)
    if tiny.pipeline_class == "HunyuanVideo15Pipeline":
        assert generator._load().pipeline.guider.guidance_scale == expected.pop("guidance_scale")
    assert call == expected
    assert {tiny.frames_name, "height", "width", "num_inference_steps"} <= set(call)


@EVERY
def test_texts_are_encoded_once_and_pixels_are_those_of_plain_calls(name: str, checkpoint: Checkpoint) -> None:
    import torch

    generator = generator_for(name, checkpoint(name), batch_size=2, negative_prompt="ugly")
    pipeline = generator._load().pipeline
    encoded: Counter[str] = Counter()
    pipeline.text_encoder.register_forward_hook(lambda *_: encoded.update(["texts"]))
    clips = rendered(generator)
    assert encoded["texts"] == 3  # two prompts and the negative one

    plain = getattr(diffusers, TINY_PIPELINES[name].pipeline_class).from_pretrained(checkpoint(name))
    plain.set_progress_bar_config(disable=True)
    arguments = dict(TINY_PIPELINES[name].arguments)
    if "guider" in plain.components:
        plain.guider = plain.guider.new(guidance_scale=arguments.pop("guidance_scale"))
    alone = rendered(generator_for(name, checkpoint(name), negative_prompt="ugly"))
    for row in (0, 1):
        frames = plain(
            prompt=[PROMPTS[row]],
            negative_prompt=["ugly"],
            generator=[torch.Generator("cpu").manual_seed(SEEDS[row])],
            output_type="np",
            **arguments,
        ).frames[0]
        assert np.array_equal(alone[row], np.rint(frames * 255).astype(np.uint8))
        assert difference(clips[row], alone[row]) <= 1  # sums of a batch round otherwise


@EVERY
def test_frames_that_the_model_cannot_make_are_refused_with_those_that_it_can(
    name: str, checkpoint: Checkpoint, calls: list[dict[str, Any]]
) -> None:
    tiny = TINY_PIPELINES[name]
    every = tiny.frames_every
    said = refusal(name, checkpoint(name), **with_arguments(name, **{tiny.frames_name: every * 3 + 2}))
    assert f"{every}n + 1 frames, not {every * 3 + 2}: set " in said
    assert f"to {every * 3 + 1} or {every * 4 + 1}" in said
    assert calls == []


@EVERY
def test_a_size_that_the_model_cannot_make_is_refused(
    name: str, checkpoint: Checkpoint, calls: list[dict[str, Any]]
) -> None:
    said = refusal(name, checkpoint(name), **with_arguments(name, width=SIDE + 4))
    assert "width" in said and "36" in said and TINY_PIPELINES[name].pipeline_class in said
    assert calls == []


@EVERY
def test_the_negative_prompt_does_something(name: str, checkpoint: Checkpoint) -> None:
    ugly, bad = (
        rendered(generator_for(name, checkpoint(name), negative_prompt=negative), PROMPTS[:1], SEEDS[:1])[0]
        for negative in ("ugly", "a blurred picture of nothing")
    )
    assert difference(ugly, bad) > 0


def test_no_progress_bars_are_drawn(checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(QUICK)
    capfd.readouterr()  # those of making the checkpoint
    rendered(generator_for(QUICK, folder))
    assert "%|" not in "".join(capfd.readouterr())
    from diffusers.utils import logging

    assert logging.is_progress_bar_enabled()  # for others in this process


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_an_argument_that_the_pipeline_does_not_take_is_one_clear_line(checkpoint: Checkpoint) -> None:
    said = refusal("sana-video", checkpoint("sana-video"), **with_arguments("sana-video", num_frames=5))
    assert said.startswith("SanaVideoPipeline takes no argument num_frames: remove it from video_generator.arguments")
    assert "it takes clean_caption, eta, frames, guidance_scale, height," in said
    assert "embeds" not in said and "callback" not in said


def test_what_the_platform_gives_cannot_be_set(checkpoint: Checkpoint) -> None:
    for key, why in {"prompt": "comes from the rows", "num_videos_per_prompt": "seeds_per_prompt"}.items():
        said = refusal(QUICK, checkpoint(QUICK), **with_arguments(QUICK, **{key: 1}))
        assert f"arguments.{key} cannot be set" in said and why in said


def test_what_a_model_is_made_for_must_be_said(checkpoint: Checkpoint) -> None:
    said = refusal(QUICK, checkpoint(QUICK), arguments={"num_frames": 5})
    assert "WanPipeline needs height (the pipeline would take 480), width (the pipeline would take 832)" in said
    assert "num_inference_steps (the pipeline would take 50), guidance_scale (the pipeline would take 5.0)" in said
    assert "num_frames" not in said and "`default`" in said


def test_a_pipelines_default_can_be_chosen_knowingly(checkpoint: Checkpoint, calls: list[dict[str, Any]]) -> None:
    name = "cogvideox-2b"
    changes = with_arguments(name, num_frames="default", height="default", guidance_scale="default")
    generator = generator_for(name, checkpoint(name), **changes)
    (clip,) = rendered(generator, PROMPTS[:1], SEEDS[:1])
    assert clip.shape == (9, SIDE, SIDE, 3)  # as its transformer says
    assert not {"num_frames", "height", "guidance_scale"} & set(calls[0])
    assert generator.identity()["argument height"] == "default"


@pytest.mark.parametrize("value", [0, -5, 2.5, "5", True])
def test_counts_are_whole_numbers(checkpoint: Checkpoint, value: Any) -> None:
    said = refusal(QUICK, checkpoint(QUICK), **with_arguments(QUICK, num_inference_steps=value))
    assert said == "video_generator.arguments.num_inference_steps must be a whole number above zero"


def test_what_only_the_pipeline_knows_to_be_wrong_is_found_before_rendering(
    checkpoint: Checkpoint, calls: list[dict[str, Any]]
) -> None:
    said = refusal(QUICK, checkpoint(QUICK), **with_arguments(QUICK, guidance_scale_2=3.0))
    assert "WanPipeline does not take these video_generator.arguments: `guidance_scale_2` is only supported" in said
    assert calls == []


def test_a_negative_prompt_that_would_not_be_heeded_is_refused(checkpoint: Checkpoint) -> None:
    changes = with_arguments("hunyuan-video", true_cfg_scale=1.0)
    said = refusal("hunyuan-video", checkpoint("hunyuan-video"), negative_prompt="ugly", **changes)
    assert "HunyuanVideoPipeline heeds a negative_prompt only with true_cfg_scale above 1" in said


def test_the_scale_of_a_guider_object_shows_in_the_pixels(checkpoint: Checkpoint) -> None:
    name = "hunyuan-video-1.5"
    low, high = (
        rendered(
            generator_for(name, checkpoint(name), **with_arguments(name, guidance_scale=scale)), PROMPTS[:1], SEEDS[:1]
        )[0]
        for scale in (2.0, 8.0)
    )
    assert difference(low, high) > 0


def test_a_wrong_profile_is_found_before_weights_are_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text((checkpoint(QUICK) / "model_index.json").read_text())
    assert "takes no argument speed" in refusal(QUICK, tmp_path, **with_arguments(QUICK, speed=2))
    assert "cannot be loaded" in refusal(QUICK, tmp_path)


@pytest.mark.parametrize("class_name", ["StableDiffusionPipeline", "WanImageToVideoPipeline", "NoSuchPipeline", None])
def test_a_model_that_is_no_text_to_video_pipeline_is_refused(tmp_path: Path, class_name: str | None) -> None:
    (tmp_path / "model_index.json").write_text("{}" if class_name is None else f'{{"_class_name": "{class_name}"}}')
    said = refusal(QUICK, tmp_path)
    assert "cannot be loaded" in said or "does not make videos from texts" in said


# ---- options ---------------------------------------------------------------------------------------------------------

CACHES: dict[str, dict[str, Any]] = {
    "pab": {"spatial_attention_timestep_skip_range": (0, 1000)},
    "fastercache": {"unconditional_batch_skip_range": 2, "unconditional_batch_timestep_skip_range": (0, 1000)}
    | {"spatial_attention_timestep_skip_range": (0, 1000)},
    "first_block": {"threshold": 10.0},
    "magcache": {"threshold": 1.0, "mag_ratios": (1.0,) * 6, "num_inference_steps": 6},
    "taylorseer": {"cache_interval": 2, "disable_cache_before_step": 1, "taylor_factors_dtype": "float32"},
}
WITHOUT = {
    "pab": {"ltx-2", "sana-video"},
    "fastercache": {"wan-2.1", "wan-2.2", "skyreels-v2", "ltx", "ltx-2", "sana-video"},
    "first_block": {"hunyuan-video-1.5", "ltx-2", "skyreels-v2", "sana-video"},
    "magcache": {"hunyuan-video-1.5", "ltx-2", "skyreels-v2", "sana-video"},
    # Its usual names of layers are not those of most video models.
    "taylorseer": set(TINY_PIPELINES) - {"hunyuan-video", "hunyuan-video-1.5", "ltx-2"},
}


@EVERY
@pytest.mark.parametrize("cache", CACHES)
def test_a_step_cache_changes_the_pixels_or_is_refused(name: str, cache: str, checkpoint: Checkpoint) -> None:
    steps = 3 if name == "hunyuan-video-1.5" else 6
    changes = with_arguments(name, num_inference_steps=steps)
    options = {"cache": cache, "cache_arguments": CACHES[cache]}
    if name in WITHOUT[cache]:
        said = refusal(name, checkpoint(name), **changes, **options)
        assert said.startswith(
            f"video_generator.cache = {cache} does not apply to {TINY_PIPELINES[name].pipeline_class}"
        )
        return
    plain, cached = (generator_for(name, checkpoint(name), **changes, **more) for more in ({}, options))
    one, two, again = (rendered(g, PROMPTS[:1], SEEDS[:1])[0] for g in (plain, cached, cached))
    assert difference(one, two) > 1
    assert np.array_equal(two, again)  # nothing is left over from the clip before
    assert cached.identity() != plain.identity()
    assert cached.identity()["cache"] == cache


def test_the_first_block_decides_for_one_clip_at_a_time(checkpoint: Checkpoint, calls: list[dict[str, Any]]) -> None:
    generator = generator_for(QUICK, checkpoint(QUICK), batch_size=3, cache="first_block")
    rendered(generator)
    assert [len(call["prompt"]) for call in calls] == [1, 1, 1]


def test_layers_for_a_cache_can_be_named(checkpoint: Checkpoint) -> None:
    options = {**CACHES["taylorseer"], "cache_identifiers": (r"blocks\.\d+\.attn1",)}
    generator = generator_for(QUICK, checkpoint(QUICK), cache="taylorseer", cache_arguments=options)
    assert len(rendered(generator)) == 3


def test_a_cache_takes_its_own_arguments_only(checkpoint: Checkpoint) -> None:
    folder = checkpoint(QUICK)
    said = refusal(QUICK, folder, cache="first_block", cache_arguments={"treshold": 0.1})
    assert said == "video_generator.cache_arguments.treshold: first_block takes threshold"
    assert "name a cache" in refusal(QUICK, folder, cache_arguments={"threshold": 0.1})
    assert "`mag_ratios` must be provided" in refusal(QUICK, folder, cache="magcache")


@EVERY
def test_attention_backends_apply_where_attention_is_of_the_newer_kind(name: str, checkpoint: Checkpoint) -> None:
    if name.startswith(("cogvideox", "mochi")):
        said = refusal(name, checkpoint(name), attention_backend="native")
        assert "attention_backend = native does not apply to" in said
        return
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    generator = generator_for(name, checkpoint(name), attention_backend="_native_math")
    rendered(generator, PROMPTS[:1], SEEDS[:1])
    chosen = {
        module.processor._attention_backend
        for module in generator._load().pipeline.transformer.modules()
        if hasattr(getattr(module, "processor", None), "_attention_backend")
    }
    assert chosen == {"_native_math"}
    assert _AttentionBackendRegistry._active_backend == "native"  # of other models in this process
    assert generator.identity()["attention_backend"] == "_native_math"


def test_attention_backends_that_are_not_there_are_one_clear_line(checkpoint: Checkpoint) -> None:
    assert "must be one of flash, " in refusal(QUICK, checkpoint(QUICK), attention_backend="quick")
    said = refusal(QUICK, checkpoint(QUICK), attention_backend="sage")
    assert "attention_backend = sage does not work here: " in said and "sageattention" in said
    said = refusal(QUICK, checkpoint(QUICK), attention_backend="_native_cudnn")  # found out by the first clip
    assert said.startswith("WanPipeline cannot render its first clip with attention_backend = _native_cudnn in")


@EVERY
def test_float8_weights_and_slices(name: str, checkpoint: Checkpoint) -> None:
    import torch

    plain, small, sliced = (
        generator_for(name, checkpoint(name), batch_size=2, **options)
        for options in ({}, {"layerwise_casting": True}, {"vae_slicing": True})
    )
    expected, cast, cut = (rendered(g, PROMPTS[:2], SEEDS[:2]) for g in (plain, small, sliced))
    kept = {parameter.dtype for parameter in small._load().pipeline.transformer.parameters()}
    assert torch.float8_e4m3fn in kept
    assert difference(cast[0], expected[0]) > 1
    assert small.identity() == {**plain.identity(), "layerwise_casting": True}
    assert sliced._load().pipeline.vae.use_slicing
    assert max(difference(*pair) for pair in zip(cut, expected, strict=True)) <= 1
    assert sliced.identity() == plain.identity()


def test_tiles_show_at_their_seams(checkpoint: Checkpoint) -> None:
    plain, tiled = (generator_for("ltx", checkpoint("ltx"), vae_tiling=on) for on in (False, True))
    larger = {**TINY_PIPELINES["ltx"].arguments, "height": 128, "width": 128}
    for generator in (plain, tiled):
        generator.settings = generator.settings.model_copy(update={"arguments": larger})
    vae = tiled._load().pipeline.vae
    assert vae.use_tiling
    vae.tile_sample_min_height = vae.tile_sample_min_width = 64
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 32
    (one,), (two,) = (rendered(generator, PROMPTS[:1], SEEDS[:1]) for generator in (plain, tiled))
    assert difference(one, two) > 1
    assert tiled.identity() == {**plain.identity(), "vae_tiling": True}


def test_clips_of_another_size_than_asked_for_are_refused(checkpoint: Checkpoint, monkeypatch: Any) -> None:
    name = "cogvideox-2b"
    generator = generator_for(name, checkpoint(name), vae_tiling=True)
    generator._load().pipeline.vae.tile_sample_min_height = 16  # tiles overlap by shares that do not fit so few pixels
    generator._load().pipeline.vae.tile_sample_min_width = 16
    generator._load().pipeline.vae.tile_latent_min_height = 2
    generator._load().pipeline.vae.tile_latent_min_width = 2
    with pytest.raises(Unavailable, match=r"makes clips of 9x\d+x\d+ .* where 9x32x32 is set .* vae_tiling"):
        generator.generate(PROMPTS[:1], SEEDS[:1])


@pytest.mark.parametrize("offload", ["model", "sequential", "group"])
def test_offloading_needs_a_gpu(offload: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"offload = {offload} moves weights to a GPU and back, and there is none here" in refusal(
        QUICK, checkpoint(QUICK), offload=offload
    )
    method = {"model": "enable_model_cpu_offload", "sequential": "enable_sequential_cpu_offload"}
    asked: list[dict[str, Any]] = []
    for name in (method.get(offload, "enable_group_offload"), "to"):
        monkeypatch.setattr(diffusers.WanPipeline, name, lambda _, *a, n=name, **k: asked.append({"called": n, **k}))
    generator = generator_for(QUICK, checkpoint(QUICK), offload=offload, device="cuda:1")
    generator._load()
    (call,) = asked  # and it is not moved to the GPU as a whole
    assert call["called"] == method.get(offload, "enable_group_offload")
    assert str(call.get("device", call.get("onload_device"))) == "cuda:1"
    assert generator.identity() == generator_for(QUICK, checkpoint(QUICK)).identity()


@pytest.mark.parametrize(("name", "blocks"), [("wan-2.2", 4), ("mochi", 0)])
def test_blocks_are_compiled_where_the_model_names_them_else_all_of_it(
    name: str, blocks: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    generator = generator_for(name, checkpoint(name), compile=True)
    generator._load()
    assert compiled == (["WanTransformerBlock"] * blocks or ["MochiTransformer3DModel"])
    assert generator.identity()["compile"] is True


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_compiled_clips_are_the_same_but_for_rounding(checkpoint: Checkpoint) -> None:
    plain, compiled = (generator_for("ltx", checkpoint("ltx"), compile=on) for on in (False, True))
    assert max(difference(*pair) for pair in zip(rendered(plain), rendered(compiled), strict=True)) <= 1
    compiled.close()


# ---- batches ---------------------------------------------------------------------------------------------------------


class TestContract(VideoGeneratorContract):
    shape = (5, SIDE, SIDE)
    levels = 1

    @pytest.fixture
    def generator(self, checkpoint: Checkpoint) -> DiffusersVideoGenerator:  # type: ignore[override]
        return generator_for(QUICK, checkpoint(QUICK), batch_size=3)


def test_rows_with_pixels_that_are_not_finite_fail_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = diffusers.WanPipeline.__call__

    @functools.wraps(original)
    def call(self: Any, **arguments: Any) -> Any:
        output = original(self, **arguments)
        output.frames[arguments["prompt"].index("two blue dogs"), 0, 0, 0, 0] = np.nan
        return output

    monkeypatch.setattr(diffusers.WanPipeline, "__call__", call)
    generator = generator_for(QUICK, checkpoint(QUICK), batch_size=3)
    good, bad, also_good = generator.generate(PROMPTS, SEEDS)
    assert isinstance(bad, Failed) and "not finite; another dtype than float32 may help" in bad.reason
    assert clip_of(good).shape == clip_of(also_good).shape


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """A GPU whose memory suffices for so many clips at once; returns the sizes of the batches that were tried."""
    import torch

    def limit(clips: int) -> list[int]:
        tried: list[int] = []
        original = diffusers.WanPipeline.__call__

        @functools.wraps(original)
        def call(self: Any, **arguments: Any) -> Any:
            tried.append(len(arguments["prompt"]))
            if tried[-1] > clips:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return original(self, **arguments)

        monkeypatch.setattr(diffusers.WanPipeline, "__call__", call)
        return tried

    return limit


def test_batches_are_halved_until_they_fit(checkpoint: Checkpoint, memory_for: Callable[[int], list[int]]) -> None:
    prompts, seeds = [f"prompt {i}" for i in range(8)], list(range(8))
    expected = rendered(generator_for(QUICK, checkpoint(QUICK), batch_size=8), prompts, seeds)
    tried = memory_for(2)
    generator = generator_for(QUICK, checkpoint(QUICK), batch_size=8)
    clips = rendered(generator, prompts, seeds)
    assert tried == [8, 4, 2, 2, 2, 2]
    assert max(difference(*pair) for pair in zip(clips, expected, strict=True)) <= 1
    tried.clear()
    rendered(generator, prompts[:3], seeds[:3])
    assert tried == [2, 1]  # it has learnt


def test_a_clip_that_does_not_fit_fails_with_what_to_do(
    checkpoint: Checkpoint, memory_for: Callable[[int], list[int]]
) -> None:
    memory_for(0)
    outcomes = generator_for(QUICK, checkpoint(QUICK), batch_size=2).generate(PROMPTS, SEEDS)
    assert all(isinstance(outcome, Failed) and "set video_generator.offload" in outcome.reason for outcome in outcomes)


def test_an_interrupt_leaves_nothing_behind_and_closing_frees_everything(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = generator_for(QUICK, checkpoint(QUICK), cache="pab", cache_arguments=CACHES["pab"])
    expected = rendered(generator)
    pipeline = generator._load().pipeline
    steps = []

    def interrupt(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    hook = pipeline.transformer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generator.generate(PROMPTS, SEEDS)
    hook.remove()
    assert all(np.array_equal(*pair) for pair in zip(rendered(generator), expected, strict=True))
    assert not generator._load()._texts._known  # type: ignore[union-attr]

    weights = weakref.ref(pipeline.transformer)
    del pipeline
    generator.close()
    gc.collect()
    assert weights() is None
