"""Where things come from: from a checkpoint to its pairs, videos, prompts, queries and the files of those.

Belongs here: following the lineage that every row carries, and showing it as a tree. Does not belong here: changing
anything.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.text import Text
from rich.tree import Tree

from storage.checkpoints import BrokenCheckpoint
from storage.tables import (
    CANDIDATE_CRITIQUES,
    CANDIDATES,
    CHECKPOINTS,
    DRAFT_CRITIQUES,
    DRAFTS,
    EVAL_CRITIQUES,
    EVAL_PROMPTS,
    EVAL_REWARDS,
    EVAL_VIDEOS,
    PREFERENCE_PAIRS,
    QUERIES,
    RAW_PROMPTS,
    SFT_DATASET,
    VIDEO_PAIRS,
    VIDEO_REWARDS,
    VIDEOS,
    Table,
)
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line
from vpo_assets.target import feedback_source

LONGEST_TEXT = 300
EXAMPLES = 3
"""So many training rows of a checkpoint are followed to their sources, unless told otherwise."""

Row = dict[str, Any]


class UnknownId(ValueError):
    """An id that nothing in the lake has."""


@dataclass(frozen=True)
class _Prompts:
    """The tables in which a kind of prompts, their critiques and their videos are."""

    kind: str
    prompts: Table
    critiques: Table
    videos: Table | None = None
    rewards: Table | None = None


def trace(platform: Platform, identifier: str, examples: int = EXAMPLES) -> Tree:
    """The tree of everything that a query, prompt, video, pair or checkpoint comes from. Raises UnknownId."""
    return _Tracer(platform, examples).trace(identifier)


def _candidates(target: str) -> _Prompts:
    tables = [table.at(target) for table in (CANDIDATES, CANDIDATE_CRITIQUES, VIDEOS, VIDEO_REWARDS)]
    return _Prompts(f"{target} candidate", *tables)


class _Tracer:
    """Looks rows up as of one snapshot of the lake: now, or when a checkpoint was trained."""

    def __init__(self, platform: Platform, examples: int, version: int | None = None) -> None:
        self._platform = platform
        self._examples = examples
        self._version = version
        self._kinds = [_Prompts("draft", DRAFTS, DRAFT_CRITIQUES)]
        for target in platform.profile.targets:
            self._kinds.append(_candidates(target))
            tables = [table.at(target) for table in (EVAL_PROMPTS, EVAL_CRITIQUES, EVAL_VIDEOS, EVAL_REWARDS)]
            self._kinds.append(_Prompts(f"{target} evaluation prompt", *tables))

    def trace(self, identifier: str) -> Tree:
        checkpoint = self._row(CHECKPOINTS, identifier)
        if checkpoint is not None:
            return self._checkpoint(checkpoint)
        for target in self._platform.profile.targets:
            pair = self._row(PREFERENCE_PAIRS.at(target), identifier)
            if pair is not None:
                return self._pair(pair, target)
            films = self._row(VIDEO_PAIRS.at(target), identifier)
            if films is not None:
                return self._pair_of_films(films, target)
        for kind in self._kinds:
            video = self._row(kind.videos, identifier) if kind.videos else None
            if video is not None:
                tree = self._video(kind, video)
                self._add_prompt(tree, video["prompt_id"], with_videos=False)
                return tree
        if any(self._row(kind.prompts, identifier) for kind in self._kinds):
            tree = Tree(Text(""), hide_root=True)
            self._add_prompt(tree, identifier, with_videos=True)
            return tree
        if self._row(RAW_PROMPTS, identifier) is not None:
            tree = Tree(Text(""), hide_root=True)
            self._add_query(tree, identifier)
            return tree
        raise UnknownId(
            f"nothing in the lake has the id {one_line(identifier, 80)!r}: it takes the id of a query, prompt, video, "
            "pair or checkpoint (see `vpo sql`)"
        )

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def _checkpoint(self, row: Row) -> Tree:
        tree = Tree(_line("checkpoint", row["checkpoint_id"], stage=row["stage"], target=row["target"]))
        tree.add(_line("folder", self._folder(row["checkpoint_id"])))
        tree.add(_line("settings", _flat(row["settings"])))
        tree.add(_line("metrics", _flat(row["metrics"])))
        base = self._row(CHECKPOINTS, row["base"])
        if base is None:
            tree.add(_line("trained from", row["base"]))
        else:
            tree.add(Text("trained from", style="bold")).add(self._checkpoint(base))
        for label, snapshot in json.loads(row["snapshots"] or "{}").items():
            then = _Tracer(self._platform, self._examples, int(snapshot))
            then.add_training_rows(tree, str(label), row["target"])
        return tree

    def _folder(self, checkpoint_id: str) -> str:
        folder = self._platform.checkpoints.path(checkpoint_id)
        try:
            self._platform.checkpoints.load(checkpoint_id, verify=False)
        except BrokenCheckpoint as error:
            return f"{folder} (broken: {error})"
        return str(folder)

    def add_training_rows(self, tree: Tree, label: str, target: str | None) -> None:
        """The rows a checkpoint was trained on, as of its snapshot: how many of which kind, and some of them."""
        table, column, show = self._training_rows(label, target)
        rows = self._platform.lake.read(table, version=self._version).sort_by(table.key).to_pylist()
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(r[column] for r in rows).items()))
        branch = tree.add(_line("trained on", f"{len(rows)} rows of {label}", snapshot=self._version, kinds=counts))
        for row in rows[: self._examples]:
            branch.add(show(row))
        if len(rows) > self._examples:
            branch.add(Text(f"… and {len(rows) - self._examples} more (--rows)", style="dim"))

    def _training_rows(self, label: str, target: str | None) -> tuple[Table, str, Callable[[Row], Tree]]:
        """The table of that label, the column that tells kinds of its rows apart, and how a row is shown."""
        if target is not None and label == PREFERENCE_PAIRS.at(target).label:
            return PREFERENCE_PAIRS.at(target), "feedback", lambda row: self._pair(row, target)
        if target is not None and label == VIDEO_PAIRS.at(target).label:
            return VIDEO_PAIRS.at(target), "condition", lambda row: self._pair_of_films(row, target)
        return SFT_DATASET, "origin", self._example

    def _example(self, row: Row) -> Tree:
        tree = Tree(_line("example", row["query_id"], origin=row["origin"]))
        tree.add(_line("answer", row["messages"][-1]["content"] if row["messages"] else ""))
        self._add_prompt(tree, row["prompt_id"], with_videos=False)
        return tree

    # ---- pairs, videos, prompts, queries ---------------------------------------------------------------------

    def _pair(self, row: Row, target: str) -> Tree:
        kind = _candidates(feedback_source(self._platform.profile, target))
        tree = Tree(_line("pair", row["pair_id"], feedback=row["feedback"], margin=row["margin"]))
        for side in ("chosen", "rejected"):
            branch = tree.add(_line(side, row[side]))
            for video_id in row[f"{side}_video_ids"] or ():
                video = self._row(kind.videos, video_id) if kind.videos else None
                branch.add(self._video(kind, video) if video else _line("video", video_id, note="not in the lake"))
            prompt_id = row[f"{side}_prompt_id"]
            if prompt_id is None:  # of feedback on texts: the critique's refinement, which is no candidate
                branch.add(_line("refined", "from the rejected prompt, by its critique"))
            else:
                self._add_prompt(branch, prompt_id, with_videos=False, with_query=False)
        self._add_query(tree, row["query_id"])
        return tree

    def _pair_of_films(self, row: Row, target: str) -> Tree:
        kind = _candidates(feedback_source(self._platform.profile, target))
        assert kind.videos is not None
        tree = Tree(_line("pair of films", row["pair_id"], condition=row["condition"], margin=row["margin"]))
        tree.add(_line("text", row["prompt"]))
        for side in ("chosen", "rejected"):
            video = self._row(kind.videos, row[f"{side}_video_id"])
            branch = tree.add(_line(side, row[f"{side}_video_id"], note=None if video else "not in the lake"))
            if video is not None:
                branch.add(self._video(kind, video))
                self._add_prompt(branch, video["prompt_id"], with_videos=False, with_query=False)
        self._add_query(tree, row["query_id"])
        return tree

    def _video(self, kind: _Prompts, row: Row) -> Tree:
        path = self._platform.videos.path(row["uri"])
        intact = self._platform.videos.is_intact(row["uri"], row["bytes"])
        tree = Tree(_line("video", row["video_id"], seed=row["seed"], frames=row["frames"], fps=row["fps"]))
        tree.add(_line("file", str(path), note=None if intact else "missing or damaged"))
        reward = self._row(kind.rewards, row["video_id"]) if kind.rewards else None
        if reward is not None:
            dimensions = {entry["dimension"]: entry["score"] for entry in reward["dimensions"] or ()}
            tree.add(_line("score", f"{reward['score']:.3f}", **dimensions))
        return tree

    def _add_prompt(self, tree: Tree, prompt_id: str | None, *, with_videos: bool, with_query: bool = True) -> None:
        """A prompt with its critique and the query it was written for."""
        for kind in self._kinds:
            row = self._row(kind.prompts, prompt_id) if prompt_id else None
            if row is None:
                continue
            method = row.get("method")
            branch = tree.add(_line(kind.kind, row["prompt_id"], method=method, by=row.get("policy")))
            branch.add(_line("prompt", row["prompt"]))
            critique = self._row(kind.critiques, row["prompt_id"])
            if critique is not None:
                found = branch.add(_line("critique", critique["critique"], verdict=critique["verdict"]))
                if critique["refined"] is not None:
                    found.add(_line("refined", critique["refined"]))
            if with_videos and kind.videos:
                for video in self._rows(kind.videos, "prompt_id", row["prompt_id"]):
                    branch.add(self._video(kind, video))
            if with_query:
                self._add_query(branch, row["query_id"])
            return
        tree.add(_line("prompt", str(prompt_id), note="not in the lake any more"))

    def _add_query(self, tree: Tree, query_id: str) -> None:
        """A query, and the file and line it came from."""
        raw, curated = self._row(RAW_PROMPTS, query_id), self._row(QUERIES, query_id)
        if curated is not None:
            kept = "kept" if curated["keep"] else f"dropped: {curated['drop_reason']}"
            branch = tree.add(_line("query", query_id, split=curated["split"], safety=curated["safety"], note=kept))
            branch.add(_line("text", curated["query"]))
        else:
            branch = tree.add(_line("query", query_id, note="not curated yet" if raw else "not in the lake any more"))
        if raw is not None:
            source = f"{raw['source']}, line {raw['source_line']}"
            branch.add(_line("as written", raw["text"]))
            branch.add(_line("source", source, sha256=(raw["source_sha256"] or "")[:12], first_seen=raw["first_seen"]))

    # ---- rows ------------------------------------------------------------------------------------------------

    def _row(self, table: Table, key: str) -> Row | None:
        rows = self._rows(table, table.key, key)
        return rows[0] if rows else None

    def _rows(self, table: Table, column: str, value: str) -> list[Row]:
        rows: list[Row] = self._platform.lake.read(
            table, version=self._version, where=f"{column} = ?", parameters=[value]
        ).to_pylist()
        return rows


def _flat(text: str | None) -> str:
    """A JSON object as `key value, ...`: easier on the eye."""
    values = json.loads(text or "{}") or {}
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if not isinstance(value, list | dict))


def _line(what: str, value: str | None, *, note: str | None = None, **details: Any) -> Text:
    """One line of the tree. Texts are never taken for markup, and cannot move the cursor."""
    line = Text.assemble((what, "bold"), " ", one_line(value or "", LONGEST_TEXT))
    for name, detail in details.items():
        if detail is not None and detail != "":
            shown = f"{detail:.3g}" if isinstance(detail, float) else one_line(detail, LONGEST_TEXT)
            line.append(f"  {name} {shown}", style="dim")
    if note:
        line.append(f"  ({one_line(note, LONGEST_TEXT)})", style="yellow")
    return line
