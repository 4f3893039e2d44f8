"""Pictures: contact sheets of clips, funnels, curves and intervals, as PNG bytes.

Belongs here: drawing plain numbers and frames, and packing a picture into Markdown. Does not belong here:
which numbers and clips are drawn, and page layout (page.py).
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vpo_assets.report.plain_text import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frames = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont

INK, MUTED, FAINT, BLUE = "#1c2430", "#5d6978", "#d9dee5", "#3a6ea5"

# ------------------------------------------------------------------------------------------ contact sheets

FRAME_HEIGHT = 96
WIDEST_FRAME = 320
MOST_FRAMES = 6
_WIDEST_SHEET = 1312
_NARROWEST_SHEET = 480
_NARROWEST_CELL = 120
_TALLEST_SHEET = 12_000
_MARGIN, _GAP, _SEAM = 16, 16, 2
_CAPTION_LINES, _CAPTION_CHARACTERS = 3, 500


@dataclass(frozen=True)
class LabelledClip:
    """One clip of a contact sheet. frames: uint8 (frames, height, width, 3), RGB."""

    label: str
    frames: Frames


@dataclass(frozen=True)
class ContactRow:
    """Clips that belong together, under one caption."""

    caption: str
    clips: Sequence[LabelledClip]


def contact_sheet(rows: Sequence[ContactRow], *, widest: int = _WIDEST_SHEET) -> bytes:
    """A PNG with a caption per row, and each clip as a strip of at most six evenly spaced frames.

    Frames are brought to about 96 px of height: larger ones shrunk, tiny ones enlarged by a whole factor so
    that their pixels stay visible. Strips that do not fit beside each other in `widest` pixels wrap. Rows beyond
    12,000 px of height are counted instead of shown. Raises ValueError for frames of another shape or type.
    """
    strips = [[(clip.label, _strip(clip)) for clip in row.clips] for row in rows]
    width = _sheet_width(strips, widest)
    blocks: list[Image.Image] = []
    height = 0
    for row, row_strips in zip(rows, strips, strict=True):
        block = _row_block(row.caption, row_strips, width)
        if height + block.height > _TALLEST_SHEET:
            break
        height += block.height
        blocks.append(block)
    if len(blocks) < len(rows):
        blocks.append(_row_block(f"{len(rows) - len(blocks):,} more rows are not shown.", [], width))
    if not rows:
        blocks.append(_row_block("No clips yet.", [], width))
    return _png(_stacked(blocks, width))


def _strip(clip: LabelledClip) -> Image.Image:
    frames = clip.frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(
            f"The frames of a clip must be uint8 (frames, height, width, 3); these are {frames.dtype} {frames.shape}."
        )
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().astype(int))
    images = [_fitted(frames[index]) for index in chosen]
    across, down = images[0].size
    strip = Image.new("RGB", (len(images) * (across + _SEAM) - _SEAM, down), "white")
    for place, image in enumerate(images):
        strip.paste(image, (place * (across + _SEAM), 0))
    return strip


def _fitted(frame: Frames) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame))
    scale = min(FRAME_HEIGHT / image.height, WIDEST_FRAME / image.width)
    if scale >= 1:
        # Half a step is rounded up: 64 px become 128.
        factor = max(1, min(math.floor(FRAME_HEIGHT / image.height + 0.5), WIDEST_FRAME // image.width))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _cell_width(strip: Image.Image) -> int:
    return max(strip.width, _NARROWEST_CELL)


def _sheet_width(rows: Sequence[Sequence[tuple[str, Image.Image]]], limit: int) -> int:
    """As wide as the fullest row, between limits, and never narrower than a single strip."""
    cells = [[_cell_width(strip) for _, strip in row] for row in rows]
    fullest = max((sum(row) + _GAP * (len(row) - 1) for row in cells if row), default=0)
    widest = max((cell for row in cells for cell in row), default=0)
    return max(widest, min(max(fullest, _NARROWEST_SHEET), limit))


def _row_block(caption: str, strips: Sequence[tuple[str, Image.Image]], width: int) -> Image.Image:
    """One row of the sheet, without margins: caption lines, then lines of labelled strips."""
    caption_font, label_font = _font(15, bold=True), _font(12)
    lines = _wrapped(drawable(caption, _glyphs(), _CAPTION_CHARACTERS), caption_font, width)
    caption_height = 21 * len(lines)
    placed: list[tuple[int, int, str, Image.Image]] = []
    left, top, line_height = 0, caption_height + 6, 0
    for label, strip in strips:
        cell = _cell_width(strip)
        if left and left + cell > width:
            left, top, line_height = 0, top + line_height + 10, 0
        placed.append((left, top, _cut(drawable(label, _glyphs(), 200), label_font, cell), strip))
        left += cell + _GAP
        line_height = max(line_height, 18 + strip.height)
    block = Image.new("RGB", (width, top + line_height + 18), "white")
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, 21 * number), line, font=caption_font, fill=INK)
    for left, top, label, strip in placed:
        draw.text((left, top), label, font=label_font, fill=MUTED)
        block.paste(strip, (left, top + 18))
    return block


def _stacked(blocks: Sequence[Image.Image], width: int) -> Image.Image:
    height = sum(block.height for block in blocks)
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for number, block in enumerate(blocks):
        if number:
            draw.line((_MARGIN, top - 9, _MARGIN + width, top - 9), fill=FAINT)
        sheet.paste(block, (_MARGIN, top))
        top += block.height
    return sheet


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """At most `_CAPTION_LINES` lines that fit `width`; words that fit no line are broken."""
    lines: list[str] = []
    rest = text
    while rest:
        if len(lines) == _CAPTION_LINES - 1:
            return [*lines, _cut(rest, font, width)]
        end = _fitting(rest, font, width)
        if end < len(rest):
            space = rest.rfind(" ", 0, end + 1)
            end = space if space > 0 else end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines


def _cut(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    return text[: _fitting(text, font, width - math.ceil(font.getlength("…")))].rstrip() + "…"


def _fitting(text: str, font: Font, width: int) -> int:
    """How many characters fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


