"""What every video generator must do, whatever is behind it: one test class that each backend's tests derive from.

Here: the class, and what it asks. Not here: the backends.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from resources.outcome import Failed, Outcome, Skipped
from resources.video_generator import Clip, VideoGenerator

PROMPTS = ["a red ring moves to the right", "two blue dogs", "a red ring moves to the right", "x"]
SEEDS = [1, 2, (1 << 48) - 1, 1]


def clip_of(outcome: Outcome[Clip]) -> Clip:
    """A clip that was made."""
    assert not isinstance(outcome, Failed | Skipped), outcome
    return outcome


class VideoGeneratorContract(ABC):
    """Derive from it and say how the generator is made, and what its clips look like."""

    shape: tuple[int, int, int]  # frames, height, width
    levels: int = 0  # of 255, by which a clip may differ with what else is in its batch

    @abstractmethod
    @pytest.fixture
    def generator(self) -> VideoGenerator:
        """The generator under test."""

    def clips(self, generator: VideoGenerator, prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
        """Clips that were all made."""
        outcomes = generator.generate(prompts, seeds)
        assert len(outcomes) == len(prompts)
        return [clip_of(outcome) for outcome in outcomes]

    def assert_same(self, one: Clip, other: Clip) -> None:
        """Equal up to what the backend promises."""
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other.astype(int)).max() <= self.levels

    def test_clips_are_bytes_of_the_shape_asked_for(self, generator: VideoGenerator) -> None:
        for clip in self.clips(generator, PROMPTS, SEEDS):
            assert clip.dtype == np.uint8
            assert clip.shape == (*self.shape, 3)
            assert clip.std() > 0

    def test_clips_come_in_order_and_do_not_depend_on_what_else_is_asked_for(self, generator: VideoGenerator) -> None:
        expected = self.clips(generator, PROMPTS, SEEDS)
        for order in ([3, 1, 0, 2], [2]):
            found = self.clips(generator, [PROMPTS[i] for i in order], [SEEDS[i] for i in order])
            for i, clip in zip(order, found, strict=True):
                self.assert_same(clip, expected[i])

    def test_another_prompt_or_seed_is_another_clip(self, generator: VideoGenerator) -> None:
        for one, other in combinations(self.clips(generator, PROMPTS, SEEDS), 2):
            assert np.abs(one.astype(int) - other.astype(int)).max() > self.levels + 1

    def test_nothing_asked_is_nothing_made(self, generator: VideoGenerator) -> None:
        assert generator.generate([], []) == []

    def test_every_prompt_needs_its_seed(self, generator: VideoGenerator) -> None:
        with pytest.raises(ValueError, match="2 prompts need as many seeds, not 1"):
            generator.generate(PROMPTS[:2], [1])

    def test_empty_very_long_and_odd_prompts_are_filmed(self, generator: VideoGenerator) -> None:
        prompts = ["", "a red ring " * 2_000, 'ünïcödé ☃ "quoted"\x00\n\u202e\ud800 {} %s {0}']
        assert [clip.shape for clip in self.clips(generator, prompts, [1, 2, 3])] == [(*self.shape, 3)] * 3

    def test_closing_frees_it_and_the_next_call_works_again(self, generator: VideoGenerator) -> None:
        (before,) = self.clips(generator, PROMPTS[:1], SEEDS[:1])
        generator.close()
        generator.close()
        (after,) = self.clips(generator, PROMPTS[:1], SEEDS[:1])
        assert np.array_equal(after, before)

    def test_the_identity_can_stand_in_a_recipe(self, generator: VideoGenerator) -> None:
        assert json.loads(json.dumps(generator.identity(), allow_nan=False)) == generator.identity()
        assert generator.identity()["backend"]
