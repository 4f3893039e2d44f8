"""The shapes world: what is filmed, what is measured of it, what is said of it."""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ml.curation import clean, parse_tags
from ml.rules import wish_of
from ml.shapes import words
from ml.shapes.captions import caption, detailed, shot_list
from ml.shapes.dialects import PLAIN, SHOT_LIST, Dialect
from ml.shapes.pixels import answers, measure, pixel_checklist
from ml.shapes.queries import write_query
from ml.shapes.reading import Wish, mentioned, read_wish
from ml.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    DEFECTS,
    FRAMES,
    MOTIONS,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    draw_scene,
    render,
)

QUESTION_OF = {"blur": "sharp", "shake": "steady", "flicker": "stable_light", "washed": "vivid"}
# What a defect may honestly change besides its own question: blurred outlines can no longer be told apart, shaken
# footage is not smooth (and its stripes smear), a washed-out backdrop is neither dark nor light.
MAY_SUFFER = {
    "blur": {"vivid", "clear_shape", "shape", "kept_shape", "size"},
    "shake": {"smooth", "motion", "lively", "framed", "single", "background"},
    "flicker": {"no_flashing", "vivid", "background", "kept_color"},
    "washed": {"background", "sharp", "clear_shape", "kept_color", "single", "smooth", "kept_size", "kept_shape"},
}


def wish_for(scene: Scene) -> Wish:
    size = None if scene.motion == "grow" else scene.size
    return Wish(scene.color, scene.shape, scene.motion, size, scene.background)


def random_scene(rng: np.random.Generator) -> Scene:
    """A random scene in flawless footage."""
    return draw_scene(rng).clean()


def spaced(text: str) -> str:
    """The text's words in lower case, each between two spaces."""
    return f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "


scenes = st.builds(
    Scene,
    color=st.sampled_from(list(COLORS)),
    shape=st.sampled_from(SHAPES),
    motion=st.sampled_from(MOTIONS),
    background=st.sampled_from(BACKGROUNDS),
    size=st.sampled_from(SIZES),
    defects=st.sets(st.sampled_from(DEFECTS)).map(lambda some: tuple(sorted(some))),
    amateur=st.booleans(),
)

# ---- filming and measuring -----------------------------------------------------------------------------------------


def test_flawless_footage_gets_yes_to_every_question() -> None:
    rng = np.random.default_rng(11)
    asked = [(scene := random_scene(rng), answers(measure(render(scene, rng)), wish_for(scene))) for _ in range(200)]
    wrong = [
        (scene, [name for name, yes in found.items() if not yes]) for scene, found in asked if not all(found.values())
    ]
    assert wrong == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_seen_and_charged_to_its_own_question(defect: str) -> None:
    rng = np.random.default_rng(12)
    no: dict[str, int] = dict.fromkeys(pixel_checklist().ids, 0)
    clips = 60
    for _ in range(clips):
        scene = replace(random_scene(rng), defects=(defect,))
        for name, yes in answers(measure(render(scene, rng)), wish_for(scene)).items():
            no[name] += not yes
    assert no[QUESTION_OF[defect]] >= 0.95 * clips, no
    charged = {name for name, count in no.items() if count > 0.1 * clips}
    assert charged <= {QUESTION_OF[defect]} | MAY_SUFFER[defect], no
    other = set(QUESTION_OF.values()) - {QUESTION_OF[defect]} - MAY_SUFFER[defect]
    assert sum(no[name] for name in other) <= 0.05 * clips * len(other), no


def test_each_detail_that_is_not_as_asked_is_seen_alone() -> None:
    rng = np.random.default_rng(13)
    values: dict[str, tuple[str, ...]] = {
        "color": tuple(COLORS),
        "shape": SHAPES,
        "motion": ("right", "left", "up", "down"),
        "size": SIZES,
        "background": BACKGROUNDS,
    }
    for attribute, options in values.items():
        for _ in range(12):
            scene = replace(random_scene(rng), motion="right")
            wanted = wish_for(scene)
            other = str(rng.choice([value for value in options if value != getattr(scene, attribute)]))
            found = answers(measure(render(scene, rng)), replace(wanted, **{attribute: other}))
            assert [name for name, yes in found.items() if not yes] == [attribute], (scene, other)


