"""The viewer as a folder: pages that open from a disk, with the clips beside them.

Belongs here: which rows are taken along, and writing. Does not belong here: what a page shows.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vpo_assets.platform import Platform
from vpo_assets.viewer.filters import PairFilter, QueryFilter
from vpo_assets.viewer.gallery import query_page
from vpo_assets.viewer.overview import overview
from vpo_assets.viewer.pages import STATIC, Pages, exported_clip
from vpo_assets.viewer.pairs import pair_page
from vpo_assets.viewer.results import Results, ShownClip, UnknownClip

INDEX = "index.html"


class UnusableFolder(ValueError):
    """A folder that holds something else; says what to do."""


class NothingToShow(LookupError):
    """A target with neither pairs nor held-out videos."""


@dataclass(frozen=True)
class Exported:
    """What was written; `missing`: clips whose files are gone."""

    index: Path
    pairs: int
    of_pairs: int
    queries: int
    of_queries: int
    clips: int
    missing: int

    def __str__(self) -> str:
        lost = f", {self.missing} clips are missing" if self.missing else ""
        return (
            f"{self.index}: {self.pairs} of {self.of_pairs} pairs, {self.queries} of {self.of_queries} queries, "
            f"{self.clips} clips{lost}"
        )


def export(platform: Platform, target: str, folder: Path, rows: int) -> Exported:
    """Write the viewer of a target into a folder: at most so many pairs, and as many held-out queries.

    They are those with the first ids, which are hashes: a sample that no result has chosen. A folder that an export
    wrote before is written over. Raises NothingToShow, UnusableFolder.
    """
    results, pages = Results(platform, target), Pages(target, live=False)
    all_pairs, all_queries = PairFilter(), QueryFilter()
    pairs, queries = pair_page(results, all_pairs, rows), query_page(results, all_queries, rows)
    if not pairs.pairs and not queries.queries:
        raise NothingToShow(f"target {target} has no pairs and no held-out videos yet: run `vpo materialize` first")
    _make_room(folder)
    clips = [clip for pair in pairs.pairs for side in (pair.chosen, pair.rejected) for clip in side.clips]
    clips += [made.clip for query in queries.queries for made in query.methods if made.clip]
    missing = _copy_clips(results, clips, folder)
    shutil.copytree(STATIC, folder / "static", dirs_exist_ok=True)
    dimensions = results.dimensions
    (folder / "pairs.html").write_text(pages.pairs(pairs, all_pairs, dimensions), encoding="utf-8")
    (folder / "gallery.html").write_text(pages.gallery(queries, all_queries, dimensions), encoding="utf-8")
    (folder / INDEX).write_text(pages.overview(overview(results)), encoding="utf-8")
    return Exported(
        folder / INDEX,
        len(pairs.pairs),
        pairs.total,
        len(queries.queries),
        queries.total,
        len({clip.uri for clip in clips}) - missing,
        missing,
    )


def _make_room(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UnusableFolder(f"{folder} is no folder: name another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "static" / "viewer.css").is_file():
        raise UnusableFolder(f"{folder} holds other files: name an empty or a new folder")
    shutil.rmtree(folder / "clips", ignore_errors=True)
    (folder / "clips").mkdir(parents=True)


def _copy_clips(results: Results, clips: Iterable[ShownClip], folder: Path) -> int:
    """How many of the clips are missing."""
    missing = 0
    for uri in {clip.uri for clip in clips}:
        try:
            file, _ = results.file_of(uri)
        except UnknownClip:
            missing += 1
            continue
        shutil.copyfile(file, folder / exported_clip(uri))
    return missing
