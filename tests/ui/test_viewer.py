"""The viewer as people use it, in a real browser: look, filter, vote blindly, find the votes in the evaluation.

The results are those of the fake graph, with clips that its stand-in renders. The tests of this file build on each
other: they share one viewer and are run in order. Pictures of what was seen go where VPO_SCREENSHOTS says.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from storage.tables import EVAL_VIDEOS, PREFERENCE_PAIRS, QUERIES, VOTES
from storage.videos import VideoStore
from tests.assets.conftest import World, queries_of, write_queries
from tests.conftest import vpo_process
from tests.ui.serving import end_group, free_port
from tests.ui.test_hostile_texts import CHROMIUM, HOSTILE, Watched

TARGET = "shapes"
VOTES_TAKEN = 20
START_SECONDS = 60.0

pytestmark = [
    pytest.mark.ui,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]


@dataclass(frozen=True)
class Shown:
    """A running viewer and the world that it shows."""

    address: str
    world: World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Results whose pairs have animated pictures, and whose evaluation has videos."""
    home = tmp_path_factory.mktemp("viewer")
    write_queries(home / "queries.jsonl", queries_of(48))
    world = World(home)
    world.materialize()
    as_mp4(world)
    return world


def as_mp4(world: World) -> None:
    """The held-out clips once more, as a big video model's would be stored."""
    store = VideoStore(world.platform.videos.root, "mp4")
    rows = world.rows(f"SELECT video_id, uri, sha256 FROM {EVAL_VIDEOS.at(TARGET).qualified}")
    with world.platform.lake.write({"text": "mp4"}) as transaction:
        for row in rows:
            stored = store.put(world.platform.videos.get(row["uri"], row["sha256"]), 4.0)
            transaction.execute(
                f"UPDATE {EVAL_VIDEOS.at(TARGET).qualified} SET uri = ?, sha256 = ? WHERE video_id = ?",
                [stored.uri, stored.sha256, row["video_id"]],
            )


def make_hostile(world: World) -> None:
    """Hostile texts in the first pairs, and as held-out queries."""
    pairs = world.rows(f"SELECT pair_id FROM {PREFERENCE_PAIRS.at(TARGET).qualified} ORDER BY pair_id")
    held_out = world.rows(f"SELECT DISTINCT query_id FROM {EVAL_VIDEOS.at(TARGET).qualified} ORDER BY query_id")
    with world.platform.lake.write({"text": "hostile"}) as transaction:
        for text, row in zip(HOSTILE, pairs, strict=False):
            transaction.execute(
                f"UPDATE {PREFERENCE_PAIRS.at(TARGET).qualified} SET chosen = ? WHERE pair_id = ?",
                [text, row["pair_id"]],
            )
        for number, row in enumerate(held_out):
            transaction.execute(
                f"UPDATE {QUERIES.qualified} SET query = ? WHERE query_id = ?",
                [HOSTILE[number % len(HOSTILE)], row["query_id"]],
            )


@pytest.fixture(scope="module")
def shown(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """`vpo look` over that world."""
    port = free_port()
    log = tmp_path_factory.mktemp("log") / "look.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "vpo_assets.command_line", "look", "--port", str(port)],
            env={**os.environ, "VPO_PROFILE": str(world.file)},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_shown(address, process, log)
            yield Shown(address, world)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) in (0, 130)
        finally:
            end_group(process)
    assert "Traceback" not in log.read_text()


def wait_until_shown(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the viewer ended at once:\n{log.read_text()[-3000:]}"
        with suppress(URLError, OSError), urlopen(address, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"the viewer did not start within {START_SECONDS:.0f} s")


@pytest.fixture(scope="module")
def watched(shown: Shown) -> Iterator[Watched]:
    """A browser in which nothing of a text may run, and nothing may be missing or forbidden: it ends before `shown`."""
    assert shown.address
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, device_scale_factor=1.5)
        page.set_default_timeout(30_000)
        complaints: list[str] = []

        def note(message: ConsoleMessage) -> None:
            refused_name = "status of 400" in message.text
            if message.type in ("error", "warning") and not refused_name:
                complaints.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield Watched(page)
        browser.close()
    assert complaints == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("VPO_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def take(page: Page, file: Path) -> None:
    page.wait_for_timeout(1_000)
    page.screenshot(path=file)


def all_pictures_are_there(page: Page) -> None:
    """Every clip that is on the screen is an animated picture that could be shown."""
    visible = page.locator("article .clip img")
    expect(visible.first).to_be_visible()
    for number in range(min(visible.count(), 4)):
        page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=visible.nth(number).element_handle()
        )


def test_pairs_show_their_clips_and_can_be_filtered(watched: Watched, shown: Shown, pictures: Path) -> None:
    page = watched.page
    page.goto(f"{shown.address}/pairs")
    page.get_by_label("Feedback").select_option("video")
    expect(page).to_have_url(f"{shown.address}/pairs?feedback=video")
    expect(page.locator("article:not([data-feedback=video])")).to_have_count(0)
    all_pictures_are_there(page)
    take(page, pictures / "viewer_pairs.png")

    margins = [float(card.get_attribute("data-margin") or 0) for card in page.locator("article").all()]
    page.get_by_label("Order").select_option("margin")
    expect(page).to_have_url(f"{shown.address}/pairs?feedback=video&order=margin")
    largest = float(page.locator("article").first.get_attribute("data-margin") or 0)
    assert largest >= max(margins)

    page.get_by_label("Words or an id").fill("no such words")
    page.get_by_label("Words or an id").press("Enter")
    expect(page.get_by_text("No pair passes this filter.")).to_be_visible()


