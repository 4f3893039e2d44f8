import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources import fingerprint
from resources.fingerprint import folder_fingerprint


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    folder_fingerprint.cache_clear()
    yield
    folder_fingerprint.cache_clear()


def fresh(folder: Path) -> str:
    folder_fingerprint.cache_clear()
    return folder_fingerprint(folder)


def make(folder: Path) -> Path:
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"\0" * 1000)
    return folder


def test_equal_folders_have_equal_fingerprints_wherever_they_lie(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    assert folder_fingerprint(one) == folder_fingerprint(other)
    assert len(folder_fingerprint(one)) == 24
    assert set(folder_fingerprint(one)) <= set("0123456789abcdef")


def test_any_change_of_a_file_changes_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    seen = {folder_fingerprint(folder)}
    weights = folder / "unet" / "weights.safetensors"

    weights.write_bytes(b"\0" * 999 + b"\1")  # the same size
    seen.add(fresh(folder))
    weights.rename(folder / "unet" / "other.safetensors")
    seen.add(fresh(folder))
    (folder / "more.txt").write_text("")
    seen.add(fresh(folder))
    (folder / "model_index.json").unlink()
    seen.add(fresh(folder))
    assert len(seen) == 5


def test_contents_do_not_pass_from_one_file_to_the_next(tmp_path: Path) -> None:
    for name, texts in (("one", ("ab", "c")), ("other", ("a", "bc"))):
        (tmp_path / name).mkdir()
        for file, text in zip(("x", "y"), texts, strict=True):
            (tmp_path / name / file).write_text(text)
    assert folder_fingerprint(tmp_path / "one") != folder_fingerprint(tmp_path / "other")


def test_touching_a_small_folder_changes_nothing_and_a_large_one_is_known_by_its_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model")
    before = folder_fingerprint(folder)
    os.utime(folder / "model_index.json", ns=(1, 1))
    assert fresh(folder) == before
    monkeypatch.setattr(fingerprint, "HASHED_WHOLE", 100)
    large = fresh(folder)
    os.utime(folder / "model_index.json", ns=(2, 2))
    assert fresh(folder) != large


def test_it_is_read_once_a_process(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    before = folder_fingerprint(folder)
    (folder / "more.txt").write_text("more")
    assert folder_fingerprint(folder) == before
