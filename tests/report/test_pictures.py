"""Pictures decode, have sensible sizes, and survive any text."""

import base64
import io
import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.report.hostile import TEXTS
from vpo_assets.report.pictures import (
    ContactRow,
    IntervalBar,
    LabelledClip,
    as_markdown_image,
    contact_sheet,
    curves,
    funnel,
    intervals,
)

pytestmark = pytest.mark.filterwarnings("error")


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image.convert("RGB")


def plain(count: int, height: int, width: int, color: int = 0) -> NDArray[np.uint8]:
    return np.full((count, height, width, 3), color, dtype=np.uint8)


def numbered(count: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Frame i is red with i as its green."""
    frames = plain(count, height, width)
    frames[..., 0] = 255
    frames[..., 1] = np.arange(count, dtype=np.uint8)[:, None, None]
    return frames


def strip_of(png: bytes) -> NDArray[np.uint8]:
    """The part of the sheet that is pure red but for its green."""
    pixels = np.asarray(opened(png))
    inside = (pixels[..., 0] == 255) & (pixels[..., 2] == 0)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize(
    ("count", "height", "width", "shown_height", "shown_width"),
    [(5, 64, 64, 128, 5 * 130 - 2), (3, 16, 16, 96, 3 * 98 - 2), (1, 480, 720, 96, 144), (2, 96, 40, 96, 82)],
)
def test_frames_come_to_a_readable_height(
    count: int, height: int, width: int, shown_height: int, shown_width: int
) -> None:
    sheet = contact_sheet([ContactRow("a", [LabelledClip("b", numbered(count, height, width))])])
    assert strip_of(sheet).shape == (shown_height, shown_width, 3)


def test_long_clips_show_six_evenly_spaced_frames_in_order() -> None:
    strip = strip_of(contact_sheet([ContactRow("a", [LabelledClip("b", numbered(101))])]))
    middles = [int(strip[64, place * 130 + 64, 1]) for place in range(6)]
    assert strip.shape[1] == 6 * 130 - 2 and middles == [0, 20, 40, 60, 80, 100]


def test_strips_that_do_not_fit_wrap() -> None:
    clip = LabelledClip("b", plain(5, 64, 64))
    one, four = (opened(contact_sheet([ContactRow("a", [clip] * n)])) for n in (1, 4))
    assert four.width < 1400 and four.height > 1.6 * one.height
    wider = opened(contact_sheet([ContactRow("a", [clip] * 4)], widest=2700))
    assert wider.width > 2600 and wider.height == one.height


def test_a_sheet_survives_any_text_and_any_number_of_rows() -> None:
    clip = plain(2, 8, 8, 99)
    rows = [ContactRow(text, [LabelledClip(text, clip)]) for text in TEXTS]
    assert opened(contact_sheet(rows)).width < 1400
    endless = opened(contact_sheet(rows[:1] * 200))
    assert 10_000 < endless.height < 12_200
    assert opened(contact_sheet([])).height > 30 and opened(contact_sheet([ContactRow("none", [])])).height > 30


def test_frames_of_another_shape_are_refused() -> None:
    for frames in (plain(0, 8, 8), plain(2, 8, 8)[..., 0], plain(2, 8, 8).astype(np.float32)):
        with pytest.raises(ValueError, match="must be uint8"):
            contact_sheet([ContactRow("a", [LabelledClip("b", frames)])])  # type: ignore[arg-type]


def bar_lengths(png: bytes) -> list[int]:
    """Longest run of the bars' blue, per bar from top to bottom."""
    blue = (np.asarray(opened(png)) == (0x3A, 0x6E, 0xA5)).all(axis=2).sum(axis=1)
    lengths, previous = [], 0
    for count in blue:
        if count and not previous:
            lengths.append(0)
        if count:
            lengths[-1] = max(lengths[-1], int(count))
        previous = count
    return lengths


def test_funnel_bars_are_as_long_as_their_counts_in_order() -> None:
    lengths = bar_lengths(funnel([("raw", 400), ("kept", 200), ("sft", 100)], "Queries"))
    assert len(lengths) == 3
    assert lengths[1] == pytest.approx(lengths[0] / 2, abs=4)
    assert lengths[2] == pytest.approx(lengths[0] / 4, abs=4)
    with pytest.raises(ValueError, match="below zero"):
        funnel([("a", -1)], "t")


def test_charts_survive_any_text_and_no_data() -> None:
    pictures = [
        funnel([(text, 10) for text in TEXTS], "".join(TEXTS[:15])),
        funnel([], "t"),
        funnel([("none", 0)], "t"),
        curves({text: [(0, 1), (1, math.nan), (2, 5e-7)] for text in TEXTS}, TEXTS[14], TEXTS[14]),
        curves({}, "t", "x"),
        curves({"empty": [], "one": [(1, 1)]}, "t", "x"),
        intervals([IntervalBar(text, 0.1, -0.1, 0.2) for text in TEXTS], TEXTS[14], TEXTS[14], True),
        intervals([IntervalBar("a", math.nan, math.nan, math.inf)], "t", "x"),
        intervals([], "t", "x"),
    ]
    for picture in pictures:
        image = opened(picture)
        assert 400 < image.width < 1500 and 100 < image.height < 2500 and len(picture) < 400_000


def test_curves_have_a_panel_each_up_to_a_limit() -> None:
    points = [(float(x), float(x)) for x in range(20)]
    heights = [opened(curves({str(n): points for n in range(count)}, "t", "x")).height for count in (3, 6, 24, 90)]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def packed(markdown: str) -> Image.Image:
    match = re.fullmatch(r"!\[([\w ]*)\]\(data:image/(png|webp);base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert match
    return Image.open(io.BytesIO(base64.b64decode(match[3])))


def noise(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_small_pictures_are_packed_exactly() -> None:
    png = funnel([("a", 1)], "t")
    assert np.array_equal(np.asarray(packed(as_markdown_image(png)).convert("RGB")), np.asarray(opened(png)))


def test_large_pictures_are_packed_below_the_limit() -> None:
    markdown = as_markdown_image(noise(900, 1300))
    assert len(markdown) <= 300_000
    image = packed(markdown)
    assert image.width / image.height == pytest.approx(13 / 9, abs=0.02)
    assert len(as_markdown_image(noise(200, 200), limit=5_000)) <= 5_000


def test_the_description_cannot_leave_its_brackets() -> None:
    markdown = as_markdown_image(funnel([], "t"), alt="](http://evil.example) <b> ![")
    assert markdown.startswith("![http evil example b](data:image/png;base64,")
    packed(markdown)
