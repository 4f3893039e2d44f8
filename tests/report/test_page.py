"""The report: everything is on the page, in order, and text stays text."""

import base64
import hashlib
import io
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.report.hostile import TEXTS
from vpo_assets.report import grids
from vpo_assets.report.data import (
    Answer,
    Clip,
    Estimate,
    Example,
    FStatistic,
    GainRow,
    MethodExample,
    PairCount,
    PeopleRow,
    Picture,
    ReportData,
    SafetyRow,
    TextLevelRow,
    VideoLevelRow,
)
from vpo_assets.report.page import f_sentence, render_report
from vpo_assets.report.pictures import funnel
from vpo_assets.report.plain_text import readable

OWN_TAGS = set(
    re.findall(
        r"\w+",
        """html head meta title style body header main footer section article nav h1 h2 h3 p a b i u em small strong
        span div bdi table caption thead tbody tr th td figure figcaption img video details summary ul li dl dt dd
        code input script""",
    )
)
VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails where tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.script = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.script += data
        elif "style" not in self._open:
            self.text += data
            if self.rows and {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def webp(side: int = 64) -> bytes:
    buffer = io.BytesIO()
    images = [Image.new("RGB", (side, side), color) for color in ("red", "green")]
    images[0].save(buffer, format="WEBP", save_all=True, append_images=images[1:], duration=250)
    return buffer.getvalue()


def example(text: str = "a red ball") -> Example:
    clips = [Clip(webp(), "image/webp", text), Clip(b"mp4", "video/mp4", "seed 2")]
    answers = [Answer("Is it alike?", [True, True]), Answer(text, [True, None])]
    other = [Answer("Is it alike?", [True, True]), Answer(text, [False, None])]
    return Example(
        text,
        [
            MethodExample("original", text, "imprecise", 2.5, clips, answers, "The size is missing."),
            MethodExample(text, text, text, 4.25, clips, other, text),
        ],
        text,
    )


def report(text: str = "plain", made: bool = True) -> ReportData:
    share = Estimate(93.8, 91.2, 96.1)
    none = Estimate(0.0, 0.0, 0.0)
    return ReportData(
        title=text,
        made_at=datetime(2026, 11, 22, 17, 30, tzinfo=UTC),
        target=text,
        checkpoints={"vpo": "dpo-1234", text: text},
        text_level=[
            TextLevelRow("original", Estimate(31.0), Estimate(8.0), Estimate(61.0), none, 150),
            TextLevelRow("vpo", share, Estimate(0.5), Estimate(5.7), none, 150),
            TextLevelRow(text, Estimate(math.nan), Estimate(1.0), Estimate(9.0), none, None),
        ],
        video_level=[
            VideoLevelRow("original", Estimate(2.9, 2.8, 3.0), {"alignment": 0.5, "quality": 0.9}, None, 150),
            VideoLevelRow("vpo", Estimate(3.41, 3.3, 3.52), {"alignment": 0.8}, Estimate(0.7, 0.6, 0.8), 150),
            VideoLevelRow(text, Estimate(1.0), {text: 0.1}, Estimate(0.2)),
        ],
        gains=[GainRow("vpo", "original", 0.51, 0.4, 0.62), GainRow("vpo", "sft", 0.1, -0.05, 0.25)],
        rounds=Picture(text, funnel([("a", 3)], "t"), text),
        round_notes=[text],
        people=[
            PeopleRow("vpo", "sft", Estimate(0.625, 0.5, 0.75), 12, 1, 7),
            PeopleRow("vpo", text, Estimate(1.0), 3, 0, 0),
            PeopleRow(text, "sft", Estimate(0.5), 1, 0, 1),
        ],
        people_notes=[text],
        f_statistic=FStatistic(2.84, 2.3, 3.5),
        pair_counts=[PairCount("text", 200), PairCount("video", 1100, 0.83), PairCount(text, 1, math.nan)],
        funnels=[Picture(text, funnel([("a", 3)], "t"), text)],
        curves=[],
        examples=[example(text)] * made,
        notes=[text],
    )


def row(page: Page, *start: str) -> list[str]:
    """The cells of the first row that begins so, without marks for assistive technology."""
    cells = [[" ".join(cell.replace("(best)", "").split()) for cell in cells] for cells in page.rows]
    return next(cells for cells in cells if tuple(cells[: len(start)]) == start)


def test_tables_hold_values_with_intervals_and_the_published_figures() -> None:
    page = Page(render_report(report()))
    assert row(page, "VPO", "3.41") == ["VPO", "3.41", "[3.30, 3.52]", "70.0", "[60.0, 80.0]", "150"]
    assert row(page, "Original query", "2.90")[3:5] == ["–", ""]
    assert row(page, "VPO", "0.80") == ["VPO", "0.80", "–", "–"]
    assert row(page, "VPO", "93.8")[1:3] == ["93.8", "[91.2, 96.1]"]
    assert row(page, "GPT-4o few-shot", "86.4")[1::1] == ["86.4", "", "2.4", "8.6", "2.6", "", "500"]
    assert row(page, "VPO", "3.76") == ["VPO", "3.76", "4.15", "99.00", "55.83", "70.17", "24.20"]
    assert row(page, "VPO", "62") == ["VPO", "62", "[50, 75]", "12", "1", "7"]
    assert row(page, "all") == ["all", "1,301", "–"]
    assert "Published: VPO, arXiv 2503.20491" in page.text


def test_every_table_row_spans_the_same_columns() -> None:
    source = render_report(report())
    for table in re.findall(r"<table>.*?</table>", source, re.DOTALL):
        spans = {
            sum(int(width or 1) for width in re.findall(r"<t[hd](?=[ >])(?:[^>]*colspan=\"?(\d+))?", line))
            for line in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        }
        assert len(spans) == 1


def test_sections_come_in_order_and_the_headline_is_honest() -> None:
    page = Page(render_report(report()))
    titles = ["What the videos", "Gains, query", "What the prompts", "Can the reward", "learned from", "User's query"]
    places = [page.text.index(title) for title in titles]
    assert places == sorted(places)
    head = page.text[: places[0]]
    assert "+0.51[+0.40, +0.62]interval clear of 0" in head
    assert "+0.10[\u22120.05, +0.25]not clear of 0" in head
    assert "0.5 %" in head and "original query: 8.0 %" in head and "22 November 2026, 17:30 UTC" in head


def test_the_best_value_as_written_is_marked_in_its_direction_and_ties_share() -> None:
    rows = [
        TextLevelRow(method, Estimate(aligned), Estimate(unsafe), Estimate(5.0), Estimate(math.nan))
        for method, aligned, unsafe in (("a", 90.01, 2.0), ("b", 90.04, 0.0), ("c", 80.0, math.nan))
    ]
    ours = grids.text_level_grid(rows).groups[0]
    marks = [[cell.best for cell in line.cells] for line in ours.lines]
    assert marks == [[True, False, False, False, False], [True, True, False, False, False], [False] * 5]


def test_charts_place_bars_within_their_track_and_zero_where_it_is() -> None:
    chart = grids.gain_chart([GainRow("vpo", "sft", 0.5, 0.25, 1.0), GainRow("a", "b", math.nan, 0, 0)])
    bar, missing = chart.bars
    assert chart.zero is not None and 0 < chart.zero < bar.left < bar.dot < bar.left + bar.width < 100
    assert bar.dot - chart.zero == pytest.approx(2 * (bar.left - chart.zero), abs=0.05)
    assert not missing.drawn and missing.value == "–"
    same = grids.score_chart([VideoLevelRow("a", Estimate(3.0), {})])
    assert same.bars[0].dot == pytest.approx(50) and len(same.ticks) >= 3


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (None, "is not known"),
        (FStatistic(math.nan, math.nan, math.nan), "is not known"),
        (FStatistic(math.inf, math.inf, math.inf), "Seeds make no difference"),
        (FStatistic(0.8, 0.5, 1.2), "are noise"),
        (FStatistic(1.3, 0.9, 1.8), "not clearly above 1"),
        (FStatistic(1.3, math.nan, math.nan), "not clearly above 1"),
        (FStatistic(2.84, 2.3, 3.5), "2.8 times"),
    ],
)
def test_f_is_put_in_plain_words(statistic: FStatistic | None, expected: str) -> None:
    assert expected in f_sentence(statistic)
    page = Page(render_report(replace(report(), f_statistic=statistic)))
    assert expected in page.text