# DejaVu comes with matplotlib, so pictures look the same on every machine.
def _font_file(bold: bool) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")


@cache
def _font(size: int, bold: bool = False) -> Font:
    return ImageFont.truetype(str(_font_file(bold)), size)


@cache
def _glyphs() -> frozenset[int]:
    """Code points that both fonts can draw."""
    from matplotlib.ft2font import FT2Font

    plain, bold = (set(FT2Font(str(_font_file(bold))).get_charmap()) for bold in (False, True))
    return frozenset(plain & bold)


# -------------------------------------------------------------------------------------------------- charts

_MOST_PANELS = 24


@dataclass(frozen=True)
class IntervalBar:
    """One line of an interval chart. A mean that is not finite is drawn as a dash."""

    label: str
    mean: float
    low: float
    high: float


def funnel(steps: Sequence[tuple[str, int]], title: str) -> bytes:
    """A PNG with one horizontal bar per (name, count), from top to bottom, each with its count.

    Raises ValueError for a count below zero.
    """
    negative = [name for name, count in steps if count < 0]
    if negative:
        raise ValueError(f"A funnel counts things; {negative[0]!r} has a count below zero.")
    if not steps:
        return _message(title, "Nothing counted yet.")
    figure, axes = _bar_figure(len(steps), title)
    counts = [count for _, count in steps]
    places = range(len(steps))
    axes.barh(places, counts, color=BLUE, height=0.68)
    most = max(counts) or 1
    for place, count in zip(places, counts, strict=True):
        axes.annotate(
            f"{count:,}",
            (count, place),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=10,
        )
    axes.set_xlim(0, most * 1.14)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    _name_places(axes, [name for name, _ in steps])
    return _rendered(figure)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str) -> bytes:
    """A PNG with one small panel per series of (x, y), each on its own scale, its last value above it.

    Points that are not finite are left out, and series beyond the 24th are counted in the title.
    """
    from matplotlib.ticker import MaxNLocator

    if not series:
        return _message(title, "Nothing recorded yet.")
    shown = list(series.items())[:_MOST_PANELS]
    hidden = len(series) - len(shown)
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    figure = _new_figure(max(4.2, 3.3 * across), 2.3 * down + 0.6)
    _set_title(figure, f"{title} (first {_MOST_PANELS} of {len(series)})" if hidden else title)
    panels = figure.subplots(down, across, squeeze=False, sharex=False).ravel()
    for panel, (name, points) in zip(panels, shown, strict=False):
        finite = np.array([point for point in points if all(map(math.isfinite, point))]).reshape(-1, 2)
        _draw_curve(panel, name, finite)
        if len(finite):
            panel.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=_whole(finite[:, 0])))
            panel.yaxis.set_major_locator(MaxNLocator(nbins=4))
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(shown) - across) : len(shown)]:
        panel.set_xlabel(_words(x_label, 60), color=MUTED, fontsize=9, parse_math=False)
    return _rendered(figure)


