"""Language models that write: conversations in, texts out.

Belongs here: the interface `LanguageModel`, and the backend that runs a model in this process with transformers.
Does not belong here: what is asked of a model (ml/templates) or what becomes of its answers.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Message = dict[str, str]
Conversation = Sequence[Message]
Identity = dict[str, str | int | float | bool | None]

SAMPLED_FROM = 128  # only the likeliest tokens are sampled from: sorting a whole vocabulary costs more than the model


class CannotGenerate(RuntimeError):
    """A conversation that the model cannot answer, with what to do about it."""


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn. Temperature 0 is greedy. The defaults are the paper's at inference."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 96


class LanguageModel(Protocol):
    """A language model that answers conversations."""

    def identity(self) -> Identity:
        """What decides its answers beside the sampling: part of the recipe of every row it makes."""
        ...

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling, seeds: Sequence[int]) -> list[str]:
        """One answer a conversation, in order. The same seed, conversation and sampling give the same answer."""
        ...

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        ...


class TransformersLanguageModel:
    """A causal language model in this process. Rows are drawn by their own seeds, whatever else is in the batch."""

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
        batch_size: int = 32,
        name: str | None = None,
    ) -> None:
        self.model = model
        self.revision = revision
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.name = name or str(model)
        self._loaded: tuple[Any, Any] | None = None

    def identity(self) -> Identity:
        return {"backend": "transformers", "model": self.name, "revision": self.revision, "dtype": self.dtype}

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling, seeds: Sequence[int]) -> list[str]:
        if len(seeds) != len(conversations):
            raise ValueError(f"{len(conversations)} conversations need as many seeds, not {len(seeds)}")
        tokenizer, _ = self._load()
        prompts = [
            tokenizer.apply_chat_template(list(c), tokenize=False, add_generation_prompt=True) for c in conversations
        ]
        # Prompts of like length share a batch, so that little padding is computed.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            texts = self._generate_batch([prompts[i] for i in rows], sampling, [seeds[i] for i in rows])
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text.strip()
        return answers

    def close(self) -> None:
        self._loaded = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _generate_batch(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[str]:
        import torch

        tokenizer, model = self._load()
        tokens = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        prompt_length = tokens["input_ids"].shape[1]
        window = getattr(model.config, "max_position_embeddings", None)
        if window and prompt_length + sampling.max_new_tokens > window:
            raise CannotGenerate(
                f"a prompt of {prompt_length} tokens and {sampling.max_new_tokens} new ones do not fit into the "
                f"model's {window}; shorten the query or lower max_new_tokens"
            )
        processors: Any = None
        if sampling.temperature > 0:
            from transformers import LogitsProcessorList

            processors = LogitsProcessorList([_seeded_draw(sampling, seeds)])
        with torch.inference_mode():
            output = model.generate(
                **tokens,
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=processors,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts: list[str] = tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)
        return texts

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            tokenizer = AutoTokenizer.from_pretrained(self.model, revision=self.revision, padding_side="left")
            if tokenizer.chat_template is None:
                raise CannotGenerate(f"the model {self.name} has no chat template: name an instruction-tuned one")
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            model = AutoModelForCausalLM.from_pretrained(
                self.model, revision=self.revision, dtype=getattr(torch, self.dtype)
            )
            self._loaded = tokenizer, model.to(device).eval()
        return self._loaded


def _seeded_draw(sampling: Sampling, seeds: Sequence[int]) -> Any:
    """A logits processor that leaves one token a row: drawn by Gumbel noise from the row's own generator."""
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(tokens: Any, logits: Any) -> Any:
        del tokens
        likeliest, indices = logits.float().topk(min(SAMPLED_FROM, logits.shape[-1]), dim=-1)
        likeliest = likeliest / sampling.temperature
        if sampling.top_p < 1:
            probabilities = likeliest.softmax(-1)
            before = probabilities.cumsum(-1) - probabilities
            likeliest = likeliest.masked_fill(before > sampling.top_p, float("-inf"))
        uniform = torch.stack([torch.rand(likeliest.shape[-1], generator=g) for g in generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7))).to(likeliest.device)
        chosen = indices.gather(-1, (likeliest + noise).argmax(-1, keepdim=True))
        return torch.full_like(logits, float("-inf")).scatter(-1, chosen, 0.0)

    return draw
