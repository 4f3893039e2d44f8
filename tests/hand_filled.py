"""A lake filled by hand with one thing of each kind, so that commands have something to show without any model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.checkpoints import CheckpointManifest
from storage.ids import content_id
from storage.ingestion import ingest
from storage.recipe import Recipe, stamped
from storage.tables import (
    CANDIDATE_CRITIQUES,
    CANDIDATES,
    CHECKPOINTS,
    DRAFT_CRITIQUES,
    DRAFTS,
    EVALUATION,
    PREFERENCE_PAIRS,
    QUERIES,
    SFT_DATASET,
    VIDEO_REWARDS,
    VIDEOS,
    Table,
)
from vpo_assets.platform import Platform
from vpo_assets.steps import own_columns

TARGET = "shapes"
HOSTILE = "[bold red]a disc[/] <b>heads</b> \x1b[31meast'); DROP TABLE queries; -- [link=file:///etc/passwd]x[/link]"
QUERY_ID = content_id(HOSTILE)
SFT, DPO = "sft-aaaa", "dpo-bbbb"


def write(platform: Platform, table: Table, *rows: dict[str, Any]) -> None:
    """Write rows; columns that are not given are empty."""
    complete = [{column.name: row.get(column.name) for column in table.columns} for row in rows]
    made = own_columns(table, complete)
    made = made.append_column("input_id", made[table.key])
    with platform.lake.write({"asset": table.label}) as transaction:
        transaction.upsert(table, stamped(made, Recipe({"by": "hand"}).id, "by hand"))


def fill(platform: Platform, folder: Path) -> None:
    """A query from a file, a draft, an SFT checkpoint, two filmed candidates, a pair, and a DPO checkpoint."""
    file = folder / "wishes.jsonl"
    file.write_text(json.dumps("a cube just chilling") + "\n" + json.dumps(HOSTILE) + "\n", encoding="utf-8")
    ingest(platform.lake, file)
    write(
        platform,
        QUERIES,
        {"query_id": QUERY_ID, "query": HOSTILE, "split": "dpo", "safety": "general", "keep": True},
    )
    write(platform, DRAFTS, {"prompt_id": "draft1", "query_id": QUERY_ID, "prompt": f"draft of {HOSTILE}"})
    write(platform, DRAFT_CRITIQUES, critique("draft1", "imprecise", "the direction is missing", "a better draft"))
    messages = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "a better draft"}]
    write(
        platform,
        SFT_DATASET,
        {"query_id": QUERY_ID, "messages": messages, "origin": "refined", "prompt_id": "draft1"},
    )
    checkpoint(platform, SFT, "sft", None, "SmolLM2", SFT_DATASET)
    branch(platform)
    checkpoint(platform, DPO, "dpo", TARGET, SFT, PREFERENCE_PAIRS.at(TARGET))


def critique(prompt_id: str, verdict: str, said: str, refined: str | None = None) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "query_id": QUERY_ID,
        "prompt": prompt_id,
        "verdict": verdict,
        "critique": said,
        "refined": refined,
    }


def branch(platform: Platform) -> None:
    names = ("good", "poor")
    for k, name in enumerate(names):
        row = {"prompt_id": name, "query_id": QUERY_ID, "k": k, "policy": SFT, "prompt": f"the {name} prompt"}
        write(platform, CANDIDATES.at(TARGET), row)
        write(platform, CANDIDATE_CRITIQUES.at(TARGET), critique(name, "aligned", "nothing to say"))
        clip = np.full((3, 16, 16, 3), 60 * k, np.uint8)
        video = {**row, **vars(platform.videos.put(clip, 4.0)), "video_id": f"video-{name}", "seed": 7}
        write(platform, VIDEOS.at(TARGET), video)
        dimensions = [{"dimension": "alignment", "score": 0.5 + 0.25 * k}]
        reward = {**video, "score": 3.0 - k, "dimensions": dimensions}
        write(platform, VIDEO_REWARDS.at(TARGET), reward)
    pair = {
        "pair_id": "pair1",
        "query_id": QUERY_ID,
        "messages": [{"role": "user", "content": HOSTILE}],
        "chosen": "the good prompt",
        "rejected": "the poor prompt",
        "feedback": "video",
        "margin": 1.0,
        "chosen_prompt_id": "good",
        "rejected_prompt_id": "poor",
        "chosen_video_ids": ["video-good"],
        "rejected_video_ids": ["video-poor"],
    }
    write(platform, PREFERENCE_PAIRS.at(TARGET), pair)


def checkpoint(platform: Platform, checkpoint_id: str, stage: str, target: str | None, base: str, data: Table) -> None:
    snapshots = {data.label: platform.lake.snapshot()}

    def put_weights(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_bytes(b"some weights")
        return {"loss": 0.5}

    manifest = CheckpointManifest(
        id=checkpoint_id, stage=stage, target=target, base=base, recipe={"epochs": 2}, inputs=snapshots
    )
    platform.checkpoints.commit(checkpoint_id, manifest, put_weights)
    row = {
        "checkpoint_id": checkpoint_id,
        "stage": stage,
        "target": target,
        "path": checkpoint_id,
        "base": base,
        "metrics": json.dumps({"loss": 0.5}),
        "settings": json.dumps({"epochs": 2}),
        "snapshots": json.dumps(snapshots),
    }
    write(platform, CHECKPOINTS, row)


def fill_evaluation(platform: Platform, checkpoints: dict[str, str] | None = None) -> None:
    """An evaluation in which vpo is best."""
    ids = checkpoints or {"sft": SFT, "vpo": DPO}
    scores = {"original": 1.0, "few_shot": 2.0, "sft": 3.0, "vpo": 4.0}
    rows: list[dict[str, Any]] = []
    for method, score in scores.items():
        for metric, value in zip(("aligned", "unsafe", "imprecise", "refusal"), (70.0, 5.0, 20.0, 5.0), strict=True):
            rows.append({"section": "text_level", "method": method, "metric": metric, "value": value})
        rows.append(measured("video_level", method, "score", score))
        rows.append({"section": "video_level", "method": method, "metric": "dimension/safety", "value": 0.5})
        rows.append({"section": "video_level", "method": method, "metric": "dimension/alignment", "value": score / 5})
    rows.append({**measured("video_level", "vpo", "win_rate", 0.75), "against": "original"})
    for method, against in (("vpo", "sft"), ("vpo", "original"), ("sft", "original")):
        rows.append({**measured("gains", method, "score", scores[method] - scores[against]), "against": against})
    write(platform, EVALUATION.at(TARGET), *(identified(row, ids) for row in rows))


def measured(section: str, method: str, metric: str, value: float) -> dict[str, Any]:
    interval = {"value": value, "low": value - 0.5, "high": value + 0.5}
    return {"section": section, "method": method, "metric": metric, **interval}


def identified(row: dict[str, Any], checkpoints: dict[str, str]) -> dict[str, Any]:
    parts: Sequence[str | None] = (row["section"], row["method"], row.get("against"), row["metric"])
    return {**row, "n": 100, "evaluation_id": content_id(*parts), "checkpoint_id": checkpoints.get(row["method"])}