def test_a_detail_that_nobody_asked_for_cannot_be_wrong() -> None:
    rng = np.random.default_rng(14)
    for _ in range(40):
        scene = random_scene(rng)
        found = answers(measure(render(scene, rng)), Wish())
        no = {name for name, yes in found.items() if not yes}
        assert no == ({"kept_size"} if scene.motion == "grow" else set())  # nobody asked it to change its size


def test_stillness_is_not_growth_and_not_travel() -> None:
    rng = np.random.default_rng(15)
    still = replace(random_scene(rng), motion="still")
    measured = measure(render(still, rng))
    assert answers(measured, Wish(motion="still"))["lively"]
    for motion in ("right", "up", "grow"):
        found = answers(measured, Wish(motion=motion))
        assert not found["motion"]
        assert not found["lively"]


@pytest.mark.parametrize("gray", [0, 128, 255])
def test_a_clip_without_an_object_gets_no_to_everything_about_it(gray: int) -> None:
    measured = measure(np.full((FRAMES, SIDE, SIDE, 3), gray, np.uint8))
    assert measured.found == 0
    found = answers(measured, Wish("red", "ring", "right", "small", None))
    assert not any(found[name] for name in ("color", "shape", "motion", "size", "single", "framed", "sharp", "lively"))
    assert pixel_checklist().score([list(found.values())])[0] < 1.5


def test_noise_scores_far_below_a_clean_clip() -> None:
    rng = np.random.default_rng(16)
    noise = rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    scene = random_scene(rng)
    checklist, wish = pixel_checklist(), wish_for(scene)
    clips = [noise, render(scene, rng)]
    noisy, clean_score = checklist.score([list(answers(measure(clip), wish).values()) for clip in clips])
    assert clean_score == pytest.approx(6.3)
    assert noisy < 0.5 * clean_score


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 64, 64, 3), np.float32),
        np.zeros((5, 64, 64), np.uint8),
        np.zeros((5, 64, 64, 4), np.uint8),
        np.zeros((5, 32, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
)
def test_what_is_no_clip_of_the_world_is_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"\(frames, 64, 64, 3\)") as caught:
        measure(array)
    assert str(array.shape) in str(caught.value)


@settings(max_examples=40)
@given(scenes, st.integers(0, 1000))
def test_the_same_scene_and_seed_give_the_same_clip(scene: Scene, seed: int) -> None:
    clip = render(scene, np.random.default_rng(seed))
    assert (clip.shape, clip.dtype) == ((FRAMES, SIDE, SIDE, 3), np.uint8)
    assert np.array_equal(clip, render(scene, np.random.default_rng(seed)))
    assert not np.array_equal(clip, render(scene, np.random.default_rng(seed + 1)))


def test_scenes_are_drawn_in_all_their_variety() -> None:
    rng = np.random.default_rng(17)
    drawn = [draw_scene(rng) for _ in range(600)]
    for attribute, options in (("color", COLORS), ("shape", SHAPES), ("motion", MOTIONS), ("background", BACKGROUNDS)):
        assert {getattr(scene, attribute) for scene in drawn} == set(options)
    assert {defect for scene in drawn for defect in scene.defects} == set(DEFECTS)
    assert 0.35 < np.mean([bool(scene.defects) for scene in drawn]) < 0.55


# ---- captions ------------------------------------------------------------------------------------------------------

USERS = sorted(
    phrase
    for table in (words.USER_COLOR, words.USER_SHAPE, words.USER_MOTION)
    for options in table.values()
    for phrase in options
)


