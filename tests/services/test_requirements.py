"""The pinned packages of the service: that they are pinned, and agree with what is known of the model's code."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

FOLDER = Path(__file__).resolve().parents[2] / "services" / "visionreward"


def pins(file: str) -> dict[str, Version]:
    """Package and version of every line; each must be pinned to one."""
    lines = [line.split("#")[0].strip() for line in (FOLDER / file).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
    return {requirement.name: Version(next(iter(requirement.specifier)).version) for requirement in requirements}


def test_every_package_is_pinned_and_the_full_list_holds_what_is_asked_for() -> None:
    asked, full = pins("requirements.in"), pins("requirements.txt")
    assert {name: full.get(name) for name in asked} == asked
    assert len(full) > len(asked)


def test_the_pins_keep_to_what_the_models_code_can_do() -> None:
    full = pins("requirements.txt")
    assert Version("4.42") <= full["transformers"] < Version("4.47")
    assert full["torchvision"] < Version("0.17")  # pytorchvideo imports a module that this version took away
    assert full["numpy"] < Version("2")  # torch 2.1 was built for numpy 1
    assert full["torch"].release[:2] == (2, 1)
    assert full["xformers"] == Version("0.0.23.post1")  # the one that was built for this torch
