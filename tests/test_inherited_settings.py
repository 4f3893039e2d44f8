"""Profiles that extend others, targets that are like others: what is taken over, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from resources.inherited_settings import laid_over
from resources.settings import PROFILES, Profile, SettingsError, load_profile


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_HOME", str(tmp_path / "home"))


def load(folder: Path, settings: dict[str, Any], name: str = "mine") -> Profile:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return load_profile(str(file))


def test_the_profile_study_is_local_with_more_targets() -> None:
    local, study = load_profile("local"), load_profile("study")
    shapes = study.targets["shapes"]
    assert list(study.targets) == [
        "shapes",
        "shapes_text_only",
        "shapes_video_only",
        "shapes_round_2",
        "shapes_aligned",
        "shapes_latte",
    ]
    assert shapes.model_copy(update={"evaluation": local.targets["shapes"].evaluation}) == local.targets["shapes"]
    assert study.model_dump(exclude={"targets"}) == local.model_dump(exclude={"targets"})
    for name, feedback in (("shapes_text_only", "text"), ("shapes_video_only", "video"), ("shapes_round_2", "both")):
        target = study.targets[name]
        assert target.pairs == shapes.pairs.model_copy(update={"feedback": feedback})
        assert (target.dpo, target.video_generator, target.evaluated) == (shapes.dpo, shapes.video_generator, False)
    assert study.targets["shapes_round_2"].candidates.policy == "shapes"


def test_the_aligned_target_of_the_study_differs_from_the_first_by_its_alignment_alone() -> None:
    targets = load_profile("study").targets
    first, aligned = targets["shapes"], targets["shapes_aligned"]
    assert aligned.alignment is not None and aligned.feedback_from == "shapes" and not aligned.evaluation.others
    alike = {"alignment": None, "feedback_from": None, "evaluation": None, "like": None}
    assert aligned.model_copy(update=alike) == first.model_copy(update=alike)


def test_the_latte_target_of_the_study_differs_from_the_first_by_its_video_model_and_films_its_optimizer() -> None:
    targets = load_profile("study").targets
    first, latte = targets["shapes"], targets["shapes_latte"]
    alike = {"video_generator": None, "evaluation": None, "like": None}
    assert latte.model_copy(update=alike) == first.model_copy(update=alike)
    assert first.evaluation.others["for_latte"] == "shapes_latte"
    assert latte.evaluation.others == {"for_shapes": "shapes"}
    steps = ("num_inference_steps", "guidance_scale", "height", "width")
    assert {name: latte.video_generator.arguments.get(name) for name in steps} == {
        name: first.video_generator.arguments[name] for name in steps
    }


def test_null_takes_away_what_is_taken_over(tmp_path: Path) -> None:
    arguments = {"num_inference_steps": None, "guidance_scale": 5.0}
    ours = {"like": "shapes", "video_generator": {"arguments": arguments}}
    profile = load(tmp_path, {"extends": "local", "targets": {"ours": ours}})
    whole = profile.targets["shapes"].video_generator.arguments
    assert profile.targets["ours"].video_generator.arguments == {
        **{key: value for key, value in whole.items() if key != "num_inference_steps"},
        "guidance_scale": 5.0,
    }


def test_the_environment_wins_over_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_TARGETS__SHAPES_ROUND_2__DPO__BETA", "0.3")
    monkeypatch.setenv("VPO_TARGETS__SHAPES__DPO__EPOCHS", "7")
    targets = load_profile("study").targets
    assert [(targets[name].dpo.beta, targets[name].dpo.epochs) for name in ("shapes", "shapes_round_2")] == [
        (0.1, 7),
        (0.3, 7),
    ]


def test_a_section_of_another_backend_takes_nothing_over() -> None:
    below = {"judge": {"backend": "llm", "model": "m", "batch_size": 2}, "seed": 1}
    assert laid_over(below, {"judge": {"backend": "rules"}}) == {"judge": {"backend": "rules"}, "seed": 1}
    assert laid_over(below, {"judge": {"model": "n"}}) == {
        "judge": {"backend": "llm", "model": "n", "batch_size": 2},
        "seed": 1,
    }
    assert laid_over(below, {"judge": None}) == {"judge": None, "seed": 1}
    assert below["judge"] == {"backend": "llm", "model": "m", "batch_size": 2}  # what is below stays as it was


def test_a_profile_may_extend_one_that_extends(tmp_path: Path) -> None:
    load(tmp_path, {"extends": "local", "seed": 4, "sft": {"epochs": 2}}, "first")
    profile = load(tmp_path, {"extends": str(tmp_path / "first.yaml"), "sft": {"batch_size": 4}}, "second")
    assert (profile.seed, profile.sft.epochs, profile.sft.batch_size) == (4, 2, 4)
    assert profile.sft.learning_rate == load_profile("local").sft.learning_rate


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"b": {"like": "a"}}, "targets.b.like = 'a': must be a target that is named above it: shapes"),
        ({"b": {"like": "b"}}, "targets.b.like = 'b': must be a target that is named above it: shapes"),
        ({"b": {"like": "shapes", "feedback_from": "c"}, "c": {"like": "b"}}, "targets.b.feedback_from = 'c'"),
        (
            {"b": {"like": "shapes", "feedback_from": "shapes"}, "c": {"like": "shapes", "feedback_from": "b"}},
            "targets.c.feedback_from = 'b': has its own from shapes",
        ),
        (
            {"b": {"like": "shapes", "candidates": {"policy": "c"}}, "c": {"like": "shapes"}},
            "targets.b.candidates.policy = 'c': must be sft, the id of a checkpoint, or a target that is named above",
        ),
        (
            {"b": {"like": "shapes", "evaluation": {"others": {"two": "shpaes"}}}},
            "targets.b.evaluation.others.two = 'shpaes': must be a target or the id of a checkpoint",
        ),
        ({"b": {"like": "shapes", "evaluation": {"others": {"vpo": "shapes"}}}}, "a name of lower-case letters"),
    ],
)
def test_a_wrong_reference_is_named(tmp_path: Path, targets: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(tmp_path, {"extends": "local", "targets": targets})
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_profiles_that_extend_each_other_or_nothing_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    with pytest.raises(SettingsError, match="they extend each other"):
        load(tmp_path, {"extends": str(file)})
    with pytest.raises(SettingsError, match="extends = 'loacl': no such profile; name a YAML file or"):
        load(tmp_path, {"extends": "loacl"})
    assert (PROFILES / "study.yaml").read_text().count("extends: local") == 1
