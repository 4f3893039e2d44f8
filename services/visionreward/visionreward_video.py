"""VisionReward-Video (arXiv 2412.21059): a CogVLM2-Video whose answers to a checklist were trained on people's.

Belongs here: running this model as it was trained: one greedy token a question, in the template "chat". Does not
belong here: choosing frames (frames.py), batching (answering.py), what answers are worth.

The model's classes come with its weights, not with transformers, and run in old versions of it only: see
requirements.in. What is used of them: `build_conversation_input_ids`, `prepare_inputs_for_generation` for the
positions, the decoder and the output embeddings. All questions about a clip begin with the same frames, so the frames
go through the vision tower and the decoder once a clip, and of each question only its own words go through the
decoder, many questions at once. That is the same computation as a generation per question, without its repetition.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.visionreward.interface import CannotStart, ChecklistModel, Frames, Said, Sampling, Start

TEMPLATE = "chat"
WORDS = ("yes", "Yes", "YES", "no", "No", "NO")


@dataclass(frozen=True)
class Shown:
    """A clip's frames as the decoder has read them: its tokens, and its keys and values of every layer."""

    tokens: Any  # (1, length)
    kinds: Any  # (1, length), language or vision
    past: Any


class VisionRewardVideo(ChecklistModel):
    """The model as its authors publish it, or any other with the same code."""

    sampling = Sampling(per_second=1.0, most=24)

    def load(self) -> None:
        """Load tokenizer and weights; about 25 GB in bfloat16. Raises CannotStart."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

        start = self.start
        where = {"revision": start.revision, "trust_remote_code": start.trust_remote_code}
        device = ("cuda" if torch.cuda.is_available() else "cpu") if start.device == "auto" else start.device
        try:
            config, _ = PretrainedConfig.get_config_dict(start.model, revision=start.revision)
            _check(start, config)
            self._tokenizer = AutoTokenizer.from_pretrained(start.model, **where)
            self._model = AutoModelForCausalLM.from_pretrained(
                start.model, torch_dtype=_dtype(device), low_cpu_mem_usage=True, use_safetensors=True, **where
            )
            self._model = self._model.eval().to(device)
        except CannotStart:
            raise
        except Exception as error:  # from a missing package to a full disk: all of it is for the user to read
            raise CannotStart(f"{start.model} cannot be loaded: {type(error).__name__}: {error}") from error
        if not hasattr(self._model, "build_conversation_input_ids"):
            raise CannotStart(f"{start.model} is no CogVLM2-Video: its code has no build_conversation_input_ids")
        self._device = device
        self._said_by = {said: sorted(set(self._token_ids(said))) for said in ("yes", "no")}

    def encode(self, frames: Frames) -> Shown:
        """The frames, read by vision tower and decoder."""
        import torch

        video = torch.from_numpy(frames).permute(3, 0, 1, 2)  # channels, frames, height, width
        asked = self._conversation("", images=[video])
        words = len(self._conversation("")["input_ids"]) - 1  # without the token that every text begins with
        length = len(asked["input_ids"]) - words
        tokens, kinds = (asked[name][None].to(self._device) for name in ("input_ids", "token_type_ids"))
        with torch.inference_mode():
            read = self._model.get_decoder()(
                input_ids=tokens[:, :length],
                token_type_ids=kinds[:, :length],
                position_ids=self._positions(tokens, kinds, torch.ones_like(tokens))[:, :length],
                attention_mask=torch.ones_like(tokens[:, :length]),
                images=[[asked["images"][0].to(self._device, self._model.dtype)]],
                use_cache=True,
                return_dict=True,
            )
        return Shown(tokens[:, :length], kinds[:, :length], read.past_key_values)

    def answer(self, features: Shown, questions: Sequence[str]) -> list[Said]:
        """The likeliest first word of each answer, and P(yes) among the variants of yes and no."""
        import torch

        texts = [self._conversation(question)["input_ids"][1:] for question in questions]
        lengths = torch.tensor([len(text) for text in texts])
        # The padding is on the right, where no word of a question looks.
        words = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(self._device)
        real = (torch.arange(words.shape[1]) < lengths[:, None]).to(self._device, torch.long)
        many, shown = len(questions), features.tokens.shape[1]
        tokens = torch.cat([features.tokens.expand(many, -1), words], dim=1)
        kinds = torch.cat([features.kinds.expand(many, -1), torch.zeros_like(words)], dim=1)
        mask = torch.cat([torch.ones_like(tokens[:, :shown]), real], dim=1)
        with torch.inference_mode():
            read = self._model.get_decoder()(
                input_ids=words,
                token_type_ids=kinds[:, shown:],
                position_ids=self._positions(tokens, kinds, mask)[:, shown:],
                attention_mask=mask,
                past_key_values=tuple(
                    tuple(part.expand(many, *part.shape[1:]) for part in layer) for layer in features.past
                ),
                use_cache=False,
                return_dict=True,
            )
            last = read.last_hidden_state[torch.arange(many), lengths - 1]
            logits = self._model.get_output_embeddings()(last).float().cpu()
        return [self._said(row) for row in logits]

    def free_memory(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _conversation(self, question: str, images: list[Any] | None = None) -> Any:
        return self._model.build_conversation_input_ids(
            tokenizer=self._tokenizer, query=question, history=[], images=images, template_version=TEMPLATE
        )

    def _positions(self, tokens: Any, kinds: Any, mask: Any) -> Any:
        """Positions as the model's code counts them: all tokens of a frame share one."""
        return self._model.prepare_inputs_for_generation(tokens, token_type_ids=kinds, attention_mask=mask)[
            "position_ids"
        ]

    def _said(self, logits: Any) -> Said:
        text = self._tokenizer.decode([int(logits.argmax())])
        yes, no = (logits[self._said_by[said]].logsumexp(dim=0).item() for said in ("yes", "no"))
        return Said(text, 1 / (1 + math.exp(min(no - yes, 700.0))))

    def _token_ids(self, said: str) -> Iterator[int]:
        """The tokens that are a variant of a word by themselves."""
        for word in WORDS:
            for text in (word, f" {word}"):
                ids = self._tokenizer.encode(text, add_special_tokens=False)
                if word.casefold() == said and len(ids) == 1:
                    yield ids[0]


def _check(start: Start, config: dict[str, Any]) -> None:
    if not config:
        raise CannotStart(f"{start.model} is no model: it has no config.json")
    if "auto_map" in config and not start.trust_remote_code:
        raise CannotStart(
            f"{start.model} comes with Python code of its own, which would run here. Look at it, pin it with "
            "--revision COMMIT, and start with --trust-remote-code"
        )


def _dtype(device: str) -> Any:
    import torch

    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
