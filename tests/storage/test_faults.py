"""Disks that are full, catalogs that are locked or lost, damaged files: what is said, and that nothing is lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from storage.checkpoints import BrokenCheckpoint, CheckpointManifest, CheckpointStore
from storage.lake import Lake, LakeError
from storage.maintenance import Retention, maintain
from storage.recipe import Recipe, stamped
from storage.refresh import RefreshConfig, refresh
from storage.videos import VideoStore
from tests.storage.things import THINGS, Maker, inputs_of, rows_of

A = Recipe({"model": "a"})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root of a Linux system that lets it may mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write(lake: Lake, words: list[str]) -> None:
    with lake.write({"asset": "things"}) as transaction:
        transaction.upsert(THINGS, stamped(rows_of(words, A), A.id, "run"))


def noise(count: int) -> list[str]:
    return [os.urandom(60).hex() for _ in range(count)]


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_committed_and_says_what_to_do(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    with Lake(small_disk / "lake") as lake:
        lake.create(THINGS)
        write(lake, ["first"])
        committed = 1
        with pytest.raises(LakeError, match="The disk seems to be full: free some space"):
            for _ in range(200):
                write(lake, noise(500))
                committed += 500
    ballast.unlink()
    with Lake(small_disk / "lake") as lake:
        assert lake.count(THINGS) == committed > 500
        write(lake, ["after"])
        assert lake.count(THINGS) == committed + 1
        maintain(lake, Retention(grace_hours=0), ())
        assert lake.count(THINGS) == committed + 1


@pytest.mark.slow
def test_a_refresh_on_a_full_disk_goes_on_where_it_stopped(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    words = [f"{number:04}" + "".join(noise(6)) for number in range(2000)]
    with Lake(small_disk / "lake") as lake:
        lake.create(THINGS)
        ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 700_000))
        maker = Maker(A)
        with pytest.raises(LakeError, match="The disk seems to be full"):
            refresh(lake, THINGS, inputs_of(words), A, maker, RefreshConfig(batch_size=100), run_id="full")
    ballast.unlink()
    with Lake(small_disk / "lake") as lake:
        done = lake.count(THINGS)
        again = Maker(A)
        report = refresh(
            lake, THINGS, inputs_of(words[: done + 100]), A, again, RefreshConfig(batch_size=100), run_id="b"
        )
        assert report.reused == done and len(again.asked) == 100 and report.failed == 0


@pytest.mark.slow
def test_videos_and_checkpoints_on_a_full_disk_leave_nothing_behind(small_disk: Path) -> None:
    videos = VideoStore(small_disk / "videos")
    random = np.random.default_rng(0)
    stored = []
    with pytest.raises(OSError, match="No space left on device"):
        for _ in range(200):
            clip = random.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
            stored.append((videos.put(clip, 4.0), clip))
    assert len(stored) > 3 and not list(small_disk.rglob("*.unfinished"))
    assert all((videos.get(file.uri, file.sha256) == clip).all() for file, clip in stored)

    store = CheckpointStore(small_disk / "checkpoints")

    def too_big(folder: Path) -> dict[str, float]:
        (folder / "weights").write_bytes(b"x" * 10_000_000)
        return {}

    with pytest.raises(OSError, match="No space left on device"):
        store.commit("sft-1", CheckpointManifest(id="sft-1", stage="sft", base="b", recipe={}), too_big)
    assert not store.exists("sft-1") and list(store.root.iterdir()) == []


LOCKER = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1])
held.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_catalog_that_another_program_locks_for_a_while_is_waited_for(tmp_path: Path) -> None:
    with Lake(tmp_path) as lake:
        refresh(lake, THINGS, inputs_of(["before"]), A, Maker(A), RefreshConfig(), run_id="before")
        locker = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(tmp_path / "lake.sqlite"), "3"], stdout=subprocess.PIPE, text=True
        )
        assert locker.stdout is not None and locker.stdout.readline() == "locked\n"
        assert lake.count(THINGS) == 1  # readers do not wait
        assert locker.poll() is None
        with pytest.raises(LakeError, match="Another program holds the lake's catalog"):
            write(lake, ["at once"])
        maker = Maker(A)
        report = refresh(lake, THINGS, inputs_of(["during"]), A, maker, RefreshConfig(), run_id="waits")
        assert locker.wait() == 0
        assert maker.asked == ["during"] and (report.new, report.failed) == (1, 0)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["missing", "empty"])
def test_a_lost_catalog_is_not_replaced_by_an_empty_one(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    with Lake(tmp_path) as lake:
        lake.create(THINGS)
        write(lake, noise(20))
    files = sorted((tmp_path / "data").rglob("*.parquet"))
    catalog = tmp_path / "lake.sqlite"
    copy = catalog.read_bytes()
    damage(catalog)
    with pytest.raises(LakeError, match=r"has lost its catalog: lake\.sqlite is missing or empty\. Restore it"):
        Lake(tmp_path)
    catalog.write_bytes(copy)
    with Lake(tmp_path) as lake:
        assert lake.count(THINGS) == 20 and sorted((tmp_path / "data").rglob("*.parquet")) == files


def test_a_cut_catalog_is_named(tmp_path: Path) -> None:
    with Lake(tmp_path) as lake:
        lake.create(THINGS)
    catalog = tmp_path / "lake.sqlite"
    catalog.write_bytes(catalog.read_bytes()[:3000])
    with pytest.raises(LakeError, match=r"lake\.sqlite\) is damaged: restore the lake's folder from a copy"):
        Lake(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(bytes(b ^ 255 if 30 < i < 400 else b for i, b in enumerate(file.read_bytes()))),
    ],
    ids=["missing", "cut", "altered"],
)
def test_a_damaged_data_file_is_named_with_its_table(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    other = THINGS.at("shapes")
    with Lake(tmp_path) as lake:
        lake.create(THINGS, other)
        write(lake, noise(50))
        with lake.write({}) as transaction:
            transaction.upsert(other, stamped(rows_of(noise(50), A), A.id, "run"))
        file = next((tmp_path / "data" / "shapes").rglob("*.parquet"))
        copy = file.read_bytes()
        damage(file)
        with pytest.raises(LakeError, match=r"shapes\.things is damaged or gone: restore it from a copy") as caught:
            lake.read(other)
        assert str(file) in str(caught.value)
        assert lake.read(THINGS).num_rows == 50
    file.write_bytes(copy)
    with Lake(tmp_path) as lake:
        assert lake.read(other).num_rows == 50


# ---- checkpoints that mean no good -------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def committed(tmp_path: Path, weights: bytes) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")

    def fill(folder: Path) -> dict[str, float]:
        (folder / "model.safetensors").write_bytes(weights)
        return {}

    store.commit("sft-1", CheckpointManifest(id="sft-1", stage="sft", base="b", recipe={}), fill)
    return store


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter/weights.PT", "modeling_evil.py"])
def test_a_file_that_runs_code_is_refused_even_beside_good_weights(tmp_path: Path, name: str) -> None:
    store = committed(tmp_path, safetensors(GOOD))
    store.load("sft-1")
    file = store.path("sft-1") / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps({"weight": 1}))
    for verify in (True, False):
        with pytest.raises(BrokenCheckpoint, match=rf"{name} is of a kind that runs code .* \.safetensors only"):
            store.load("sft-1", verify=verify)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (b"", "length of its header"),
        (safetensors(GOOD, length=2**63), "length of its header"),
        (safetensors(GOOD, length=3), "header cannot be read"),
        (safetensors([1, 2]), "header cannot be read"),
        (safetensors({"weight": {"data_offsets": [0, 2**40]}}), "speaks of another size"),
        (safetensors(GOOD, b"\0" * 4), "speaks of another size"),
        (pickle.dumps({"weight": [1.0] * 100}), "is no safetensors file"),
    ],
)
def test_a_tampered_safetensors_is_refused_though_its_manifest_fits(
    tmp_path: Path, weights: bytes, complaint: str
) -> None:
    with pytest.raises(BrokenCheckpoint, match=complaint):
        committed(tmp_path, weights).load("sft-1")
    with pytest.raises(BrokenCheckpoint, match="was altered"):
        store = committed(tmp_path / "other", safetensors(GOOD))
        (store.path("sft-1") / "model.safetensors").write_bytes(safetensors(GOOD, b"\0" * 7 + b"\1"))
        store.load("sft-1")


def test_times_that_go_backwards_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Earlier:
            return super().now(tz) - datetime.timedelta(days=400)

    words = [f"w{number}" for number in range(20)]
    with Lake(tmp_path) as lake:
        refresh(lake, THINGS, inputs_of(words), A, Maker(A), RefreshConfig(), run_id="one")
        before = lake.read(THINGS).sort_by("thing_id")
        for module in ("storage.recipe", "storage.refresh"):
            monkeypatch.setattr(f"{module}.datetime.datetime", Earlier)
        maker = Maker(A)
        report = refresh(lake, THINGS, inputs_of([*words, "new"]), A, maker, RefreshConfig(), run_id="two")
        assert maker.asked == ["new"] and (report.reused, report.new, report.seconds >= 0) == (20, 1, True)
        after = lake.read(THINGS).sort_by("thing_id")
        kept = after.filter(pc.not_equal(after["input_id"], "new"))
        assert kept.equals(before)
