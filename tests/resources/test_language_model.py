import gc
from pathlib import Path

import pytest

from resources.language_model import LanguageModel, Sampling
from resources.outcome import Unavailable
from resources.transformers_model import TransformersLanguageModel, _seeded_draw
from tests.resources.language_model_contract import (
    CONVERSATIONS,
    GREEDY,
    SEEDS,
    WARM,
    HoldsMemory,
    replies,
    texts,
)
from tests.tiny_model import WINDOW, save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> TransformersLanguageModel:
    return TransformersLanguageModel(folder, device="cpu", dtype="float32", batch_size=4)


class TestTransformers(HoldsMemory):
    @pytest.fixture
    def model(self, tiny: TransformersLanguageModel) -> LanguageModel:
        return tiny

    def holds_memory(self, model: LanguageModel) -> bool:
        from transformers import LlamaForCausalLM

        return any(type(thing) is LlamaForCausalLM for thing in gc.get_objects())


def test_a_seed_gives_its_text_whatever_else_is_in_the_batch(tiny: TransformersLanguageModel, folder: Path) -> None:
    expected = tiny.generate(CONVERSATIONS, WARM, SEEDS)
    alone = [tiny.generate([c], WARM, [seed])[0] for c, seed in zip(CONVERSATIONS, SEEDS, strict=True)]
    assert alone == expected
    for batch_size in (1, 6):
        other = TransformersLanguageModel(folder, device="cpu", dtype="float32", batch_size=batch_size)
        assert other.generate(CONVERSATIONS, WARM, SEEDS) == expected


def test_temperature_zero_takes_the_likeliest_token(tiny: TransformersLanguageModel, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, plain = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = []
    for conversation in CONVERSATIONS:
        text = tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        start = len(tokens)
        with torch.inference_mode():
            while len(tokens) - start < GREEDY.max_new_tokens and tokens[-1] != tokenizer.eos_token_id:
                tokens.append(int(plain(torch.tensor([tokens])).logits[0, -1].argmax()))
        expected.append((tokenizer.decode(tokens[start:], skip_special_tokens=True).strip(), start, len(tokens)))
    written = replies(tiny.generate(CONVERSATIONS, GREEDY, SEEDS))
    assert [(r.text, r.prompt_tokens, r.prompt_tokens + r.new_tokens) for r in written] == expected


def test_a_tiny_nucleus_holds_the_likeliest_token_only(tiny: TransformersLanguageModel) -> None:
    nucleus = Sampling(temperature=1.0, top_p=1e-6, max_new_tokens=8)
    assert tiny.generate(CONVERSATIONS, nucleus, SEEDS) == tiny.generate(CONVERSATIONS, GREEDY, SEEDS)


def test_a_text_that_ends_by_itself_is_whole_and_counted_to_its_end(folder: Path) -> None:
    model = TransformersLanguageModel(folder, device="cpu", dtype="float32", batch_size=64)
    many = replies(model.generate([CONVERSATIONS[0]] * 64, Sampling(1.0, 1.0, 24), list(range(64))))
    whole = [reply for reply in many if reply.whole]
    assert 0 < len(whole) < len(many)
    assert min(reply.new_tokens for reply in whole) < 24
    assert all(reply.new_tokens == 24 for reply in many if not reply.whole)
    first = whole[0]
    again = model.generate([CONVERSATIONS[0]], Sampling(1.0, 1.0, first.new_tokens), [many.index(first)])
    assert again == [first]


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    import torch

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature in (0.5, 1.0):
        draw = _seeded_draw(Sampling(temperature=temperature), range(4000))
        chosen = draw(None, logits.repeat(4000, 1)).argmax(-1)
        shares = torch.bincount(chosen, minlength=4) / 4000
        torch.testing.assert_close(shares, (logits[0] / temperature).softmax(-1), atol=0.03, rtol=0)


def test_a_prompt_that_just_fits_is_answered(tiny: TransformersLanguageModel) -> None:
    length = replies(tiny.generate(CONVERSATIONS[:1], WARM, [1]))[0].prompt_tokens
    room = WINDOW - length
    assert len(texts(tiny.generate(CONVERSATIONS[:1], Sampling(1.0, 1.0, room), [1]))) == 1
    too_many = tiny.generate(CONVERSATIONS[:1], Sampling(1.0, 1.0, room + 1), [1])[0]
    assert f"a prompt of {length} tokens and {room + 1} new ones do not fit into the model's {WINDOW}" in str(too_many)


def test_a_model_that_cannot_chat_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "base", chat_template=False)
    model = TransformersLanguageModel(folder, device="cpu", dtype="float32", name="base")
    with pytest.raises(Unavailable, match="base has no chat template"):
        model.generate([CONVERSATIONS[0]], WARM, [1])


def test_the_identity_names_what_decides_the_answers(folder: Path) -> None:
    one = TransformersLanguageModel(folder, dtype="float32", batch_size=2, name="tiny")
    assert one.identity() == TransformersLanguageModel(folder, dtype="float32", batch_size=9, name="tiny").identity()
    assert one.identity() != TransformersLanguageModel(folder, dtype="bfloat16", name="tiny").identity()
    assert one.identity() != TransformersLanguageModel(folder, dtype="float32", name="tiny", revision="2").identity()
