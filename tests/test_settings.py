"""Profiles that cannot be used: each fault in one line, with its key and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ml.preference import PairSettings
from resources.backend_settings import (
    DiffusersSettings,
    LlmJudgeSettings,
    SamplingSettings,
    VisionRewardSettings,
    VllmModelSettings,
)
from resources.compute_settings import RayComputeSettings
from resources.settings import PROFILES, SettingsError, TrainerSettings, load_profile

Path_ = tuple[str, ...]

VLM = {"backend": "vlm", "base_url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.fixture
def local(home: Path) -> dict[str, Any]:
    """The settings of the profile `local`."""
    del home
    settings: dict[str, Any] = yaml.safe_load((PROFILES / "local.yaml").read_text())
    return settings


def faults(folder: Path, settings: object) -> list[str]:
    """The lines that loading this profile ends with."""
    file = folder / "mine.yaml"
    file.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    with pytest.raises(SettingsError) as caught:
        load_profile(str(file))
    return str(caught.value).splitlines()


def changed(settings: dict[str, Any], path: Path_, value: object) -> dict[str, Any]:
    """The settings with one key set, or taken out for None."""
    inner = settings
    for name in path[:-1]:
        inner = inner[name]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return settings


def test_every_shipped_profile_loads(home: Path) -> None:
    names = {file.stem for file in PROFILES.glob("*.yaml")}
    assert {"local", "gpu", "paper", "cluster"} <= names
    assert {load_profile(name).home for name in names} == {home}


def test_the_profile_paper_has_the_published_settings(home: Path) -> None:
    profile = load_profile("paper")
    assert isinstance(profile.policy, VllmModelSettings)
    assert profile.policy.model == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert isinstance(profile.judge, LlmJudgeSettings)
    assert profile.judge.sampling.temperature == 0.7
    curation = profile.queries.curation
    assert curation.sft_share == curation.dpo_share
    assert round(20_000 * curation.test_share) == 500
    assert profile.trainer == TrainerSettings(accelerate="zero3", processes=8)
    assert list(profile.targets) == ["cogvideox_2b", "cogvideox_5b"]
    for target, model in zip(profile.targets.values(), ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-5b"), strict=True):
        assert isinstance(target.video_generator, DiffusersSettings)
        assert (target.video_generator.model, target.video_generator.fps) == (model, 8)
        assert target.video_generator.arguments == {
            "num_frames": 49,
            "height": 480,
            "width": 720,
            "num_inference_steps": 50,
            "guidance_scale": 6.0,
        }
        assert isinstance(target.video_reward, VisionRewardSettings)
        assert target.candidates.per_query == 4
        assert target.candidates.sampling == SamplingSettings(temperature=0.9, top_p=0.9, max_new_tokens=2048)
        assert target.pairs == PairSettings()
        assert (target.evaluation.limit, target.evaluation.sampling.temperature) == (500, 0.7)
        assert target.evaluation.sampling.top_p == 1.0


def test_the_profile_cluster_differs_from_gpu_where_it_says(home: Path) -> None:
    gpu, cluster = load_profile("gpu"), load_profile("cluster")
    assert isinstance(cluster.compute, RayComputeSettings)
    assert cluster.lake.catalog.startswith("postgresql://") and cluster.run_storage != cluster.lake.catalog
    assert all(str(place).startswith("s3://") for place in (cluster.lake.data, cluster.videos, cluster.checkpoints))
    assert (cluster.queries, cluster.drafts, cluster.judge.sampling) == (gpu.queries, gpu.drafts, gpu.judge.sampling)
    (ours,), (theirs,) = cluster.targets.values(), gpu.targets.values()
    assert (ours.pairs, ours.candidates.sampling) == (theirs.pairs, theirs.candidates.sampling)
    assert ours.candidates.limit is None


def test_the_profile_gpu_asks_for_no_access_to_anything(home: Path) -> None:
    profile = load_profile("gpu")
    keys = [profile.language_model, profile.judge, *(target.video_reward for target in profile.targets.values())]
    assert not [settings for settings in keys if getattr(settings, "key_variable", None)]
    assert profile.sft.lora and profile.sft.gradient_checkpointing
    assert all(target.dpo.lora and target.dpo.gradient_checkpointing for target in profile.targets.values())


@pytest.mark.parametrize(("written", "meant"), [("2", 2), ("auto", "auto")])
def test_the_number_of_processes_may_come_from_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, written: str, meant: object
) -> None:
    monkeypatch.setenv("VPO_TRAINER__ACCELERATE", "ddp")
    monkeypatch.setenv("VPO_TRAINER__PROCESSES", written)
    assert load_profile().trainer.processes == meant


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("targets",), None, "mine.yaml: targets is missing"),
        (("targets",), {}, "mine.yaml: targets = '{}': "),
        (("targets", "shapes", "video_generator"), None, "mine.yaml: targets.shapes.video_generator is missing"),
        (("judge", "backend"), "oracle", "mine.yaml: judge.backend = 'oracle': must be 'rules' or 'llm'"),
        (("judge",), {"backend": None}, "mine.yaml: judge.backend is empty: name a backend"),
        (("judge",), "rules", "mine.yaml: judge = 'rules': must be a section with keys of its own"),
        (("judge",), {"backend": "llm"}, "mine.yaml: judge.language_model is missing"),
        (
            ("judge",),
            {"backend": "llm", "language_model": {"backend": "openai", "model": "m"}},
            "mine.yaml: judge.language_model.base_url is missing",
        ),
        (
            ("judge",),
            {"backend": "llm", "language_model": {"backend": "nope"}},
            "mine.yaml: judge.language_model.backend = 'nope': must be 'transformers' or 'vllm' or 'openai'",
        ),
        (("judge",), {"backend": "llm", "language_model": {}, "votes": 2}, "mine.yaml: judge.votes = '2': must be odd"),
        (
            ("policy",),
            {"backend": "openai", "base_url": "http://x/v1", "model": "m"},
            "mine.yaml: policy.backend = 'openai': must be 'transformers' or 'vllm'",
        ),
        (
            ("language_model",),
            {"backend": "openai", "base_url": "x.org", "model": "m"},
            "mine.yaml: language_model.base_url = 'x.org': an address begins with http:// or https://",
        ),
        (("targets", "shapes", "video_generator", "backend"), "sora", "video_generator.backend = 'sora': must be"),
        (("language_model", "backend"), "magic", "mine.yaml: language_model.backend = 'magic': must be"),
        (("sft", "epoch"), 3, "mine.yaml: sft.epoch is no setting"),
        (("nonsense",), 1, "mine.yaml: nonsense is no setting"),
        (("sft", "learning_rate"), "fast", "mine.yaml: sft.learning_rate = 'fast': must be"),
        (("refresh", "video_batch"), 0, "mine.yaml: refresh.video_batch = '0': must be"),
        (("targets", "shapes", "pairs", "margin"), -1, "mine.yaml: targets.shapes.pairs.margin = '-1': "),
        # A value that may be of several kinds is one fault, with the key as it stands in the file.
        (
            ("targets", "shapes", "video_generator", "arguments", "num_frames"),
            [5],
            "mine.yaml: targets.shapes.video_generator.arguments.num_frames = '[5]': must be a valid integer or ",
        ),
        (
            ("targets", "shapes", "video_reward"),
            {**VLM, "checklist": 5},
            "mine.yaml: targets.shapes.video_reward.checklist = '5': must be a section with keys of its own or a path",
        ),
        (
            ("targets", "shapes", "video_reward"),
            {**VLM, "checklist": {"questions": "q.txt"}},
            "mine.yaml: targets.shapes.video_reward.checklist.weights is missing",
        ),
        (
            ("targets", "shapes", "video_reward"),
            {**VLM, "checklist": {"questions": "q", "weights": "w", "wheights": "w"}},
            "mine.yaml: targets.shapes.video_reward.checklist.wheights is no setting",
        ),
        (("sft", "lora"), 16, "mine.yaml: sft.lora = '16': must be a section with keys of its own"),
        (("trainer",), {"accelerate": "fdsp"}, "mine.yaml: trainer.accelerate = 'fdsp': must be one of none, single, "),
        (("trainer",), {"processes": "all"}, "mine.yaml: trainer.processes = 'all': must be auto or a whole number"),
        (("trainer",), {"processes": 0}, "mine.yaml: trainer.processes = '0': must be auto or a whole number from 1"),
        (("trainer",), {"processes": 2}, "mine.yaml: trainer: accelerate: none is one process, not 2: choose ddp"),
        (
            ("targets", "shapes", "dpo"),
            {"learning_rate": 1e-6, "length_normalization": True, "length_desensitization": 0.5},
            "mine.yaml: targets.shapes.dpo: length_desensitization and length_normalization are two ways to one end",
        ),
        (("targets", "shapes", "alignment"), {}, "targets.shapes: alignment needs feedback_from: the target whose "),
        (
            ("targets", "tuned"),
            {"like": "shapes", "feedback_from": "shapes", "alignment": {"beta": 0}},
            "mine.yaml: targets.tuned.alignment.beta = '0': must be",
        ),
        (
            ("targets", "tuned"),
            {
                "like": "shapes",
                "feedback_from": "shapes",
                "alignment": {},
                "video_generator": {"backend": "python", "make": "mine.py:make"},
            },
            "mine.yaml: targets.tuned: alignment trains the video model's weights: it needs video_generator.backend",
        ),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    tmp_path: Path, local: dict[str, Any], path: Path_, value: object, line: str
) -> None:
    lines = faults(tmp_path, changed(local, path, value))
    assert len(lines) == 1, lines
    assert line in lines[0]


def test_every_fault_has_a_line_of_its_own(tmp_path: Path, local: dict[str, Any]) -> None:
    local["judge"]["backend"] = "oracle"
    local["nonsense"] = 1
    assert len(faults(tmp_path, local)) == 2


def test_a_target_name_that_cannot_be_a_schema_is_refused(tmp_path: Path, local: dict[str, Any]) -> None:
    local["targets"] = {'x"; DROP': local["targets"]["shapes"]}
    (line,) = faults(tmp_path, local)
    assert "lower-case letters, digits and underscores" in line


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words"])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, home: Path, text: str) -> None:
    lines = faults(tmp_path, text)
    assert all("mine.yaml" in line for line in lines[:1])


def test_a_profile_that_does_not_exist_is_refused_with_those_that_do(home: Path) -> None:
    with pytest.raises(SettingsError, match=r"VPO_PROFILE = 'nope': no such profile; .*local"):
        load_profile("nope")


def test_a_mistyped_variable_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_SFTT__EPOCHS", "3")
    with pytest.raises(SettingsError, match="environment: VPO_SFTT__EPOCHS is no setting"):
        load_profile()


@pytest.mark.parametrize("variable", ["VPO_PROFILE", "VPO_SHARED_DATA", "VPO_DEBUG", "VPO_SCREENSHOTS"])
def test_variables_that_are_no_settings_are_let_be(home: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "local")
    load_profile()


def test_the_environment_wins_over_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_TARGETS__SHAPES__SEEDS_PER_PROMPT", "5")
    profile = load_profile()
    assert profile.targets["shapes"].seeds_per_prompt == 5
    assert profile.targets["shapes"].pairs.choice == "best"  # its neighbours stay as the file has them


def test_a_schedule_that_is_none_is_refused(local: dict[str, Any], tmp_path: Path) -> None:
    assert faults(tmp_path, changed(local, ("automation",), {"cron": "every day"})) == [
        "mine.yaml: automation.cron = 'every day': must have five fields: minute, hour, day, month, weekday, such as "
        "`0 3 * * *`"
    ]
