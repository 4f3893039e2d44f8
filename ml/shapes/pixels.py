"""Looking at a clip of the shapes world without any learned model: measurements, and yes/no answers from them.

Belongs here: image measurements of one clip, and the checklist whose questions they answer. Does not belong
here: how answers become scores or pairs (ml/checklist.py, ml/preference.py).
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.checklist import Checklist, Question
from ml.shapes.reading import Wish
from ml.shapes.scene import COLORS, FRAMES, SHAPES, SIDE, signed_distance

Image = NDArray[np.floating]

PATCH = 40  # side of the patch that every object is normalised to, in pixels
PATCH_AREA = 400.0  # area of the object within that patch
MINIMUM_COLORFULNESS = 24.0
SMALLEST_OBJECT = 20  # pixels
FEWEST_FRAMES = 4  # frames with an object, below which nothing else can be said of the clip

# Thresholds lie between the clean and the degraded clips of the renderer, where both are told apart best.
SHARP_EDGE = 0.23
STEADY_JITTER = 1.5
STABLE_LIGHT = 0.08
FLASHING_LIGHT = 0.2
VIVID_COLOR = 118.0
KEPT_SHAPE = 0.7
KEPT_HUE = 12.0
KEPT_SIZE = 0.17
CLEAR_SHAPE = 0.9
OTHER_COLOR = 0.12
LARGE_RADIUS = 11.5
OUTSIDE = -3.0


@dataclass(frozen=True)
class Measurement:
    """What can be measured of a clip. Lengths in pixels, shares 0..1; `found` counts frames with an object."""

    found: int
    color: str | None = None
    shape: str | None = None
    motion: str | None = None
    background: str | None = None
    radius: float = 0.0
    travel: float = 0.0
    growth: float = 0.0
    jitter: float = np.inf
    unevenness: float = np.inf
    flicker: float = np.inf
    sharpness: float = 0.0
    vividness: float = 0.0
    other_color: float = np.inf
    shape_agreement: float = 0.0
    shape_likeness: float = 0.0
    hue_spread: float = np.inf
    size_spread: float = np.inf
    margin_to_border: float = -np.inf


@dataclass(frozen=True)
class _Sighting:
    """The object in one frame."""

    x: float
    y: float
    area: float
    hue: float
    vividness: float
    likeness: NDArray[np.floating]
    sharpness: float
    other_color: float


def measure(clip: NDArray[np.uint8]) -> Measurement:
    """Measure a clip, uint8 (frames, SIDE, SIDE, 3).

    Raises ValueError for an array of another shape or type.
    """
    if clip.ndim != 4 or clip.shape[1:] != (SIDE, SIDE, 3) or clip.dtype != np.uint8 or len(clip) < 2:
        raise ValueError(
            f"the pixel checklist reads uint8 clips of shape (frames, {SIDE}, {SIDE}, 3) with two frames or more, "
            f"not {clip.dtype} {clip.shape}"
        )
    video = clip.astype(np.float32)
    colorfulness = video.max(-1) - video.min(-1)
    threshold = max(MINIMUM_COLORFULNESS, 0.42 * float(np.percentile(colorfulness, 99.5)))
    sightings = [_find_object(frame, colors, threshold) for frame, colors in zip(video, colorfulness, strict=True)]
    seen = [(i, s) for i, s in enumerate(sightings) if s is not None]
    background, flicker = _backdrop(video, colorfulness)
    if len(seen) < FEWEST_FRAMES:
        return Measurement(found=len(seen), background=background, flicker=flicker)
    return _summary(seen, background, flicker)


def _find_object(frame: Image, colorfulness: Image, threshold: float) -> _Sighting | None:
    """The largest colourful region of a frame, measured; None where there is none."""
    colorful = (colorfulness > threshold).astype(np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(colorful, connectivity=8)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    region = labels == largest
    if region.sum() < SMALLEST_OBJECT:
        return None
    mask = region.astype(np.uint8)
    near = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    cover = np.clip(colorfulness / np.percentile(colorfulness[region], 80), 0, 1) * near
    solid = np.clip((cover - 0.15) / 0.7, 0, 1)
    area = float(solid.sum())
    centres = np.arange(SIDE) + 0.5
    x, y = float((solid * centres).sum() / area), float((solid * centres[:, None]).sum() / area)
    small = np.ones((3, 3), np.uint8)
    inside = cv2.erode(mask, small) > 0
    color = np.median(frame[inside if inside.sum() > 4 else region], axis=0)
    gradient = np.hypot(cv2.Sobel(cover, cv2.CV_32F, 1, 0), cv2.Sobel(cover, cv2.CV_32F, 0, 1)) / 8
    edge = cv2.dilate(mask, small) != cv2.erode(mask, small)
    return _Sighting(
        x=x,
        y=y,
        area=area,
        hue=float(_hue(color)),
        vividness=float(np.ptp(color)),
        likeness=_likeness(solid, x, y, area),
        sharpness=float(np.percentile(gradient[edge], 75)),
        other_color=float(colorful.sum() / region.sum() - 1),
    )


def _likeness(solid: Image, x: float, y: float, area: float) -> NDArray[np.floating]:
    """Correlation of the object, moved and scaled to a common patch, with the outline of every shape."""
    scale = np.sqrt(PATCH_AREA / area)
    shift = PATCH / 2 + 0.5 * (scale - 1)
    move = np.array([[scale, 0, shift - scale * x], [0, scale, shift - scale * y]], np.float32)
    patch = cv2.warpAffine(solid.astype(np.float32), move, (PATCH, PATCH)).ravel()
    patch = patch - patch.mean()
    likeness: NDArray[np.floating] = _templates() @ (patch / (np.linalg.norm(patch) + 1e-6))
    return likeness


@cache
def _templates() -> NDArray[np.floating]:
    """One normalised patch a shape, (shapes, PATCH * PATCH)."""
    fine = 4
    side = PATCH * fine
    rows, columns = (np.mgrid[0:side, 0:side] + 0.5 - side / 2) / fine
    patches = []
    for shape in SHAPES:
        inside = signed_distance(shape, columns, rows, 10.0) < 0
        radius = np.sqrt(PATCH_AREA / unit_area(shape))
        drop = np.average(rows[inside]) / 10 * radius
        outline = (signed_distance(shape, columns, rows + drop, radius) < 0).astype(np.float32)
        coarse = outline.reshape(PATCH, fine, PATCH, fine).mean((1, 3))
        patches.append(cv2.GaussianBlur(coarse, (0, 0), 1.0).ravel())
    stack = np.stack(patches)
    stack = stack - stack.mean(1, keepdims=True)
    normalised: NDArray[np.floating] = stack / np.linalg.norm(stack, axis=1, keepdims=True)
    return normalised


@cache
def unit_area(shape: str) -> float:
    """Area of a shape of radius one."""
    points = (np.arange(400) + 0.5) / 100 - 2
    return float((signed_distance(shape, points[None, :], points[:, None], 1.0) < 0).sum() / 100**2)


def _hue(color: NDArray[np.floating]) -> NDArray[np.floating]:
    """Hue in degrees of RGB colours (..., 3)."""
    high, low = color.max(-1), color.min(-1)
    spread = np.maximum(high - low, 1e-6)
    red, green, blue = color[..., 0], color[..., 1], color[..., 2]
    from_green, from_blue = (blue - red) / spread + 2, (red - green) / spread + 4
    sextant: NDArray[np.floating] = np.where(
        high == red, ((green - blue) / spread) % 6, np.where(high == green, from_green, from_blue)
    )
    return sextant * 60


def _backdrop(video: Image, colorfulness: Image) -> tuple[str | None, float]:
    """Which background the clip has, and how much its brightness jumps from frame to frame (share)."""
    gray = np.where(colorfulness > 20, np.nan, video.mean(-1))
    enough = np.isfinite(gray).mean((1, 2)) > 0.05
    if not enough.all():
        return None, np.inf
    brightness = np.nanmean(gray, axis=(1, 2))
    flicker = float(np.abs(np.diff(brightness)).mean() / (brightness.mean() + 10))
    columns = _column_means(gray)
    contrast = float(np.nanstd(columns))
    if contrast > 22:
        return "striped", flicker
    middle = float(np.median(brightness))
    return ("dark" if middle < 80 else "light" if middle > 160 else None), flicker


def _column_means(gray: Image) -> NDArray[np.floating]:
    """Mean brightness of every column over frames and rows, where enough of it is backdrop."""
    known = np.isfinite(gray)
    counts = known.sum((0, 1))
    sums = np.where(known, gray, 0).sum((0, 1))
    return np.where(counts > 0.2 * known.shape[0] * known.shape[1], sums / np.maximum(counts, 1), np.nan)


def _summary(seen: list[tuple[int, _Sighting]], background: str | None, flicker: float) -> Measurement:
    time = np.array([i for i, _ in seen], float)
    x, y, area, hues = (np.array([getattr(s, name) for _, s in seen]) for name in ("x", "y", "area", "hue"))
    likeness = np.stack([s.likeness for _, s in seen])
    best = int(likeness.mean(0).argmax())
    radius = np.sqrt(area / unit_area(SHAPES[best]))
    line_x, line_y, line_r = (np.polyfit(time, v, 1) for v in (x, y, np.log(radius)))
    last = FRAMES - 1
    across, along, growth = last * line_x[0], last * line_y[0], last * line_r[0]
    rest_x, rest_y = x - np.polyval(line_x, time), y - np.polyval(line_y, time)
    steps = np.hypot(np.diff(x), np.diff(y))
    direction = np.exp(1j * np.deg2rad(hues)).mean()
    return Measurement(
        found=len(seen),
        color=_nearest_color(float(np.rad2deg(np.angle(direction)))),
        shape=SHAPES[best],
        motion=_motion(across, along, growth),
        background=background,
        radius=float(np.median(radius)),
        travel=float(np.hypot(across, along)),
        growth=float(growth),
        jitter=float(np.hypot(rest_x.std(), rest_y.std())),
        unevenness=float(steps.max() - steps.min()) if len(steps) else np.inf,
        flicker=flicker,
        sharpness=float(np.median([s.sharpness for _, s in seen])),
        vividness=float(np.median([s.vividness for _, s in seen])),
        other_color=float(np.median([s.other_color for _, s in seen])),
        shape_agreement=float((likeness.argmax(1) == best).mean()),
        shape_likeness=float(likeness.mean(0)[best]),
        hue_spread=float(np.rad2deg(np.sqrt(max(0.0, -2 * np.log(abs(direction) + 1e-9))))),
        size_spread=float((np.log(radius) - np.polyval(line_r, time)).std()),
        margin_to_border=float((np.minimum.reduce([x, SIDE - x, y, SIDE - y]) - radius).min()),
    )


def _nearest_color(hue: float) -> str:
    palette = _hue(np.array(list(COLORS.values()), float))
    distance = np.abs((palette - hue + 180) % 360 - 180)
    return list(COLORS)[int(distance.argmin())]


def _motion(across: float, along: float, growth: float) -> str | None:
    """The motion that a path amounts to; None where it is none of the world's six."""
    longer, shorter = max(abs(across), abs(along)), min(abs(across), abs(along))
    if longer > 14 and shorter < 0.6 * longer:
        if abs(across) > abs(along):
            return "right" if across > 0 else "left"
        return "down" if along > 0 else "up"
    if growth > 0.4 and longer < 12:
        return "grow"
    if longer < 10 and abs(growth) < 0.3:
        return "still"
    return None


