"""The exported folder: whole in itself, limited in size, and never over someone else's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assets.conftest import World
from tests.viewer.conftest import TARGET
from tests.viewer.test_application import Seen
from vpo_assets.platform import Platform
from vpo_assets.viewer.export import NothingToShow, UnusableFolder, export


def test_the_folder_holds_everything_that_its_pages_show(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    said = export(world.platform, TARGET, folder, 1000)
    assert (said.pairs, said.queries, said.missing) == (said.of_pairs, said.of_queries, 0)
    clips = set()
    for page in ("index.html", "pairs.html", "gallery.html"):
        seen = Seen((folder / page).read_text())
        for tag, name in (("script", "src"), ("link", "href"), ("a", "href"), ("img", "src")):
            for attributes in seen.all(tag):
                assert (folder / str(attributes[name])).is_file(), attributes
        clips |= {str(image["src"]) for image in seen.all("img")}
    assert {f"clips/{file.name}" for file in (folder / "clips").iterdir()} == clips
    assert len(clips) == said.clips
    assert len(Seen((folder / "pairs.html").read_text()).all("article")) == said.pairs


def test_only_so_many_rows_are_taken_and_the_rest_is_told(world: World, tmp_path: Path) -> None:
    said = export(world.platform, TARGET, tmp_path / "out", 2)
    assert (said.pairs, said.queries) == (2, 2)
    assert said.of_pairs > 2
    assert f"2 of {said.of_pairs} pairs" in str(said)
    assert f"2 of {said.of_pairs}" in Seen((tmp_path / "out" / "pairs.html").read_text()).text


def test_an_export_replaces_an_older_one(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(world.platform, TARGET, folder, 1000)
    fewer = export(world.platform, TARGET, folder, 1)
    assert len(list((folder / "clips").iterdir())) == fewer.clips


def test_a_folder_with_other_files_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mine.mp4").touch()
    with pytest.raises(UnusableFolder, match="holds other files"):
        export(world.platform, TARGET, tmp_path, 1)
    with pytest.raises(UnusableFolder, match="is no folder"):
        export(world.platform, TARGET, tmp_path / "clips" / "mine.mp4", 1)
    assert (tmp_path / "clips" / "mine.mp4").exists()


def test_clips_that_are_gone_are_counted(world: World, tmp_path: Path) -> None:
    for file in world.platform.videos.root.glob("??/??/*"):
        file.unlink()
    said = export(world.platform, TARGET, tmp_path / "out", 1)
    assert said.clips == 0
    assert said.missing > 0
    assert "clips are missing" in str(said)


def test_nothing_to_export(nothing_yet: Platform, tmp_path: Path) -> None:
    with pytest.raises(NothingToShow, match="vpo materialize"):
        export(nothing_yet, TARGET, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
