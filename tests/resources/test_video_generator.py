from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.shapes.pixels import answers, measure, pixel_checklist
from ml.shapes.reading import read_wish
from resources.settings import VideoGeneratorSettings
from resources.video_generator import SHAPES_MODEL, CannotRender, Clip, DiffusersVideoGenerator, build_video_generator

ARGUMENTS: dict[str, int | float | str | bool] = {
    "num_frames": 5,
    "height": 64,
    "width": 64,
    "num_inference_steps": 6,
    "guidance_scale": 3.0,
    "max_sequence_length": 64,
}
PROMPTS = [
    "A red ring moves to the right in front of a dark background. It keeps its red colour in every frame.",
    "A large blue square stays still in front of a light background. There is no motion at all.",
    "A green triangle moves up in front of a dark background. The footage has a steady camera and sharp focus.",
]
SEEDS = [1, 2, (1 << 48) - 1]


def settings_of(**changes: Any) -> VideoGeneratorSettings:
    values: dict[str, Any] = {"model": "embedded", "batch_size": 2, "fps": 4, "arguments": ARGUMENTS}
    return VideoGeneratorSettings(**{**values, **changes})


class Pipeline:
    """In the place of a diffusers pipeline: pixels that are a function of prompt and seed, and a list of calls."""

    def __init__(self, *, broken: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self.broken = broken

    def __call__(self, *, prompt: list[str], generator: list[Any], **arguments: Any) -> Any:
        import torch

        self.calls.append({"prompt": prompt, **arguments})
        clips = [
            torch.rand(2, 4, 6, 3, generator=g).numpy() * (0.5 if "dark" in text else 1)
            for text, g in zip(prompt, generator, strict=True)
        ]
        frames = np.stack(clips)
        if self.broken:
            frames[0, 0, 0, 0, 0] = np.nan
        return type("Output", (), {"frames": frames})()


def generator_with(pipeline: Pipeline, **changes: Any) -> DiffusersVideoGenerator:
    generator = DiffusersVideoGenerator(settings_of(**changes))
    generator._pipeline = pipeline
    return generator


def test_clips_come_in_order_as_bytes_in_batches_of_the_size_set() -> None:
    pipeline = Pipeline()
    clips = generator_with(pipeline).generate(PROMPTS, SEEDS)
    assert [(clip.dtype, clip.shape) for clip in clips] == [(np.dtype(np.uint8), (2, 4, 6, 3))] * 3
    assert [len(call["prompt"]) for call in pipeline.calls] == [2, 1]
    assert [prompt for call in pipeline.calls for prompt in call["prompt"]] == PROMPTS
    assert all(call["num_inference_steps"] == 6 and call["output_type"] == "np" for call in pipeline.calls)
    assert clips[0].max() <= 128 < clips[1].max()


def test_a_seed_gives_its_clip_whatever_else_is_in_the_batch() -> None:
    expected = generator_with(Pipeline()).generate(PROMPTS, SEEDS)
    for order in ([2, 0, 1], [1]):
        clips = generator_with(Pipeline(), batch_size=3).generate(
            [PROMPTS[i] for i in order], [SEEDS[i] for i in order]
        )
        assert all(np.array_equal(clip, expected[i]) for clip, i in zip(clips, order, strict=True))


def test_pixels_that_are_not_finite_are_no_video() -> None:
    with pytest.raises(CannotRender, match="not finite; another dtype than float32"):
        generator_with(Pipeline(broken=True)).generate(PROMPTS[:1], [1])


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    missing = tmp_path / "model"
    missing.mkdir()
    with pytest.raises(CannotRender, match=r"cannot be loaded: .*video_generator\.model") as caught:
        DiffusersVideoGenerator(settings_of(model=str(missing))).generate(PROMPTS[:1], [1])
    assert "\n" not in str(caught.value)
    assert str(missing) in str(caught.value)


def test_nothing_asked_is_nothing_rendered() -> None:
    pipeline = Pipeline()
    assert generator_with(pipeline).generate([], []) == []
    assert pipeline.calls == []


def test_closing_frees_the_pipeline() -> None:
    generator = generator_with(Pipeline())
    generator.close()
    assert generator._pipeline is None


def test_the_identity_changes_with_whatever_decides_the_pixels(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "weights").write_text("1")
    base = settings_of(model=str(tmp_path / "one"))
    identity = build_video_generator(base).identity()
    assert identity == build_video_generator(base.model_copy(update={"batch_size": 7, "device": "cpu"})).identity()
    for change in ({"dtype": "bfloat16"}, {"arguments": {**ARGUMENTS, "guidance_scale": 4.0}}, {"model": "a/hub-name"}):
        assert build_video_generator(base.model_copy(update=change)).identity() != identity
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "weights").write_text("2")
    other = build_video_generator(settings_of(model=str(tmp_path / "two"))).identity()
    assert other["revision"] != identity["revision"]


# ---- the shapes model itself ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filmed() -> tuple[DiffusersVideoGenerator, list[Clip]]:
    if not (SHAPES_MODEL / "model_index.json").is_file():
        pytest.skip(f"the shapes model is not trained yet: there is no {SHAPES_MODEL}")
    generator = DiffusersVideoGenerator(settings_of(device="cpu", batch_size=3))
    return generator, generator.generate(PROMPTS, SEEDS)


@pytest.mark.slow
def test_the_shapes_model_films_what_detailed_prompts_say(filmed: tuple[DiffusersVideoGenerator, list[Clip]]) -> None:
    _, clips = filmed
    assert [clip.shape for clip in clips] == [(5, 64, 64, 3)] * 3
    yes = [
        list(answers(measure(clip), read_wish(prompt)).values()) for prompt, clip in zip(PROMPTS, clips, strict=True)
    ]
    assert pixel_checklist().score(yes).mean() > 0.7 * 6.3


@pytest.mark.slow
def test_the_shapes_model_gives_the_same_clip_for_the_same_seed_alone_or_in_a_batch(
    filmed: tuple[DiffusersVideoGenerator, list[Clip]],
) -> None:
    generator, clips = filmed
    (alone,) = generator.generate(PROMPTS[1:2], SEEDS[1:2])
    difference = np.abs(alone.astype(int) - clips[1].astype(int))
    assert difference.max() <= 2  # sums in another order round otherwise
    (other,) = generator.generate(PROMPTS[1:2], [99])
    assert np.abs(other.astype(int) - clips[1].astype(int)).max() > 20
