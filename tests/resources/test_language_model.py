from pathlib import Path

import pytest

from resources.language_model import CannotGenerate, Conversation, Sampling, TransformersLanguageModel
from tests.tiny_model import WINDOW, save_tiny_model

WARM = Sampling(temperature=1.0, max_new_tokens=8)
GREEDY = Sampling(temperature=0.0, max_new_tokens=8)
ASKED = ["a cat", "two dogs running", "x", "a red ring moves to the right on a dark background", "", "ünïcödé ☃"]


def asking(text: str) -> Conversation:
    return [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": text}]


CONVERSATIONS = [asking(text) for text in ASKED]
SEEDS = [11, 22, 33, 44, 55, (1 << 48) - 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersLanguageModel:
    return TransformersLanguageModel(folder, device="cpu", dtype="float32", batch_size=4)


def test_answers_come_in_the_order_of_the_questions(model: TransformersLanguageModel) -> None:
    together = model.generate(CONVERSATIONS, WARM, SEEDS)
    alone = [model.generate([c], WARM, [seed])[0] for c, seed in zip(CONVERSATIONS, SEEDS, strict=True)]
    assert together == alone
    assert len(set(together)) == len(together)


def test_a_seed_gives_its_text_whatever_else_is_in_the_batch(model: TransformersLanguageModel, folder: Path) -> None:
    expected = model.generate(CONVERSATIONS, WARM, SEEDS)
    order = [4, 2, 0, 5, 1, 3]
    shuffled = model.generate([CONVERSATIONS[i] for i in order], WARM, [SEEDS[i] for i in order])
    assert shuffled == [expected[i] for i in order]
    for batch_size in (1, 6):
        other = TransformersLanguageModel(folder, device="cpu", dtype="float32", batch_size=batch_size)
        assert other.generate(CONVERSATIONS, WARM, SEEDS) == expected


def test_other_seeds_give_other_texts(model: TransformersLanguageModel) -> None:
    texts = model.generate([CONVERSATIONS[0]] * 8, WARM, list(range(8)))
    assert len(set(texts)) >= 7


def test_temperature_zero_takes_the_likeliest_token(model: TransformersLanguageModel, folder: Path) -> None:
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
        expected.append(tokenizer.decode(tokens[start:], skip_special_tokens=True).strip())
    assert model.generate(CONVERSATIONS, GREEDY, SEEDS) == expected
    assert model.generate(CONVERSATIONS, GREEDY, SEEDS[::-1]) == expected


def test_a_tiny_nucleus_holds_the_likeliest_token_only(model: TransformersLanguageModel) -> None:
    nucleus = Sampling(temperature=1.0, top_p=1e-6, max_new_tokens=8)
    assert model.generate(CONVERSATIONS, nucleus, SEEDS) == model.generate(CONVERSATIONS, GREEDY, SEEDS)


def test_tokens_are_drawn_as_often_as_the_model_says(folder: Path) -> None:
    import torch

    from resources.language_model import _seeded_draw

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature in (0.5, 1.0):
        draw = _seeded_draw(Sampling(temperature=temperature), range(4000))
        chosen = draw(None, logits.repeat(4000, 1)).argmax(-1)
        shares = torch.bincount(chosen, minlength=4) / 4000
        torch.testing.assert_close(shares, (logits[0] / temperature).softmax(-1), atol=0.03, rtol=0)


def test_a_prompt_beyond_the_window_is_refused_with_what_to_do(model: TransformersLanguageModel) -> None:
    with pytest.raises(CannotGenerate, match=rf"do not fit into the model's {WINDOW}; shorten the query"):
        model.generate([asking("y" * 100_000)], WARM, [1])
    with pytest.raises(CannotGenerate, match="max_new_tokens"):
        model.generate([asking("a cat")], Sampling(max_new_tokens=WINDOW), [1])
    assert model.generate([CONVERSATIONS[0]], WARM, [11])  # it still works


def test_nothing_asked_is_nothing_answered(model: TransformersLanguageModel) -> None:
    assert model.generate([], WARM, []) == []


def test_every_conversation_needs_its_seed(model: TransformersLanguageModel) -> None:
    with pytest.raises(ValueError, match="2 conversations need as many seeds, not 1"):
        model.generate(CONVERSATIONS[:2], WARM, [1])


def test_a_model_that_cannot_chat_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "base", chat_template=False)
    model = TransformersLanguageModel(folder, device="cpu", dtype="float32", name="base")
    with pytest.raises(CannotGenerate, match="base has no chat template"):
        model.generate([CONVERSATIONS[0]], WARM, [1])


def test_closing_frees_the_model_and_the_next_call_loads_it_again(folder: Path) -> None:
    model = TransformersLanguageModel(folder, device="cpu", dtype="float32")
    before = model.generate(CONVERSATIONS[:1], WARM, [1])
    assert model._loaded is not None
    model.close()
    assert model._loaded is None
    assert model.generate(CONVERSATIONS[:1], WARM, [1]) == before


def test_the_identity_names_what_decides_the_answers(folder: Path) -> None:
    one = TransformersLanguageModel(folder, dtype="float32", batch_size=2, name="tiny")
    assert one.identity() == TransformersLanguageModel(folder, dtype="float32", batch_size=9, name="tiny").identity()
    assert one.identity() != TransformersLanguageModel(folder, dtype="bfloat16", name="tiny").identity()
    assert one.identity() != TransformersLanguageModel(folder, dtype="float32", name="tiny", revision="2").identity()
