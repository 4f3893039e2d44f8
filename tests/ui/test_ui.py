"""The Dagster UI as a person uses it, in a real browser: look at the graph, click, read what came of it.

The tests of this file build on each other: they share one home folder and are run in order. Pictures of what was seen
go to the folder that VPO_SCREENSHOTS names.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Page, Response, expect, sync_playwright

from storage.ids import content_id
from storage.lake import Lake
from storage.recipe import Recipe, stamped
from storage.tables import CANDIDATE_CRITIQUES, QUERIES, VIDEOS
from tests.ui.serving import Served, serving
from vpo_assets.steps import own_columns

CHROMIUM = shutil.which("chromium")
QUERY_COUNT = 60
RUN_SECONDS = 300.0

pytestmark = [
    pytest.mark.ui,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`vpo ui` with some of the bundled queries; nothing is done but what is clicked on."""
    with serving(tmp_path_factory.mktemp("ui"), QUERY_COUNT, VPO_AUTOMATION__RUNNING="false") as served:
        yield served


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        # As root, as in containers, Chromium cannot make its sandbox. It only ever visits this machine here.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1700, "height": 1000}, device_scale_factor=1.5)
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("VPO_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def launches_a_run(response: Response) -> bool:
    return "/graphql" in response.url and "launchPipelineExecution" in (response.request.post_data or "")


def materialize_by_click(page: Page, served: Served, asset: str, *, confirm: bool = False) -> None:
    """Press an asset's button and wait until the run has written its entry. Leaves its events on the page.

    `confirm`: the UI asks back, since an upstream asset has never been materialized."""
    page.goto(f"{served.address}/assets/{asset}")
    with page.expect_response(launches_a_run):
        page.get_by_role("button", name="Materialize").first.click()
        if confirm:
            page.get_by_role("button", name="Confirm").click()
    deadline = time.monotonic() + RUN_SECONDS
    materialized = page.get_by_text("Materialized in run")
    while time.monotonic() < deadline:
        page.goto(f"{served.address}/assets/{asset}?view=events")
        with suppress(AssertionError):
            expect(materialized).to_be_visible(timeout=5_000)
            return
    raise AssertionError(f"{asset} was not materialized within {RUN_SECONDS:.0f} s")


def take(page: Page, file: Path) -> None:
    """A picture, once dialogs have faded in and the graph has slid into place."""
    page.wait_for_timeout(2_000)
    page.screenshot(path=file)


def metadata_row(page: Page, name: str) -> str:
    """The value beside a metadata name on the page."""
    row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first
    return " ".join(row.inner_text().split()).removeprefix(name).strip()


def open_markdown(page: Page, name: str) -> None:
    row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first
    row.get_by_text("[Show Markdown]").click()


def test_the_lineage_shows_trunk_and_branch(page: Page, served: Served) -> None:
    page.goto(f"{served.address}/asset-groups")
    expect(page.get_by_role("button", name="Materialize all")).to_be_visible()
    page.keyboard.press("Alt+e")  # unfold all groups
    for asset in ("raw_prompts", "queries", "sft_dataset", "sft_checkpoint"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    for asset in ("candidates", "videos", "video_rewards", "preference_pairs", "dpo_checkpoint", "evaluation"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()


def test_an_asset_materializes_by_click_and_shows_counts_and_preview(
    page: Page, served: Served, pictures: Path
) -> None:
    materialize_by_click(page, served, "raw_prompts")
    assert metadata_row(page, "dagster/row_count") == str(QUERY_COUNT)
    materialize_by_click(page, served, "queries")
    assert metadata_row(page, "dagster/row_count") == str(QUERY_COUNT)
    assert metadata_row(page, "new") == str(QUERY_COUNT)
    assert metadata_row(page, "reused") == "0"
    take(page, pictures / "metadata.png")
    open_markdown(page, "preview")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("columnheader", name="query_id")).to_be_visible()
    expect(dialog.get_by_role("row")).to_have_count(9)  # the header and eight rows
    take(page, pictures / "preview.png")


def test_an_asset_check_shows_its_result(page: Page, served: Served, pictures: Path) -> None:
    page.goto(f"{served.address}/assets/queries?view=checks&checkDetail=no_query_in_two_splits")
    expect(page.get_by_text("This is a blocking asset check.")).to_be_visible()
    expect(page.get_by_text("Passed", exact=True)).to_be_visible()
    assert metadata_row(page, "wordings in two splits") == "0"
    take(page, pictures / "check.png")


def test_videos_show_their_contact_sheet(page: Page, served: Served, pictures: Path) -> None:
    with Lake(served.home / "lake") as lake:
        wanted = approved_candidates(lake, 3)
    materialize_by_click(page, served, "shapes/videos", confirm=True)
    assert metadata_row(page, "new") == str(2 * wanted)  # two seeds each
    open_markdown(page, "contact_sheet")
    sheet = page.get_by_role("dialog").locator("img").first
    expect(sheet).to_be_visible()
    # A picture that cannot be shown is visible too, as a broken one without a width.
    page.wait_for_function("element => element.naturalWidth > 100", arg=sheet.element_handle())
    take(page, pictures / "contact_sheet.png")
    with Lake(served.home / "lake") as lake:
        assert lake.count(VIDEOS.at("shapes")) == 2 * wanted


def approved_candidates(lake: Lake, count: int) -> int:
    """Write candidates that have passed the judge, so that there is something to film. How many."""
    queries = lake.read(QUERIES, where="keep AND split = 'dpo' AND safety = 'general'").slice(0, count).to_pylist()
    rows = [
        {
            "prompt_id": content_id("for the test", row["query_id"]),
            "query_id": row["query_id"],
            "prompt": f"{row['query']}, filmed in sharp focus with a steady camera, against a plain background.",
            **dict.fromkeys(("harmless", "accurate", "helpful", "aligned"), True),
            "verdict": "aligned",
            "critique": "",
            "refined": None,
        }
        for row in queries
    ]
    table = CANDIDATE_CRITIQUES.at("shapes")
    written = own_columns(table, rows)
    written = stamped(written.append_column("input_id", written["prompt_id"]), Recipe({"by": "test"}).id, "test")
    with lake.write({"asset": table.label}) as transaction:
        transaction.upsert(table, written)
    return len(rows)


def test_the_graph_shows_what_is_materialized(page: Page, served: Served, pictures: Path) -> None:
    page.set_viewport_size({"width": 1900, "height": 640})  # the graph is wide and low, and fits itself in
    graph = f"{served.address}/asset-groups?expanded=global%40global%3Atrunk%2Cglobal%40global%3Ashapes"
    page.goto(graph)
    page.get_by_text("Hide navigation").click()
    page.goto(graph)
    expect(page.get_by_text("evaluation", exact=True).first).to_be_visible()
    take(page, pictures / "lineage.png")
