"""Which frames a model is shown, and videos that cannot be shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.visionreward.frames import UnreadableVideo, chosen_frames, sampled_frames
from services.visionreward.interface import Sampling
from services.visionreward.visionreward_video import VisionRewardVideo
from tests.services.clips import mp4, numbered_clip, numbers_of

TRAINED = VisionRewardVideo.sampling


def by_the_authors(times: list[float]) -> list[int]:
    """VisionReward's rule as its authors state it, in a plain loop: the frame nearest to each second, 24 at most."""
    chosen = []
    for second in range(round(max(times)) + 1):
        nearest = min(times, key=lambda time: abs(time - second))
        chosen.append(times.index(nearest))
        if len(chosen) == 24:
            break
    return chosen


def test_visionreward_is_shown_a_frame_a_second_and_24_at_most() -> None:
    assert Sampling(per_second=1.0, most=24) == TRAINED
    eight_a_second = [n / 8 for n in range(49)]  # CogVideoX: 49 frames, 6 seconds
    assert chosen_frames(eight_a_second, TRAINED) == [0, 8, 16, 24, 32, 40, 48]
    assert len(chosen_frames([n / 16 for n in range(16 * 60)], TRAINED)) == 24
    assert chosen_frames([0.0], TRAINED) == [0]
    assert chosen_frames([0.0, 0.25, 0.5, 0.75, 1.0], TRAINED) == [0, 4]
    assert chosen_frames([n / 8 for n in range(13)], TRAINED) == [0, 8, 12]  # 1.5 s: rounded to the even 2


@given(
    st.floats(0.2, 70).flatmap(lambda fps: st.integers(1, 400).map(lambda count: [n / fps for n in range(count)]))
    | st.lists(st.integers(0, 4000).map(lambda n: n / 100), min_size=1, max_size=60, unique=True).map(sorted)
)
def test_frames_are_chosen_as_the_authors_choose_them(times: list[float]) -> None:
    times = [time - times[0] for time in times]
    assert chosen_frames(times, TRAINED) == by_the_authors(times)


def test_other_models_have_other_rates() -> None:
    two_a_second = Sampling(per_second=2.0, most=8)
    assert chosen_frames([n / 8 for n in range(17)], two_a_second) == [0, 4, 8, 12, 16]
    assert len(chosen_frames([n / 8 for n in range(100)], two_a_second)) == 8


@pytest.mark.parametrize(
    ("fps", "count", "expected"), [(8, 49, [0, 8, 16, 24, 32, 40, 48]), (4, 5, [0, 4]), (8, 1, [0])]
)
def test_the_right_frames_are_decoded(fps: float, count: int, expected: list[int]) -> None:
    frames = sampled_frames(mp4(numbered_clip(count), fps), TRAINED)
    assert frames.shape == (len(expected), 32, 48, 3)
    assert numbers_of(frames) == expected


def test_frames_that_are_stored_in_another_order_than_shown_are_found() -> None:
    content = mp4(numbered_clip(49), 8, bf="3", g="12", preset="slow")
    assert numbers_of(sampled_frames(content, TRAINED)) == [0, 8, 16, 24, 32, 40, 48]


def test_what_is_no_video_is_refused() -> None:
    good = mp4(numbered_clip(49, (64, 64)), 8)
    for bad in (b"", b"RIFF", b"\x00" * 1000, good[: len(good) // 4], good.replace(b"avc1", b"xxxx")):
        with pytest.raises(UnreadableVideo):
            sampled_frames(bad, TRAINED)


def test_a_video_damaged_inside_is_refused_or_read_but_nothing_else() -> None:
    good = mp4(numbered_clip(49, (64, 64)), 8)
    for start in range(40, len(good) - 40, max(1, len(good) // 25)):
        bad = good[:start] + b"\xff" * 32 + good[start + 32 :]
        try:
            frames = sampled_frames(bad, TRAINED)
        except UnreadableVideo as error:
            assert "\n" not in str(error)[:100]
        else:
            assert 1 <= len(frames) <= 24


def test_frames_larger_than_any_model_sees_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = mp4(numbered_clip(3), 8)
    monkeypatch.setattr("services.visionreward.frames.MOST_PIXELS", 32 * 48 - 1)
    with pytest.raises(UnreadableVideo, match="more than 1535 pixels"):
        sampled_frames(content, TRAINED)
    monkeypatch.undo()
    monkeypatch.setattr("services.visionreward.frames.MOST_FRAMES", 2)
    with pytest.raises(UnreadableVideo, match="more than 2 frames"):
        sampled_frames(content, TRAINED)
