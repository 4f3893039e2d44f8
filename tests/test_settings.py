"""Profiles that cannot be used: each fault in one line, with its key and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from resources.settings import PROFILES, SettingsError, load_profile

Path_ = tuple[str, ...]


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
    names = [file.stem for file in PROFILES.glob("*.yaml")]
    assert "local" in names
    assert {load_profile(name).home for name in names} == {home}


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("targets",), None, "mine.yaml: targets is missing"),
        (("targets",), {}, "mine.yaml: targets = '{}': "),
        (("targets", "shapes", "video_generator"), None, "mine.yaml: targets.shapes.video_generator is missing"),
        (("judge", "backend"), "oracle", "mine.yaml: judge.backend = 'oracle': must be 'rules'"),
        (("targets", "shapes", "video_generator", "backend"), "sora", "video_generator.backend = 'sora': must be"),
        (("language_model", "backend"), "magic", "mine.yaml: language_model.backend = 'magic': must be"),
        (("sft", "epoch"), 3, "mine.yaml: sft.epoch is no setting"),
        (("nonsense",), 1, "mine.yaml: nonsense is no setting"),
        (("sft", "learning_rate"), "fast", "mine.yaml: sft.learning_rate = 'fast': must be"),
        (("refresh", "video_batch"), 0, "mine.yaml: refresh.video_batch = '0': must be"),
        (("targets", "shapes", "pairs", "margin"), -1, "mine.yaml: targets.shapes.pairs.margin = '-1': "),
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
