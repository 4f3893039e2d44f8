"""What every video reward must do, whatever is behind it: one test class that each backend's tests derive from.

Here: the class, and clips and queries that any backend can judge. Not here: the backends.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pytest

from ml.shapes.scene import Scene, render
from resources.outcome import Failed, Outcome, Skipped
from resources.video_generator import Clip
from resources.video_reward import Answer, VideoReward


def colored_clip(color: str, seed: int = 0) -> Clip:
    """A large square of a colour that moves to the right, (5, 64, 64, 3)."""
    return render(Scene(color, "square", "right", "dark", "large"), np.random.default_rng(seed))


def answers_of(outcome: Outcome[list[Answer]]) -> list[Answer]:
    """The answers about a clip that has some."""
    assert not isinstance(outcome, Failed | Skipped), outcome
    return outcome


CLIPS = [colored_clip("red"), colored_clip("green"), colored_clip("blue"), colored_clip("red", 1)]
QUERIES = ["a red square moves right", "a green square", "a red square", "a blue square moves right"]


class VideoRewardContract(ABC):
    """Derive from it and say how the reward is made. `damaging_query` makes the backend fail a clip, where it can."""

    damaging_query: str | None = None
    damaged_because: str = ""

    @abstractmethod
    @pytest.fixture
    def reward(self) -> VideoReward:
        """The reward under test."""

    def judged(self, reward: VideoReward, queries: Sequence[str], clips: Sequence[Clip]) -> list[list[Answer]]:
        """Answers about clips that all have some."""
        return [answers_of(outcome) for outcome in reward.answer(queries, clips)]

    def test_every_clip_has_one_answer_a_question_in_the_checklists_order(self, reward: VideoReward) -> None:
        for answers in self.judged(reward, QUERIES, CLIPS):
            assert tuple(answer.question for answer in answers) == reward.checklist.ids
            assert all(type(answer.yes) is bool and 0 <= answer.probability <= 1 for answer in answers)
            assert all(answer.yes == (answer.probability > 0.5) for answer in answers)

    def test_answers_come_in_the_order_of_the_clips_and_again_the_same(self, reward: VideoReward) -> None:
        expected = self.judged(reward, QUERIES, CLIPS)
        assert len({tuple(answers) for answers in expected}) > 1
        for order in ([3, 1, 0, 2], [2]):
            found = self.judged(reward, [QUERIES[i] for i in order], [CLIPS[i] for i in order])
            assert found == [expected[i] for i in order]

    def test_another_query_has_other_answers_about_the_same_clip(self, reward: VideoReward) -> None:
        fitting, other = self.judged(reward, ["a red square", "a blue square"], [CLIPS[0], CLIPS[0]])
        assert fitting != other
        scores = reward.checklist.score(
            [[getattr(a, reward.checklist.counts) for a in item] for item in (fitting, other)]
        )
        assert scores[0] > scores[1]

    def test_another_clip_has_other_answers_to_the_same_query(self, reward: VideoReward) -> None:
        red, blue = self.judged(reward, ["a red square"] * 2, [CLIPS[0], CLIPS[2]])
        assert red != blue

    def test_nothing_asked_is_nothing_answered(self, reward: VideoReward) -> None:
        assert reward.answer([], []) == []

    def test_empty_and_very_long_queries_are_answered(self, reward: VideoReward) -> None:
        queries = ["", "a red square " * 20_000, 'a "red"\x00 square\n\u202e\ud800']
        assert len(self.judged(reward, queries, CLIPS[:3])) == 3

    def test_queries_and_clips_must_be_as_many(self, reward: VideoReward) -> None:
        with pytest.raises(ValueError, match=r"shorter|longer"):
            reward.answer(QUERIES[:1], CLIPS[:2])

    def test_a_damaged_answer_fails_its_clip_only(self, reward: VideoReward) -> None:
        if self.damaging_query is None:
            pytest.skip("this backend measures its answers: there is nobody to give a damaged one")
        queries = [QUERIES[0], self.damaging_query, QUERIES[2]]
        good, bad, also_good = reward.answer(queries, CLIPS[:3])
        assert isinstance(bad, Failed)
        assert self.damaged_because in bad.reason
        assert "\n" not in bad.reason
        assert [good, also_good] == self.judged(reward, [QUERIES[0], QUERIES[2]], [CLIPS[0], CLIPS[2]])

    def test_the_identity_is_plain_and_stays_the_same(self, reward: VideoReward) -> None:
        before = reward.identity()
        assert json.loads(json.dumps(before)) == before
        self.judged(reward, QUERIES[:1], CLIPS[:1])
        assert reward.identity() == before

    def test_closed_it_can_be_used_again(self, reward: VideoReward) -> None:
        expected = self.judged(reward, QUERIES[:1], CLIPS[:1])
        reward.close()
        reward.close()
        assert self.judged(reward, QUERIES[:1], CLIPS[:1]) == expected