def intervals(rows: Sequence[IntervalBar], title: str, x_label: str, zero_line: bool = False) -> bytes:
    """A PNG with one mean and its interval per row, from top to bottom; `zero_line` marks zero."""
    if not rows:
        return _message(title, "Nothing measured yet.")
    figure, axes = _bar_figure(len(rows), title)
    if zero_line:
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, row in enumerate(rows):
        if not all(map(math.isfinite, (row.mean, row.low, row.high))):
            _write_beside(axes, place, "–")
            continue
        axes.plot([row.low, row.high], [place, place], color=BLUE, linewidth=3.5, alpha=0.45, zorder=2)
        axes.plot([row.mean], [place], "o", color=BLUE, markersize=7, zorder=3)
        _write_beside(axes, place, f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]")
    axes.margins(x=0.06)
    axes.set_xlabel(_words(x_label, 80), color=MUTED, fontsize=10, parse_math=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.tick_params(axis="x", colors=MUTED, labelsize=9, length=0)
    _name_places(axes, [row.label for row in rows])
    return _rendered(figure)


def _draw_curve(panel: "Axes", name: str, points: NDArray[np.float64]) -> None:
    last = f"{points[-1, 1]:.4g}" if len(points) else "no values"
    if not len(points):
        panel.set(xticks=[], yticks=[])
    panel.set_title(_words(name, 32), fontsize=9.5, color=INK, loc="left", parse_math=False)
    panel.set_title(last, fontsize=9.5, color=BLUE, loc="right", fontweight="bold")
    # A line needs two points; fewer are shown as dots.
    panel.plot(points[:, 0], points[:, 1], color=BLUE, linewidth=1.6, marker="o" if len(points) < 12 else "", ms=3)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(FAINT)
    panel.tick_params(colors=MUTED, labelsize=8.5, length=0)


def _whole(values: NDArray[np.float64]) -> bool:
    return bool(len(values)) and bool((values == values.round()).all())


def _write_beside(axes: "Axes", place: int, text: str) -> None:
    axes.annotate(
        text, (1, place), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
        color=INK, fontsize=10, annotation_clip=False,
    )  # fmt: skip


def _bar_figure(rows: int, title: str) -> "tuple[Figure, Axes]":
    figure = _new_figure(7.6, 0.36 * rows + 1.1)
    _set_title(figure, title)
    axes = figure.add_subplot()
    axes.set_ylim(rows - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    return figure, axes


def _name_places(axes: "Axes", names: Sequence[str]) -> None:
    labels = ["\n".join(textwrap.wrap(_words(name, 64), 32)) for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=10, color=INK, parse_math=False)
    axes.tick_params(axis="y", length=0)


def _message(title: str, message: str) -> bytes:
    figure = _new_figure(6, 1.3)
    _set_title(figure, title)
    figure.text(0.5, 0.35, message, ha="center", color=MUTED, fontsize=11)
    return _rendered(figure)


def _new_figure(width: float, height: float) -> "Figure":
    """Inches. Drawn by Agg without pyplot, which keeps every figure alive and is not safe among threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    return figure


def _set_title(figure: "Figure", title: str) -> None:
    text = "\n".join(textwrap.wrap(_words(title, 160), 76))
    figure.suptitle(text, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left", parse_math=False)


def _words(text: str, longest: int) -> str:
    cleaned = drawable(text, _glyphs(), 4 * longest)
    return cleaned if len(cleaned) <= longest else cleaned[: longest - 1].rstrip() + "…"


def _rendered(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _png(Image.open(buffer).convert("RGB"))


# ------------------------------------------------------------------------------------------------- packing

_LOSSLESS_IS_FINE = 60_000


def as_markdown_image(picture: bytes, alt: str = "picture", limit: int = 300_000) -> str:
    """Markdown with the picture (PNG, or anything Pillow reads) inside, of at most `limit` characters.

    Small pictures stay exact; larger ones become WebP, and shrink where even that is too much.
    """
    budget = (limit - 200) * 3 // 4
    mime_type, content = _packed(picture, budget)
    words = "".join(character if character.isalnum() else " " for character in alt[:80])
    return f"![{' '.join(words.split())}](data:{mime_type};base64,{base64.b64encode(content).decode()})"


def _packed(picture: bytes, budget: int) -> tuple[str, bytes]:
    opened = Image.open(io.BytesIO(picture))
    if opened.format == "PNG" and len(picture) <= min(_LOSSLESS_IS_FINE, budget):
        return "image/png", picture
    image = opened.convert("RGB")
    exact = _webp(image, lossless=True)
    if len(exact) <= min(_LOSSLESS_IS_FINE, budget):
        return "image/webp", exact
    for _ in range(20):
        if max(image.size) <= 16_383 and len(content := _webp(image, quality=85)) <= budget:
            return "image/webp", content
        smaller = max(1, round(image.width * 0.8)), max(1, round(image.height * 0.8))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
    raise ValueError(f"The picture cannot be packed into {budget:,} bytes; give a larger limit.")


def _webp(image: Image.Image, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", method=4, **settings)
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    """With a palette where that loses nothing."""
    buffer = io.BytesIO()
    few_colors = image.getcolors(256) is not None
    packed = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256) if few_colors else image
    packed.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