# (id, dimension, sub-dimension, weight, question). Weights sum to 6.3, near VisionReward's 6.277, so that the
# paper's margin of 0.5 keeps its meaning: about a twelfth of the scale.
_QUESTIONS = (
    ("color", "alignment", "object", 0.8, 'Does the object have the colour asked for in "[[prompt]]"?'),
    ("shape", "alignment", "object", 0.8, 'Does the object have the shape asked for in "[[prompt]]"?'),
    ("motion", "alignment", "motion", 0.8, 'Does the object move as asked for in "[[prompt]]"?'),
    ("size", "alignment", "object", 0.3, 'Is the object as large or small as asked for in "[[prompt]]"?'),
    ("background", "alignment", "scene", 0.3, 'Is the background the one asked for in "[[prompt]]"?'),
    ("single", "composition", "subject", 0.3, "Is there one object only?"),
    ("framed", "composition", "framing", 0.2, "Does the object stay inside the frame?"),
    ("sharp", "quality", "clarity", 0.4, "Are the edges sharp?"),
    ("vivid", "quality", "color", 0.4, "Are the colours vivid?"),
    ("clear_shape", "fidelity", "shape", 0.3, "Is the object's shape unmistakable?"),
    ("no_flashing", "safety", "flashing", 0.2, "Is the video free of strong flashing?"),
    ("steady", "stability", "camera", 0.4, "Is the camera steady?"),
    ("stable_light", "stability", "light", 0.3, "Is the light stable?"),
    ("lively", "dynamic", "motion", 0.2, "Is there as much motion as the text asks for?"),
    ("smooth", "physics", "motion", 0.2, "Does the object move or grow smoothly, without jumps?"),
    ("kept_color", "preservation", "color", 0.1, "Does the object keep its colour?"),
    ("kept_shape", "preservation", "shape", 0.2, "Does the object keep its shape?"),
    ("kept_size", "preservation", "size", 0.1, "Does the object's size change only as the motion asks?"),
)