def test_clips_and_pictures_are_inside_the_page() -> None:
    page = Page(render_report(report()))
    clip = next(found for found in page.attributes("img") if found.get("class") == "tiny")
    assert (clip["width"], clip["height"]) == ("64", "64")
    assert clip["src"] == "data:image/webp;base64," + base64.b64encode(webp()).decode()
    assert page.attributes("video")[0]["src"] == "data:video/mp4;base64," + base64.b64encode(b"mp4").decode()
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert addresses and all(str(address).startswith(("data:", "#")) for address in addresses)


def test_answers_that_differ_come_first() -> None:
    page = Page(render_report(report("Is it red?")))
    assert "Checklist: 2 questions, the methods differ on 1" in page.text
    assert row(page, "Is it red?", "✓–") and page.text.index("✗") < page.text.index("Is it alike?")
    assert row(page, "Is it alike?") == ["Is it alike?", "✓✓", "✓✓"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_hostile_text_is_shown_as_text(text: str) -> None:
    plain, page = Page(render_report(report())), Page(render_report(report(text)))
    assert {tag for tag, _ in page.tags} <= OWN_TAGS
    if text:
        assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
        names = [sorted(found) for _, found in page.tags]
        assert names == [sorted(found) for _, found in plain.tags]
    shown = readable(text, 4000)
    assert shown in page.text and not re.search("[\x00-\x08\x0e-\x1f\u202a-\u202e\ud800-\udfff]", page.text)


def test_the_policy_allows_the_pages_own_script_and_nothing_else() -> None:
    page = Page(render_report(report(TEXTS[0])))
    policy = next(found["content"] for found in page.attributes("meta") if "http-equiv" in found)
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert len(page.attributes("script")) == 1 and "alert" not in page.script


def test_an_empty_report_says_so() -> None:
    data = ReportData("Empty", datetime(2026, 1, 1), "shapes", {})
    page = Page(render_report(data))
    for sentence in ("Nothing measured yet.", "Nothing compared yet.", "No examples", "No checkpoint"):
        assert sentence in page.text
    assert not page.attributes("script") and "3.76" in page.text


def test_clips_of_unknown_type_are_refused_and_damaged_ones_keep_their_label() -> None:
    with pytest.raises(ValueError, match="cannot show clips of type 'image/svg"):
        Clip(b"", "image/svg+xml")
    broken = Example("q", [MethodExample("vpo", "p", clips=[Clip(b"nonsense", "image/webp", "seed 7")])])
    page = Page(render_report(replace(report(), examples=[broken])))
    assert any(found.get("alt") == "seed 7" and "width" not in found for found in page.attributes("img"))


def test_safety_shows_the_aspects_that_some_prompt_has() -> None:
    shares = {"1": 0.9, "2": 0.1, "3": 0.0, "4": 0.0}
    worse = SafetyRow("original", Estimate(1.25, 1.1, 1.4), Estimate(3.5, 3, 4), shares, {"gore": 0.1, "violence": 0.0})
    better = SafetyRow("vpo", Estimate(1.0, 1, 1), Estimate(math.nan), {**shares, "2": 0.0}, {"gore": 0.0})
    page = Page(render_report(ReportData("t", datetime(2026, 1, 1), "shapes", {}, safety=[worse, better])))
    (head,) = [row for row in page.rows if "level, 1 to 4" in " ".join(row)]
    assert [cell.partition("\xa0")[0] for cell in head[1:]] == [
        *("level, 1 to 4", "of unsafe queries", "level 2, %", "level 3, %", "level 4, %", "gore, %")
    ]
    assert any("1.25" in " ".join(row) and "10.0" in " ".join(row) for row in page.rows)
