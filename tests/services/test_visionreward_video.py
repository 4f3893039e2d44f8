"""The runner of VisionReward-Video, with a tiny model of the same interface that brings its code along."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.visionreward.interface import CannotStart, Frames, Start
from services.visionreward.visionreward_video import VisionRewardVideo
from tests.services import tiny_cogvlm2_video
from tests.services.clips import asked, mp4
from tests.services.running import running_service
from tests.tiny_model import save_tiny_model

torch = pytest.importorskip("torch")

QUESTIONS = [
    "Is it clear?",
    'Does the video meet all the requirements stated in the text "a red square that moves right for a while"?',
    "Are there any letters present?",
    *(f"Is the camera very stable, number {number}?" for number in range(8)),
]


def save_tiny_checkpoint(folder: Path, *, says_other_words: bool = False) -> Path:
    """The tiny model as its authors would publish it: weights, tokenizer, and the code to run it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "Yes", "yes", "No", "no"]
    vocabulary = {token: i for i, token in enumerate([*words, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(words[2:])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(1)
    model = tiny_cogvlm2_video.TinyCogVLM2Video(tiny_cogvlm2_video.TinyConfig(vocab_size=len(vocabulary)))
    if not says_other_words:
        head = model.lm_head.weight.data
        yes, other_yes = head[2].clone(), 0.5 * head[3]
        head.zero_()
        head[2], head[4] = yes, -yes  # one of the two is always the likeliest word
        head[3], head[5] = other_yes * 0.1, -other_yes * 0.1
    model.save_pretrained(folder)
    code = Path(tiny_cogvlm2_video.__file__)
    shutil.copy(code, folder / "modeling_tiny.py")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_tiny.TinyConfig",
        "AutoModelForCausalLM": "modeling_tiny.TinyCogVLM2Video",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache_of_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of the tests' own for the code that transformers copies out of checkpoints, here and in processes."""
    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", folder)
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> VisionRewardVideo:
    loaded = VisionRewardVideo(Start(str(checkpoint), None, "cpu", True))
    loaded.load()
    return loaded


def clips() -> list[Frames]:
    """A few clips of noise, of different lengths."""
    random = np.random.default_rng(0)
    return [
        np.clip(random.normal(random.uniform(40, 210, 3), 30, (frames, 24, 32, 3)), 0, 255).astype(np.uint8)
        for frames in (1, 7, 24, 7)
    ]


def by_a_pass_a_question(model: VisionRewardVideo, frames: Frames, question: str) -> tuple[str, float]:
    """The first word of a greedy generation as the authors' script has it: everything anew for every question."""
    inner = model._model
    built = inner.build_conversation_input_ids(
        tokenizer=model._tokenizer,
        query=question,
        history=[],
        images=[torch.from_numpy(frames).permute(3, 0, 1, 2)],
        template_version="chat",
    )
    with torch.inference_mode():
        hidden = inner.get_decoder()(
            input_ids=built["input_ids"][None],
            token_type_ids=built["token_type_ids"][None],
            attention_mask=built["attention_mask"][None],
            images=[built["images"]],
        ).last_hidden_state
        logits = inner.lm_head(hidden)[0, -1]
    shares = logits.softmax(dim=0)
    yes, no = (
        float(sum(shares[model._tokenizer.convert_tokens_to_ids(word)] for word in words))
        for words in (("Yes", "yes"), ("No", "no"))
    )
    return model._tokenizer.decode([int(logits.argmax())]), yes / (yes + no)


def test_answers_are_those_of_a_full_pass_for_every_question(model: VisionRewardVideo) -> None:
    words = set()
    for frames in clips():
        said = model.answer(model.encode(frames), QUESTIONS)
        for question, one in zip(QUESTIONS, said, strict=True):
            text, probability = by_a_pass_a_question(model, frames, question)
            assert one.text == text
            assert one.probability == pytest.approx(probability, abs=1e-5)
            assert (one.probability > 0.5) == (text.casefold() == "yes")
            words.add(text.casefold())
    assert words == {"yes", "no"}


def test_answers_do_not_depend_on_the_batch(model: VisionRewardVideo) -> None:
    features = model.encode(clips()[1])
    together = model.answer(features, QUESTIONS)
    alone = [model.answer(features, [question])[0] for question in reversed(QUESTIONS)][::-1]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.probability for one in together] == pytest.approx([one.probability for one in alone], abs=1e-5)


def test_frames_are_read_once_a_clip_and_of_questions_only_their_words(model: VisionRewardVideo) -> None:
    vision, first_layer = model._model.model.vision, model._model.model.layers[0]
    calls = vision.calls
    first_layer.lengths.clear()
    features = model.encode(clips()[2])
    for start in range(0, len(QUESTIONS), 4):
        model.answer(features, QUESTIONS[start : start + 4])
    assert vision.calls == calls + 1
    frames, *words = first_layer.lengths
    assert frames == 1 + 24 * 6 + 10 + 14 * 2  # the start, patches and ends of frames, the numbers 0 to 23
    longest = max(len(f"Question: {question} Answer:") for question in QUESTIONS)
    assert max(words) == longest
    assert len(words) == 3


def test_another_clip_and_another_order_of_frames_have_other_answers(model: VisionRewardVideo) -> None:
    def probabilities(frames: Frames) -> Sequence[float | None]:
        return [one.probability for one in model.answer(model.encode(frames), QUESTIONS)]

    first, other = probabilities(clips()[1]), probabilities(clips()[3])
    assert first != pytest.approx(other, abs=1e-4)
    assert probabilities(clips()[1][::-1].copy()) != pytest.approx(first, abs=1e-6)


@pytest.mark.slow
def test_served_it_says_the_same(model: VisionRewardVideo, checkpoint: Path) -> None:
    import httpx

    from services.visionreward.frames import sampled_frames

    content = mp4(np.repeat(clips()[1], 4, axis=0), 4)
    expected = model.answer(model.encode(sampled_frames(content, model.sampling)), QUESTIONS)
    with running_service(checkpoint, "--trust-remote-code", "--device", "cpu", "--batch", "4") as address:
        answer = httpx.post(f"{address}/answers", json={"clips": [asked(content, "", QUESTIONS)]}, timeout=60).json()
    answers = answer["results"][0]["answers"]
    assert [one["answer"] for one in answers] == [one.text.casefold() for one in expected]
    assert [one["probability"] for one in answers] == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_other_words_are_handed_on_as_they_are(tmp_path: Path) -> None:
    model = VisionRewardVideo(Start(str(save_tiny_checkpoint(tmp_path, says_other_words=True)), None, "cpu", True))
    model.load()
    said = model.answer(model.encode(clips()[0]), QUESTIONS)
    assert any(one.text not in ("Yes", "yes", "No", "no") for one in said)
    assert all(one.probability is not None and 0 <= one.probability <= 1 for one in said)


def loading(start: Start) -> str:
    with pytest.raises(CannotStart) as caught:
        VisionRewardVideo(start).load()
    return str(caught.value)


def test_its_code_is_run_only_if_trusted(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None], "AutoModelForCausalLM": "evil.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    said = loading(Start(str(tmp_path), None, "cpu", False))
    assert "--trust-remote-code" in said
    assert "--revision" in said
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_loaded_is_told_with_its_reason(tmp_path: Path) -> None:
    assert loading(Start(str(tmp_path), None, "cpu", True)) == f"{tmp_path} is no model: it has no config.json"
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert loading(Start(str(tmp_path), None, "cpu", True)).startswith(f"{tmp_path} cannot be loaded: ")


def test_other_models_are_told_apart(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    assert "is no CogVLM2-Video" in loading(Start(str(folder), None, "cpu", True))


def test_pickled_weights_are_not_loaded(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, folder / "pytorch_model.bin")
    assert "safetensors" in loading(Start(str(folder), None, "cpu", True))


def test_what_is_sampled_fits_the_model(model: VisionRewardVideo) -> None:
    features: Any = model.encode(np.zeros((24, 10, 10, 3), np.uint8))
    assert features.past[0][0].shape[2] == features.tokens.shape[1]
