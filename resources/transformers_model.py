"""The backend that runs a language model in this process with transformers.

Belongs here: loading, batching by length, and drawing every row by its own seed. Does not belong here: anything
about what is asked.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resources.language_model import Conversation, Identity, JsonSchema, Reply, Sampling
from resources.outcome import Failed, Outcome, Unavailable

SAMPLED_FROM = 128  # only the likeliest tokens are sampled from: sorting a whole vocabulary costs more than the model


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

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        schema: JsonSchema | None = None,
    ) -> list[Outcome[Reply]]:
        del schema  # what is asked for stands in the conversation; decoding is free
        if len(seeds) != len(conversations):
            raise ValueError(f"{len(conversations)} conversations need as many seeds, not {len(seeds)}")
        tokenizer, model = self._load()
        prompts = [
            tokenizer.apply_chat_template(list(c), tokenize=False, add_generation_prompt=True) for c in conversations
        ]
        window = getattr(model.config, "max_position_embeddings", None)
        lengths = (
            [len(tokens) for tokens in tokenizer(prompts, add_special_tokens=False)["input_ids"]] if prompts else []
        )
        outcomes: list[Outcome[Reply]] = [_too_long(length, sampling, window) for length in lengths]
        # Prompts of like length share a batch, so that little padding is computed.
        fitting = [i for i in range(len(prompts)) if not window or lengths[i] + sampling.max_new_tokens <= window]
        order = sorted(fitting, key=lambda i: lengths[i])
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            replies = self._generate_batch([prompts[i] for i in rows], sampling, [seeds[i] for i in rows])
            for row, (text, new_tokens, whole) in zip(rows, replies, strict=True):
                outcomes[row] = Reply(text.strip(), whole, lengths[row], new_tokens)
        return outcomes

    def close(self) -> None:
        self._loaded = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _generate_batch(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]
    ) -> list[tuple[str, int, bool]]:
        """Text, count of new tokens, and whether the text came to its end, for each prompt."""
        import torch

        tokenizer, model = self._load()
        tokens = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        prompt_length = tokens["input_ids"].shape[1]
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
        written = output[:, prompt_length:]
        texts: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True)
        ends = torch.isin(written, _end_tokens(model, tokenizer).to(written.device))
        lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, written.shape[1]).tolist()
        return list(zip(texts, lengths, ends.any(1).tolist(), strict=True))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            tokenizer = AutoTokenizer.from_pretrained(self.model, revision=self.revision, padding_side="left")
            if tokenizer.chat_template is None:
                raise Unavailable(f"the model {self.name} has no chat template: name an instruction-tuned one")
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            model = AutoModelForCausalLM.from_pretrained(
                self.model, revision=self.revision, dtype=getattr(torch, self.dtype)
            )
            self._loaded = tokenizer, model.to(device).eval()
        return self._loaded


def _too_long(length: int, sampling: Sampling, window: int | None) -> Failed:
    """What is said of a prompt that is too long, before anything shorter takes its place."""
    return Failed(
        f"a prompt of {length} tokens and {sampling.max_new_tokens} new ones do not fit into the model's {window}; "
        "shorten the query or lower max_new_tokens"
    )


def _end_tokens(model: Any, tokenizer: Any) -> Any:
    """The tokens that end a text, as a tensor."""
    import torch

    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return torch.tensor([token for token in [*ends, tokenizer.eos_token_id] if token is not None])


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