def test_the_gallery_plays_its_videos(watched: Watched, shown: Shown, pictures: Path) -> None:
    page = watched.page
    page.goto(f"{shown.address}/gallery?order=gain")
    first = page.locator("article video").first
    page.wait_for_function("video => video.currentTime > 0.2 && !video.paused", arg=first.element_handle())
    assert page.locator("article").first.locator("video").count() == 4
    take(page, pictures / "viewer_gallery.png")
    watched.did_nothing()


def test_twenty_blind_votes_by_keyboard_show_in_the_evaluation(watched: Watched, shown: Shown, pictures: Path) -> None:
    page, lake = watched.page, shown.world.platform.lake
    page.goto(f"{shown.address}/vote")
    page.get_by_label("Your name").fill("<b>")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_contain_text("a name has at most")
    page.get_by_label("Your name").fill("Ann")
    page.keyboard.press("Enter")
    ask = page.locator("#ask[data-loaded]")
    sent = []
    for number in range(VOTES_TAKEN):
        expect(ask).to_be_visible()
        comparison = str(ask.get_attribute("data-comparison"))
        assert comparison not in sent
        if number == 3:
            take(page, pictures / "viewer_vote.png")
        playing = page.locator("#left video")
        page.wait_for_function("video => video.currentTime > 0 && !video.paused", arg=playing.element_handle())
        page.keyboard.press(("ArrowLeft", "ArrowRight", "ArrowDown", "s")[number % 4])
        expect(page.locator("#count")).to_contain_text(f"{number + 1} of")
        sent.append(comparison)
    watched.did_nothing()
    rows = {row["comparison_id"]: row["choice"] for row in lake.read(VOTES.at(TARGET)).to_pylist()}
    assert list(rows) and rows == dict(zip(sent, ["left", "right", "tie", "skip"] * 5, strict=True))
    said = vpo_process("evaluation", "--json", VPO_PROFILE=str(shown.world.file))
    people = json.loads(said.stdout)["targets"][TARGET]["people"]
    assert (people["votes"], people["skipped"], people["annotators"]) == (15, 5, 1)
    assert sum(row["won"] + row["tied"] + row["lost"] for row in people["preferences"]) == 15
    page.goto(shown.address)
    expect(page.get_by_text("15 blind votes by 1 person")).to_be_visible()
    take(page, pictures / "viewer_overview.png")


def test_hostile_texts_are_shown_and_do_nothing(watched: Watched, shown: Shown) -> None:
    page = watched.page
    make_hostile(shown.world)
    for path, wanted in (
        ("/pairs", HOSTILE),
        ("/gallery", HOSTILE[:4]),
        (f"/pairs?text={quote(HOSTILE[2])}", HOSTILE[2:3]),
    ):
        page.goto(shown.address + path)
        body = " ".join((page.locator("main").text_content() or "").split())
        for text in wanted:
            assert " ".join(text.split()) in body, path
        watched.did_nothing()
    page.goto(f"{shown.address}/vote?annotator=Eve")
    expect(page.locator("#ask[data-loaded]")).to_be_visible()
    assert page.locator("#wish").text_content() in HOSTILE
    watched.did_nothing()


def test_the_exported_folder_opens_from_the_disk(watched: Watched, shown: Shown, tmp_path: Path) -> None:
    made = vpo_process("look", "--export", str(tmp_path / "out"), VPO_PROFILE=str(shown.world.file))
    assert made.returncode == 0, made.stderr
    moved = shutil.move(tmp_path / "out", tmp_path / "moved")
    page = watched.page
    page.goto((moved / "index.html").as_uri())
    page.get_by_role("link", name="Pairs").click()
    cards = page.locator("article:visible")
    every = cards.count()
    page.get_by_label("Feedback").select_option("video")
    expect(page.locator("article[data-feedback=text]:visible")).to_have_count(0)
    assert 0 < cards.count() < every
    all_pictures_are_there(page)
    page.get_by_label("Words or an id").fill("no such words")
    expect(page.get_by_text("No pair passes this filter.")).to_be_visible()
    page.get_by_role("link", name="Gallery").click()
    page.get_by_label("Order").select_option("loss")
    playing = page.locator("article video").first
    page.wait_for_function("video => video.currentTime > 0.2 && !video.paused", arg=playing.element_handle())
    watched.did_nothing()


def test_narrow_screens_need_no_sideways_scrolling(watched: Watched, shown: Shown) -> None:
    page = watched.page
    page.set_viewport_size({"width": 400, "height": 800})
    for path in ("/", "/pairs", "/gallery", "/vote", "/vote?annotator=Bob"):
        page.goto(shown.address + path)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
