"""Finding the query files that a profile names: paths, patterns, files of the hub."""

from pathlib import Path

import huggingface_hub
import pytest

from resources.query_locations import NoQueryFile, located

LISTED = ["README.md", "data/b.csv", "data/a.csv", "data/c.parquet"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """A hub with one dataset; what was fetched of it."""
    fetched: list[tuple[str, str, str | None]] = []

    def download(repo_id: str, filename: str, *, repo_type: str, revision: str | None) -> str:
        assert repo_type == "dataset"
        if filename not in LISTED:
            raise OSError(f"404: no {filename}\nand a long explanation")
        fetched.append((repo_id, filename, revision))
        return str(tmp_path / filename)

    def listing(self: object, repo_id: str, *, repo_type: str, revision: str | None) -> list[str]:
        return LISTED

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listing)
    return fetched


def test_plain_paths_stay_in_order_and_each_comes_once() -> None:
    assert located(["b.csv", "a.csv", "b.csv"]) == [Path("b.csv"), Path("a.csv")]


def test_a_pattern_stands_for_the_files_that_are_there(tmp_path: Path) -> None:
    for name in ("2.jsonl", "1.jsonl", "deep/3.jsonl", "other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [f.name for f in located([f"{tmp_path}/*.jsonl"])] == ["1.jsonl", "2.jsonl"]
    assert [f.name for f in located([f"{tmp_path}/**/*.jsonl", f"{tmp_path}/1.jsonl"])] == [
        *("1.jsonl", "2.jsonl", "3.jsonl"),
    ]
    with pytest.raises(NoQueryFile, match=r"queries.files: no file matches .*\*.csv"):
        located([f"{tmp_path}/*.csv"])


def test_files_of_the_hub_are_fetched(hub: list[tuple[str, str, str | None]]) -> None:
    assert [f.name for f in located(["hf://datasets/someone/wishes/data/*.csv"])] == ["a.csv", "b.csv"]
    assert [f.name for f in located(["hf://datasets/someone/wishes@v2/data/c.parquet"])] == ["c.parquet"]
    assert hub == [
        ("someone/wishes", "data/a.csv", None),
        ("someone/wishes", "data/b.csv", None),
        ("someone/wishes", "data/c.parquet", "v2"),
    ]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://datasets/someone/wishes", r"does not say which file: write hf://datasets/OWNER/NAME"),
        ("hf://datasets/someone/wishes/none.csv", r"cannot be fetched: 404: no none.csv$"),
        ("hf://datasets/someone/wishes/*.txt", r"no file of the dataset someone/wishes matches '\*.txt'"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(name: str, message: str) -> None:
    with pytest.raises(NoQueryFile, match=message):
        located([name])
