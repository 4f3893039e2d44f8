"""What every backend of LanguageModel has to keep.

A backend's tests subclass LanguageModelContract and give it a `model`; those of a backend that runs the model itself
subclass HoldsMemory, and say how they see whether it does.
"""

import gc
import signal
import sys
from types import FrameType

import pytest

from resources.language_model import Conversation, LanguageModel, Reply, Sampling
from resources.outcome import Failed, Outcome

WARM = Sampling(temperature=1.0, max_new_tokens=8)
GREEDY = Sampling(temperature=0.0, max_new_tokens=8)
ASKED = ["a cat", "two dogs running", "x", "a red ring moves to the right on a dark background", "", "ünïcödé ☃"]
SEEDS = [11, 22, 33, 44, 55, (1 << 48) - 1]


def asking(text: str) -> Conversation:
    return [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": text}]


CONVERSATIONS = [asking(text) for text in ASKED]


def replies(outcomes: list[Outcome[Reply]]) -> list[Reply]:
    assert all(isinstance(outcome, Reply) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Reply)]


def texts(outcomes: list[Outcome[Reply]]) -> list[str]:
    return [reply.text for reply in replies(outcomes)]


class Cancelled(BaseException):
    """Stands for whatever ends a run from outside: it is no Exception, so nothing catches it by accident."""


class LanguageModelContract:
    """Order, samples, determinism under a seed, odd input, cancellation, closing."""

    long_reply = 200  # new tokens that take a good while, and fit into the model's window
    too_long = "do not fit into the model's"  # what is said of a prompt that does not fit
    too_many = "max_new_tokens"  # and of more new tokens than fit

    @pytest.fixture
    def model(self) -> LanguageModel:
        raise NotImplementedError

    def test_replies_come_in_the_order_of_the_questions(self, model: LanguageModel) -> None:
        together = texts(model.generate(CONVERSATIONS, GREEDY, SEEDS))
        assert len(set(together)) == len(together)
        order = [4, 2, 0, 5, 1, 3]
        shuffled = model.generate([CONVERSATIONS[i] for i in order], GREEDY, SEEDS)
        assert texts(shuffled) == [together[i] for i in order]

    def test_the_same_question_and_seed_give_the_same_reply(self, model: LanguageModel) -> None:
        assert model.generate(CONVERSATIONS, WARM, SEEDS) == model.generate(CONVERSATIONS, WARM, SEEDS)

    def test_seeds_give_samples_of_the_same_conversation(self, model: LanguageModel) -> None:
        samples = texts(model.generate([CONVERSATIONS[3]] * 8, WARM, list(range(8))))
        assert len(set(samples)) >= 7
        again = texts(model.generate([CONVERSATIONS[3]] * 8, WARM, list(range(7, -1, -1))))
        assert again == samples[::-1]

    def test_without_temperature_the_seed_is_all_the_same(self, model: LanguageModel) -> None:
        assert model.generate(CONVERSATIONS, GREEDY, SEEDS) == model.generate(CONVERSATIONS, GREEDY, SEEDS[::-1])

    def test_replies_tell_their_length_and_whether_they_are_whole(self, model: LanguageModel) -> None:
        for reply in replies(model.generate(CONVERSATIONS, WARM, SEEDS)):
            assert reply.text == reply.text.strip()
            assert 0 < reply.new_tokens <= WARM.max_new_tokens
            assert reply.whole or reply.new_tokens == WARM.max_new_tokens
        counts = [r.prompt_tokens for r in replies(model.generate([asking("a"), asking("a b c")], WARM, [1, 2]))]
        assert 0 < counts[0] < counts[1]

    def test_nothing_asked_is_nothing_answered(self, model: LanguageModel) -> None:
        assert model.generate([], WARM, []) == []

    def test_an_empty_message_is_answered(self, model: LanguageModel) -> None:
        assert len(replies(model.generate([asking("")], WARM, [1]))) == 1

    def test_a_very_long_message_fails_and_the_others_are_answered(self, model: LanguageModel) -> None:
        long = asking("word " * 50_000)
        outcomes = model.generate([CONVERSATIONS[0], long, CONVERSATIONS[1], long], WARM, [11, 1, 22, 2])
        assert isinstance(outcomes[1], Failed)
        assert isinstance(outcomes[3], Failed)
        assert self.too_long in outcomes[1].reason, outcomes[1].reason
        assert [outcomes[0], outcomes[2]] == model.generate(CONVERSATIONS[:2], WARM, SEEDS[:2])
        assert isinstance(model.generate([long], WARM, [1])[0], Failed)

    def test_more_new_tokens_than_the_window_has_fail_too(self, model: LanguageModel) -> None:
        outcome = model.generate(CONVERSATIONS[:1], Sampling(max_new_tokens=10_000_000), [1])[0]
        assert isinstance(outcome, Failed)
        assert self.too_many in outcome.reason, outcome.reason

    def test_every_conversation_needs_its_seed(self, model: LanguageModel) -> None:
        with pytest.raises(ValueError, match="2 conversations need as many seeds, not 1"):
            model.generate(CONVERSATIONS[:2], WARM, [1])

    def test_after_a_cancelled_call_the_next_one_is_answered_as_ever(self, model: LanguageModel) -> None:
        expected = model.generate(CONVERSATIONS, WARM, SEEDS)
        cancel_in_the_middle(model, self.long_reply)
        assert model.generate(CONVERSATIONS, WARM, SEEDS) == expected

    def test_after_closing_the_next_call_is_answered_as_ever(self, model: LanguageModel) -> None:
        expected = model.generate(CONVERSATIONS, WARM, SEEDS)
        model.close()
        model.close()
        assert model.generate(CONVERSATIONS, WARM, SEEDS) == expected


class HoldsMemory(LanguageModelContract):
    """The same, and memory that is given back."""

    def holds_memory(self, model: LanguageModel) -> bool:
        """Whether the model is in memory now, seen from outside of it."""
        raise NotImplementedError

    def test_closing_frees_the_memory_after_a_cancelled_call_too(self, model: LanguageModel) -> None:
        model.generate(CONVERSATIONS, WARM, SEEDS)
        assert self.holds_memory(model)
        model.close()
        assert not self.holds_memory(model)
        model.generate(CONVERSATIONS, WARM, SEEDS)
        cancel_in_the_middle(model, self.long_reply)
        model.close()
        assert not self.holds_memory(model)


def cancel_in_the_middle(model: LanguageModel, new_tokens: int) -> None:
    """Ask for a lot, and break off after half a second, as an interrupt from outside does."""

    def cancel(number: int, frame: FrameType | None) -> None:
        if not isinstance(sys.exc_info()[1], Cancelled):  # a second one is for where the first was swallowed
            raise Cancelled

    before = signal.signal(signal.SIGALRM, cancel)
    gc.disable()  # what is raised in a callback of the collector is lost
    signal.setitimer(signal.ITIMER_REAL, 0.5, 10)
    try:
        with pytest.raises(Cancelled):
            model.generate(CONVERSATIONS * 20, Sampling(1.0, 1.0, new_tokens), SEEDS * 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)
