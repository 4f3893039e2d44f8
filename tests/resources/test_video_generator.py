"""Choosing a video generator, what its identity holds, and the shapes model that ships with the project."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.shapes.pixels import answers, measure, pixel_checklist
from ml.shapes.reading import read_wish
from resources.backend_settings import DiffusersSettings, VideoServerSettings
from resources.diffusers_generator import DiffusersVideoGenerator
from resources.embedded_video_models import EMBEDDED_LATTE
from resources.outcome import Unavailable
from resources.video_generator import Clip, build_video_generator
from resources.video_server import ServedVideoGenerator
from tests.resources.video_generator_contract import clip_of

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


def settings_of(**changes: Any) -> DiffusersSettings:
    values: dict[str, Any] = {"model": "embedded", "batch_size": 2, "fps": 4, "arguments": ARGUMENTS}
    return DiffusersSettings(**{**values, **changes})


def test_the_backend_that_the_profile_names_is_made() -> None:
    local = build_video_generator(settings_of(fps=4))
    assert isinstance(local, DiffusersVideoGenerator) and local.fps == 4
    served = build_video_generator(VideoServerSettings(base_url="http://127.0.0.1:9/v1", model="m", fps=16))
    assert isinstance(served, ServedVideoGenerator) and served.fps == 16


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    missing = tmp_path / "model"
    missing.mkdir()
    with pytest.raises(Unavailable, match=r"cannot be loaded: .*video_generator\.model") as caught:
        DiffusersVideoGenerator(settings_of(model=str(missing))).generate(PROMPTS[:1], [1])
    assert "\n" not in str(caught.value)
    assert str(missing) in str(caught.value)


def test_nothing_is_loaded_for_nothing(tmp_path: Path) -> None:
    generator = DiffusersVideoGenerator(settings_of(model=str(tmp_path)))
    assert generator.generate([], []) == []
    assert generator.identity()["model"] == str(tmp_path)
    generator.close()


def test_the_identity_changes_with_whatever_decides_the_pixels(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "weights").write_text("1")
    base = settings_of(model=str(tmp_path / "one"))
    identity = build_video_generator(base).identity()
    for same in (
        {"batch_size": 7, "device": "cpu", "fps": 9.0},
        {"offload": "group", "vae_slicing": True},
        {"cache": "none", "compile": False, "negative_prompt": None},
    ):
        assert build_video_generator(base.model_copy(update=same)).identity() == identity
    changes: list[dict[str, Any]] = [
        {"dtype": "bfloat16"},
        {"arguments": {**ARGUMENTS, "guidance_scale": 4.0}},
        {"model": "a/hub-name"},
        {"negative_prompt": ""},
        {"cache": "first_block"},
        {"cache": "first_block", "cache_arguments": {"threshold": 0.1}},
        {"cache": "magcache", "cache_arguments": {"mag_ratios": (1.0, 1.1)}},
        {"cache": "magcache", "cache_arguments": {"mag_ratios": (1.0, 1.2)}},
        {"layerwise_casting": True},
        {"compile": True},
        {"vae_tiling": True},
        {"attention_backend": "sage"},
    ]
    seen = [identity, *(build_video_generator(base.model_copy(update=change)).identity() for change in changes)]
    assert all(seen.count(one) == 1 for one in seen)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "weights").write_text("2")
    other = build_video_generator(settings_of(model=str(tmp_path / "two"))).identity()
    assert other["revision"] != identity["revision"]


def test_the_identity_of_a_served_model_is_the_model_and_not_the_server() -> None:
    base = VideoServerSettings(base_url="http://127.0.0.1:9/v1", model="m", arguments={"num_frames": 5})
    identity = ServedVideoGenerator(base).identity()
    for same in ({"base_url": "https://other/v1", "key_variable": "KEY"}, {"concurrency": 2, "poll_seconds": 9.0}):
        assert ServedVideoGenerator(base.model_copy(update=same)).identity() == identity
    for change in ({"model": "n"}, {"revision": "2"}, {"negative_prompt": ""}, {"arguments": {"num_frames": 9}}):
        assert ServedVideoGenerator(base.model_copy(update=change)).identity() != identity


# ---- the shapes models themselves ----------------------------------------------------------------------------------

LATTE_PROMPTS = [
    "A red ring slides toward the right edge in front of a plain dark backdrop. It keeps its red colour.",
    "Subject: large blue square. Movement: rests without any movement. Setting: plain light backdrop.",
    "A green triangle climbs toward the top in front of a plain dark backdrop. Filmed with a handheld feel.",
]
LATTE_ARGUMENTS = {
    **{name: ARGUMENTS[name] for name in ("height", "width", "num_inference_steps", "guidance_scale")},
    "video_length": 5,
    "mask_feature": False,
    "clean_caption": False,
}
Filmed = tuple[DiffusersVideoGenerator, list[str], list[Clip]]


@pytest.fixture(
    scope="module", params=[("embedded", ARGUMENTS, PROMPTS), (EMBEDDED_LATTE, LATTE_ARGUMENTS, LATTE_PROMPTS)]
)
def filmed(request: pytest.FixtureRequest) -> Filmed:
    model, arguments, prompts = request.param
    generator = DiffusersVideoGenerator(settings_of(model=model, arguments=arguments, device="cpu", batch_size=3))
    return generator, prompts, [clip_of(outcome) for outcome in generator.generate(prompts, SEEDS)]


@pytest.mark.slow
def test_a_shapes_model_films_what_detailed_prompts_say(filmed: Filmed) -> None:
    _, prompts, clips = filmed
    assert [clip.shape for clip in clips] == [(5, 64, 64, 3)] * 3
    yes = [
        list(answers(measure(clip), read_wish(prompt)).values()) for prompt, clip in zip(prompts, clips, strict=True)
    ]
    assert pixel_checklist().score(yes).mean() > 0.7 * 6.3


@pytest.mark.slow
def test_a_shapes_model_gives_the_same_clip_for_the_same_seed_alone_or_in_a_batch(filmed: Filmed) -> None:
    generator, prompts, clips = filmed
    (alone,) = generator.generate(prompts[1:2], SEEDS[1:2])
    difference = np.abs(clip_of(alone).astype(int) - clips[1].astype(int))
    assert difference.max() <= 2  # sums in another order round otherwise
    (other,) = generator.generate(prompts[1:2], [99])
    assert np.abs(clip_of(other).astype(int) - clips[1].astype(int)).max() > 20