@settings(max_examples=300)
@given(scenes, st.integers(0, 10_000), st.sampled_from([PLAIN, SHOT_LIST]))
def test_captions_say_nothing_but_the_truth(scene: Scene, seed: int, dialect: Dialect) -> None:
    text = caption(scene, np.random.default_rng(seed), dialect)
    for attribute, values in mentioned(text).items():
        assert values == {getattr(scene, attribute)}, text
    for name in DEFECTS:
        praised = any(phrase in text for phrase in dialect.good_style[name])
        blamed = any(phrase in text for phrase in dialect.bad_style[name])
        assert not (praised and scene.defects)
        assert not (blamed and name not in scene.defects)
    assert [phrase for phrase in USERS if f" {phrase} " in spaced(text)] == []


def test_a_complete_caption_names_colour_shape_motion_and_size() -> None:
    rng = np.random.default_rng(18)
    for _ in range(100):
        scene = replace(random_scene(rng), motion=str(rng.choice([m for m in MOTIONS if m != "grow"])))
        said = mentioned(detailed(scene, rng, complete=True))
        assert {name: said.get(name) for name in ("color", "shape", "motion", "size")} == {
            name: {getattr(scene, name)} for name in ("color", "shape", "motion", "size")
        }


def test_a_shot_list_has_a_line_for_each_thing_that_it_states() -> None:
    stated = Wish("red", "ring", "up", "large", "dark")
    seen = {
        shot_list(stated, np.random.default_rng(seed), style=["sharp focus"], dialect=SHOT_LIST) for seed in range(9)
    }
    lines = {
        "Subject: large red ring.",
        "Movement: climbs toward the top.",
        "Setting: plain dark backdrop.",
        "Notes: sharp focus.",
    }
    assert len(seen) > 3  # in any order
    assert all(set(re.findall(r"\w+: [^:]+\.", text)) == lines for text in seen)
    assert shot_list(Wish(shape="ring"), np.random.default_rng(0), dialect=SHOT_LIST) == "Subject: ring."


def test_prompts_for_one_model_are_understood_in_part_by_the_other() -> None:
    for topic in ("motion", "form", "background"):
        ours, theirs = getattr(PLAIN, topic), getattr(SHOT_LIST, topic)
        assert set(ours) == set(theirs)
        assert all(0 < len(theirs[value]) < len(ours[value]) and {*theirs[value]} < {*ours[value]} for value in ours)
    agreed = {name for name in DEFECTS if SHOT_LIST.good_style[name] == PLAIN.good_style[name]}
    turned = {name for name in DEFECTS if SHOT_LIST.good_style[name] == PLAIN.bad_style[name]}
    assert (agreed, turned) == ({"blur", "washed"}, {"shake", "flicker"})
    assert all(SHOT_LIST.bad_style[name] == PLAIN.good_style[name] for name in turned)


# ---- queries -------------------------------------------------------------------------------------------------------


def test_queries_read_back_to_what_was_written() -> None:
    seen: dict[str, set[str]] = {}
    for seed in range(400):
        written = write_query(np.random.default_rng(seed), unsafe=seed % 5 == 0)
        text, _ = parse_tags(clean(written))
        wish = wish_of(text)
        assert wish.shape is not None, text
        assert wish == read_wish(text)
        users = {
            (attribute, value)
            for attribute, table in (
                ("color", words.USER_COLOR),
                ("shape", words.USER_SHAPE),
                ("motion", words.USER_MOTION),
                ("size", words.USER_SIZE),
                ("background", words.USER_BACKGROUND),
            )
            for value, options in table.items()
            for option in options
            if f" {option} " in spaced(text)
        }
        assert set(wish.details.items()) == users, text
        for attribute, value in wish.details.items():
            seen.setdefault(attribute, set()).add(value)
    assert {name: len(values) for name, values in seen.items()} == {
        "color": len(COLORS),
        "shape": len(SHAPES),
        "motion": len(MOTIONS),
        "size": len(SIZES),
        "background": len(BACKGROUNDS),
    }


def test_every_users_word_means_what_its_table_says() -> None:
    tables = {
        "color": words.USER_COLOR,
        "shape": words.USER_SHAPE,
        "motion": words.USER_MOTION,
        "size": words.USER_SIZE,
        "background": words.USER_BACKGROUND,
    }
    for attribute, table in tables.items():
        for value, options in table.items():
            for option in options:
                assert read_wish(f"something {option.upper()}, please").details == {attribute: value}


