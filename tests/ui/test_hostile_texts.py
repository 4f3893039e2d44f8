"""Texts and file names that would be HTML, Markdown or script, seen in a real browser: they are shown, and do nothing.

What is looked at: the tables of a refresh in the Dagster UI (previews, files, quarantine) and the report page.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, Locator, Page, Request, expect, sync_playwright

from tests.conftest import vpo_process
from tests.report.test_page import report
from tests.ui.serving import Served, serving
from vpo_assets.report.page import render_report

CHROMIUM = shutil.which("chromium")
RUN = "window.owned=1;alert(1)"
HOSTILE = (
    f"a red cat <script>{RUN}</script> walks",
    f"a blue dog <img src=x onerror='{RUN}'> runs",
    f'a green bird "><svg onload={RUN}> flies',
    f"a grey fish </script></td></table><iframe srcdoc='<script>parent.{RUN}</script>'></iframe> swims",
    f"a pink horse [click here](javascript:{RUN}) trots",
    "a white cow ![picture](http://evil.example/pixel.png) stands",
    f"a black sheep &lt;script&gt;{RUN}&lt;/script&gt; sleeps",
    f"a brown fox | cell | <details open ontoggle={RUN}> sits",
)
FILE_NAME = "<img src=x onerror=window.owned=1>.jsonl"

pytestmark = [
    pytest.mark.ui,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]


@dataclass
class Watched:
    """A page, and what it should never do."""

    page: Page
    dialogs: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._request)

    def _dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if "evil.example" in request.url:
            self.strangers.append(request.url)

    def did_nothing(self) -> None:
        """No script of the texts has run, and nothing was fetched for them."""
        self.page.wait_for_timeout(500)
        for frame in self.page.frames:
            assert frame.evaluate("window.owned") is None
        assert self.dialogs == []
        assert self.strangers == []


@pytest.fixture
def watched() -> Iterator[Watched]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1700, "height": 1000})
        page.set_default_timeout(60_000)
        yield Watched(page)
        browser.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """`vpo ui` over a home that has taken in and curated the hostile queries."""
    file = tmp_path / FILE_NAME
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in HOSTILE), encoding="utf-8")
    settings = {"VPO_QUERIES__FILES": json.dumps([str(file)]), "VPO_AUTOMATION__RUNNING": "false"}
    made = vpo_process("materialize", "raw_prompts", "queries", VPO_HOME=str(tmp_path / "home"), **settings)
    assert made.returncode == 0, made.stderr
    with serving(tmp_path, 1, **settings) as served:
        yield served


def test_the_watch_sees_what_runs(watched: Watched) -> None:
    """Else the others could not fail."""
    watched.page.set_content(HOSTILE[1])
    watched.page.wait_for_timeout(500)
    assert watched.dialogs == ["1"]
    with pytest.raises(AssertionError):
        watched.did_nothing()


ACTIVE = "script, img, iframe, svg[onload], [onerror], [ontoggle], a[href]"


def test_queries_and_file_names_do_nothing_in_the_ui(watched: Watched, served: Served) -> None:
    page = watched.page
    page.goto(f"{served.address}/assets/raw_prompts?view=events")
    files = metadata(page, "files")  # a short table, shown as it is
    expect(files.get_by_text("onerror=window.owned=1")).to_be_visible()
    assert files.locator(ACTIVE).count() == 0
    watched.did_nothing()
    for asset in ("raw_prompts", "queries"):
        page.goto(f"{served.address}/assets/{asset}?view=events")
        metadata(page, "preview").get_by_text("[Show Markdown]").click()
        preview = page.get_by_role("dialog")
        expect(preview.get_by_role("table")).to_be_visible()
        shown = preview.inner_text()
        assert sum(animal in shown for animal in ("cat", "dog", "bird", "fish", "horse", "cow", "sheep", "fox")) >= 6
        assert "onerror" in shown or asset == "queries"  # which curation has freed of markup
        assert preview.locator(ACTIVE).count() == 0
        watched.did_nothing()


def metadata(page: Page, name: str) -> Locator:
    """The row of a metadata entry."""
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first


@pytest.mark.parametrize("text", HOSTILE)
def test_the_report_runs_nothing_but_its_own_script(watched: Watched, tmp_path: Path, text: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(report(text)), encoding="utf-8")
    watched.page.goto(file.as_uri())
    assert text in watched.page.locator("body").inner_text().replace("\n", " ")
    watched.did_nothing()
