"""What can happen in the shapes world, and how it looks: scenes and their renderer.

Belongs here: the scene's vocabulary of attributes, drawing random scenes, and turning a scene into pixels.
Does not belong here: any English (captions.py, words.py) or any judgement of a clip (pixels.py).
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

FRAMES = 5
SIDE = 64
FRAMES_PER_SECOND = 4.0

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 25, 30),
    "yellow": (245, 225, 30),
    "green": (25, 195, 40),
    "cyan": (30, 215, 230),
    "blue": (35, 60, 235),
    "purple": (160, 35, 220),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")
MOTIONS = ("right", "left", "up", "down", "still", "grow")
BACKGROUNDS = ("dark", "light", "striped")
RADIUS = {"small": 9.0, "large": 14.0}
SIZES = tuple(RADIUS)
DEFECTS = ("blur", "shake", "flicker", "washed")

POSITION_JITTER = 2.0  # pixels: enough that seeds differ, little enough that outlines are learned in an hour
GRAYS = {"dark": 28.0, "light": 212.0}
STRIPES = (60.0, 160.0)

# Videos in the wild are uneven: this share of clips carries a brief caption only, and is degraded more often.
AMATEUR_SHARE = 0.18
DEGRADED_SHARE = {False: 0.40, True: 0.68}

Clip = NDArray[np.uint8]
"""A video clip, (frames, height, width, 3), RGB, 0..255."""


@dataclass(frozen=True)
class Scene:
    """One clip of the world. `defects` name how its footage is degraded; `amateur` footage is described briefly."""

    color: str
    shape: str
    motion: str
    background: str
    size: str
    defects: tuple[str, ...] = ()
    amateur: bool = False

    def clean(self) -> "Scene":
        """The same scene in flawless footage."""
        return replace(self, defects=(), amateur=False)


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene, with degraded footage in about 45 % of the draws."""
    amateur = bool(rng.random() < AMATEUR_SHARE)
    defects: tuple[str, ...] = ()
    if rng.random() < DEGRADED_SHARE[amateur]:
        count = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
        defects = tuple(DEFECTS[i] for i in sorted(rng.choice(len(DEFECTS), size=count, replace=False)))
    return Scene(
        color=str(rng.choice(list(COLORS))),
        shape=str(rng.choice(SHAPES)),
        motion=str(rng.choice(MOTIONS)),
        background=str(rng.choice(BACKGROUNDS)),
        size=str(rng.choice(SIZES, p=[0.45, 0.55])),
        defects=defects,
        amateur=amateur,
    )


def signed_distance(
    shape: str, x: NDArray[np.floating], y: NDArray[np.floating], radius: float
) -> NDArray[np.floating]:
    """Distance in pixels of the points (x, y) from the outline of a shape at the origin; negative inside."""
    distance: NDArray[np.floating]
    match shape:
        case "circle":
            distance = np.hypot(x, y) - radius
        case "ring":
            distance = np.abs(np.hypot(x, y) - 0.74 * radius) - 0.26 * radius
        case "square":
            distance = np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
        case "triangle":
            half = 0.6 * radius
            y = y + 0.25 * radius
            slope = np.cos(np.pi / 6) * np.abs(x) - 0.5 * y - half
            distance = np.maximum(y - half - 0.2 * radius, slope)
        case "cross":
            long, short = radius, 0.32 * radius
            distance = np.minimum(
                np.maximum(np.abs(x) - long, np.abs(y) - short),
                np.maximum(np.abs(x) - short, np.abs(y) - long),
            )
        case _:
            raise ValueError(f"unknown shape {shape!r}; known shapes: {', '.join(SHAPES)}")
    return distance


def render(scene: Scene, rng: np.random.Generator) -> Clip:
    """Film a scene: uint8 (FRAMES, SIDE, SIDE, 3). Positions, sizes and colours vary a little with `rng`."""
    x, y, radius = _path(scene, rng)
    shake = _camera_shake(rng) if "shake" in scene.defects else np.zeros((2, FRAMES))
    color = np.clip(np.array(COLORS[scene.color]) + rng.uniform(-8, 8, 3), 0, 255)
    gray_shift = float(rng.uniform(-5, 5))
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.float32)
    for f in range(FRAMES):
        dx, dy = shake[:, f]
        distance = signed_distance(scene.shape, columns - x[f] - dx, rows - y[f] - dy, radius[f])
        cover = np.clip(0.5 - distance / 1.2, 0, 1)[..., None]
        backdrop = _backdrop(scene.background, columns - dx) + gray_shift
        frames[f] = backdrop[..., None] * (1 - cover) + color * cover
    return _degrade(frames, scene.defects, rng)


def _path(
    scene: Scene, rng: np.random.Generator
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Centre (x, y) and radius of the object in every frame, in pixels."""
    time = np.linspace(0, 1, FRAMES)
    x, y = (np.full(FRAMES, SIDE / 2 + rng.uniform(-POSITION_JITTER, POSITION_JITTER)) for _ in range(2))
    radius = np.full(FRAMES, RADIUS[scene.size] + rng.uniform(-0.6, 0.6))
    start, end = 16 + rng.uniform(-1.5, 1.5), 48 + rng.uniform(-1.5, 1.5)
    forward = start + (end - start) * time
    match scene.motion:
        case "right":
            x = forward
        case "left":
            x = forward[::-1]
        case "down":
            y = forward
        case "up":
            y = forward[::-1]
        case "grow":
            radius = 6 + rng.uniform(-0.5, 0.5) + 9 * time
    return x, y, radius


def _camera_shake(rng: np.random.Generator) -> NDArray[np.floating]:
    """Offsets (2, FRAMES) in pixels: clearly visible jitter, but never enough to lose the object."""
    time = np.linspace(0, 1, FRAMES)
    while True:
        offsets = rng.normal(0, 3.2, (2, FRAMES))
        jitter = [axis - np.polyval(np.polyfit(time, axis, 1), time) for axis in offsets]
        if 2.6 < np.hypot(jitter[0].std(), jitter[1].std()) < 5:
            return offsets


def _backdrop(background: str, columns: NDArray[np.floating]) -> NDArray[np.floating]:
    if background == "striped":
        return np.where((columns // 8).astype(int) % 2 == 0, *STRIPES)
    return np.full((SIDE, SIDE), GRAYS[background])


def _degrade(frames: NDArray[np.float32], defects: tuple[str, ...], rng: np.random.Generator) -> Clip:
    if "blur" in defects:
        frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 3.0) for frame in frames])
    if "washed" in defects:
        frames = 0.36 * frames + 0.64 * 150
    if "flicker" in defects:
        swing = 0.3 * rng.choice([-1, 1]) * np.where(np.arange(FRAMES) % 2 == 0, 1, -1)
        frames = frames * (1 + swing * rng.uniform(0.8, 1.1, FRAMES))[:, None, None, None]
    return np.clip(frames, 0, 255).astype(np.uint8)