# ---- the tokenizer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cogvideox", "latte"])
def test_captions_survive_the_tokenizer_in_few_tokens(name: str) -> None:
    from ml.shapes.model import build_tokenizer
    from ml.shapes.video_models import MODELS

    video_model = MODELS[name]
    tokenizer = build_tokenizer(captions=2000, dialect=video_model.dialect, lower_case=video_model.lower_case)
    rng = np.random.default_rng(19)
    texts = [video_model.text(caption(draw_scene(rng), rng, video_model.dialect)) for _ in range(300)]
    tokens = [tokenizer(text).input_ids for text in texts]
    back = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    assert [text.replace(" ", "") for text in back] == [text.replace(" ", "") for text in texts]
    assert np.mean([len(ids) <= video_model.text_tokens for ids in tokens]) > 0.9
    assert tokenizer("a red ring").input_ids != tokenizer("a blue ring").input_ids
    unknown = tokenizer.decode(tokenizer("crimson hoop").input_ids, skip_special_tokens=True)
    assert unknown.replace(" ", "") == "crimsonhoop"  # users' words come in pieces, but come


# ---- stand-ins for CPUs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (48, 12), (12, 48)])
def test_muons_iteration_equals_torchs_own_but_for_its_rounding(shape: tuple[int, int]) -> None:
    import torch
    from torch.optim import _muon

    from ml.shapes import fast_cpu

    torch.manual_seed(3)
    gradient, coefficients = torch.randn(shape), (3.4445, -4.775, 2.0315)
    ours = fast_cpu.orthogonal(gradient, coefficients, 5, 1e-7)
    theirs = _muon._zeropower_via_newtonschulz(gradient, coefficients, 5, 1e-7).float()
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)
    singular = torch.linalg.svdvals(ours)
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_attention_equals_torchs_own() -> None:
    import torch
    import torch.nn.functional as F

    from ml.shapes import fast_cpu

    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (7, 11, 11))
    mask = torch.randn(2, 1, 7, 11)
    for arguments in ({}, {"attn_mask": mask}, {"scale": 0.5}):
        ours, theirs = (
            fast_cpu.attention(query, key, value, **arguments),
            F.scaled_dot_product_attention(query, key, value, **arguments),
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        ours_gradient, theirs_gradient = (torch.autograd.grad(x.square().sum(), query)[0] for x in (ours, theirs))
        torch.testing.assert_close(ours_gradient, theirs_gradient, atol=1e-5, rtol=1e-4)


def test_attention_refuses_what_it_does_not_do() -> None:
    import torch

    from ml.shapes import fast_cpu

    one = torch.zeros(1, 1, 2, 4)
    with pytest.raises(NotImplementedError):
        fast_cpu.attention(one, one, one, is_causal=True)
    with pytest.raises(NotImplementedError):
        fast_cpu.attention(one, one, one, dropout_p=0.1)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_spatial_norm_equals_diffusers_own(frames: int) -> None:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D

    from ml.shapes import fast_cpu

    if CogVideoXSpatialNorm3D.forward is fast_cpu.spatial_norm:
        pytest.fail("a test before this one left the stand-in switched on")
    torch.manual_seed(1)
    norm = CogVideoXSpatialNorm3D(f_channels=8, zq_channels=6, groups=4)
    features, latent = torch.randn(2, 8, frames, 8, 8), torch.randn(2, 6, frames, 4, 4)
    theirs, _ = norm(features, latent)
    ours, _ = fast_cpu.spatial_norm(norm, features, latent)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_text_once_per_clip_equals_diffusers_own_text_for_each_frame() -> None:
    import torch

    from ml.shapes import latte

    torch.manual_seed(2)
    transformer = latte.build_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight)
    noisy, text = torch.randn(2, 8, FRAMES, 16, 16), torch.randn(2, 7, 96)
    weight = transformer.caption_projection.linear_1.weight

    def sample_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        sample = transformer(noisy, torch.tensor([3, 900]), text).sample
        return sample, torch.autograd.grad(sample.square().mean(), weight)[0]

    theirs = sample_and_gradient()
    latte.Denoising(torch.nn.Identity(), transformer)
    ours = sample_and_gradient()
    assert all(block.attn2.processor.__class__ is latte.TextOncePerClip for block in transformer.transformer_blocks)
    torch.testing.assert_close(ours, theirs)


