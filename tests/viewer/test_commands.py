"""`vpo look` and the votes in `vpo evaluation`, as they are typed."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from storage.tables import EVAL_VIDEOS, VOTES
from tests.conftest import Vpo
from tests.hand_filled import fill, fill_evaluation, write
from tests.viewer.conftest import TARGET
from vpo_assets.platform import Platform


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_a_port_in_use_is_one_line(vpo: Vpo) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = vpo("look", "--port", str(port))
    assert result.exit_code == 2
    assert one_line(result.stderr).startswith(f"port {port} cannot be used")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--target", "wan"), "there is no target 'wan'; name one with --target: shapes"),
        (("--methods", "vpo,gpt"), "there is no method 'gpt': name some of original, few_shot, sft, vpo"),
        (("--export", "out"), "target shapes has no pairs and no held-out videos yet: run `vpo materialize` first"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(
    vpo: Vpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = vpo("look", *arguments)
    assert result.exit_code == 2
    assert one_line(result.stderr) == complaint


def test_export_says_where_and_how_much(vpo: Vpo, platform: Platform, tmp_path: Path) -> None:
    fill(platform, tmp_path)
    result = vpo("look", "--export", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert one_line(result.stdout) == f"{tmp_path}/out/index.html: 1 of 1 pairs, 0 of 0 queries, 2 clips"


def test_votes_show_in_the_evaluation(vpo: Vpo, platform: Platform) -> None:
    fill_evaluation(platform)
    assert "Blind votes" not in vpo("evaluation").stdout
    clip = {"prompt_id": "p", "query_id": "q", "prompt": "p", "uri": "", "sha256": "", "seed": 1}
    for method in ("original", "vpo"):
        write(platform, EVAL_VIDEOS.at(TARGET), {**clip, "video_id": method, "method": method})
    seen = {"left_method": "vpo", "right_method": "original", "left_video_id": "vpo", "right_video_id": "original"}
    voted = {**seen, "comparison_id": "c", "query_id": "q", "left_policy": None, "right_policy": None}
    rows = [
        {**voted, "vote_id": name, "annotator": name, "choice": choice, "voted_at": datetime.now(UTC)}
        for name, choice in (("ann", "left"), ("bob", "tie"), ("eve", "skip"))
    ]
    table = VOTES.at(TARGET)
    with platform.lake.write({"text": "votes"}) as transaction:
        transaction.insert(table, pa.Table.from_pylist(rows, schema=table.arrow_schema))
    shown = vpo("evaluation").stdout
    assert "Blind votes (2 by 2 people, 95% intervals)" in shown
    assert "75%" in shown
    assert "Two people give the same answer 0% of the time" in shown
    people = json.loads(vpo("evaluation", "--json").stdout)["targets"][TARGET]["people"]
    assert (people["votes"], people["skipped"], people["annotators"]) == (2, 1, 2)
    (row,) = people["preferences"]
    assert (row["method"], row["against"], row["rate"], row["queries"]) == ("vpo", "original", 0.75, 1)