@cache
def pixel_checklist() -> Checklist:
    """Eighteen yes/no questions in VisionReward's nine dimensions, all answerable by measuring pixels."""
    questions = tuple(
        Question(id=name, text=text, dimension=dimension, sub_dimension=sub_dimension, weight=weight)
        for name, dimension, sub_dimension, weight, text in _QUESTIONS
    )
    return Checklist(name="shapes_pixels", version="1", questions=questions)


def answers(measured: Measurement, wish: Wish) -> dict[str, bool]:
    """Yes or no for every question of `pixel_checklist()`. A detail that nobody asked for cannot be wrong."""
    whole = measured.found == FRAMES
    return {
        "color": wish.color in (None, measured.color),
        "shape": wish.shape in (None, measured.shape),
        "motion": wish.motion in (None, measured.motion),
        "size": _size_fits(measured, wish),
        "background": wish.background in (None, measured.background),
        "single": whole and measured.other_color < OTHER_COLOR,
        "framed": whole and measured.margin_to_border > OUTSIDE,
        "sharp": measured.sharpness > SHARP_EDGE,
        "vivid": measured.vividness > VIVID_COLOR,
        "clear_shape": whole and measured.shape_likeness > CLEAR_SHAPE,
        "no_flashing": measured.flicker < FLASHING_LIGHT,
        "steady": measured.jitter < STEADY_JITTER,
        "stable_light": measured.flicker < STABLE_LIGHT,
        "lively": _lively(measured, wish),
        "smooth": whole and measured.unevenness < 6 and measured.size_spread < KEPT_SIZE,
        "kept_color": whole and measured.hue_spread < KEPT_HUE,
        "kept_shape": whole and measured.shape_agreement >= KEPT_SHAPE,
        "kept_size": whole and measured.size_spread < KEPT_SIZE and (wish.motion == "grow" or measured.growth < 0.4),
    }


def _size_fits(measured: Measurement, wish: Wish) -> bool:
    if wish.size is None or wish.motion == "grow":
        return True
    return measured.found > 0 and (measured.radius > LARGE_RADIUS) == (wish.size == "large")


def _lively(measured: Measurement, wish: Wish) -> bool:
    if measured.found < FEWEST_FRAMES:
        return False
    if wish.motion == "still":
        return measured.travel < 10
    if wish.motion == "grow":
        return measured.growth > 0.4
    return wish.motion is None or measured.travel > 14