# ---- training ------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_stays_and_goes_down() -> None:
    from ml.shapes.train import Schedule

    schedule = Schedule(steps=1000, warmup=50, decay_from=0.4)
    factors = [schedule.factor(step) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 50)
    assert factors[49:400] == pytest.approx([1.0] * 351)
    assert all(later < earlier for earlier, later in pairwise(factors[400:]))
    assert factors[700] == pytest.approx(0.51, abs=0.01)
    assert factors[-1] == pytest.approx(0.02, abs=0.001)


# One process for all trainings, since importing takes longer than training. A run that stops is cut off right after
# it saved a state, as a killed one is; what counts is what it finds on the disk when it goes on.
TRAININGS = """
import sys
from ml.shapes import model, train
tokenizer, schedule, save = model.build_tokenizer, train.Schedule, train._save
model.build_tokenizer = lambda **k: tokenizer(captions=300, subword_pieces=120, **k)
train.Schedule = lambda *a, **k: schedule(*a, **{**k, "report_every": 1, "save_every": 3})
class Cut(BaseException):
    pass
def run(name, work, saves=None):
    print("RUN", name, flush=True)
    made = []
    def save_and_stop(*arguments):
        save(*arguments)
        made.append(arguments[0])
        if len(made) == saves:
            raise Cut
    train._save = save_and_stop
    sys.argv[1:] = ["--model", name_of_model, "--out", f"{folder}/{work}/pipeline", "--work", f"{folder}/{work}",
                    "--autoencoder-steps", "6", "--denoiser-steps", "6", "--clips", "8", "--batch", "2"]
    try:
        train.main()
    except Cut:
        pass
folder, name_of_model = sys.argv[1:3]
run("stopped in the autoencoder", "parts", saves=1)
run("stopped in the denoiser", "parts", saves=2)
run("finished", "parts")
run("nothing to do", "parts")
run("whole", "whole")
"""


@pytest.mark.slow
@pytest.mark.parametrize("video_model", ["cogvideox", pytest.param("latte", marks=pytest.mark.long)])
def test_a_stopped_training_goes_on_where_it_was_and_its_pipeline_films(video_model: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAININGS, tmp_path, video_model],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = dict(part.split("\n", 1) for part in done.stdout.split("RUN ")[1:])
    steps = {name: (steps_of(text, "autoencoder"), steps_of(text, "denoiser")) for name, text in printed.items()}
    first, second, all_steps = [1, 2, 3], [4, 5, 6], [1, 2, 3, 4, 5, 6]
    assert steps == {
        "stopped in the autoencoder": (first, []),
        "stopped in the denoiser": (second, first),
        "finished": ([], second),
        "nothing to do": ([], []),
        "whole": (all_steps, all_steps),
    }
    assert "encoding clip" in printed["stopped in the denoiser"]
    assert "encoding clip" not in printed["finished"]  # read back, not made again
    assert not list(tmp_path.rglob("*.writing"))
    for name in ("parts", "whole"):
        films_five_frames(tmp_path / name / "pipeline", video_model)


def steps_of(printed: str, stage: str) -> list[int]:
    return [int(step) for step in re.findall(rf"^{stage} step (\d+)/6 ", printed, re.MULTILINE)]


def films_five_frames(folder: Path, name: str) -> None:
    import torch

    from ml.shapes.examine import load_pipeline

    pipeline, video_model = load_pipeline(folder)
    assert video_model.name == name
    assert pipeline.vae.config.scaling_factor != 1.0  # the latents' own
    frames = pipeline(
        prompt="A red ring moves to the right.",
        **video_model.arguments,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    assert frames.shape == (1, FRAMES, SIDE, SIDE, 3)
    assert np.isfinite(frames).all()
    assert frames.std() > 0
