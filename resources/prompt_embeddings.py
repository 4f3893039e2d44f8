"""Text embeddings that a diffusers pipeline computes once a text, however many rows and batches have that text.

Belongs here: standing in for a pipeline's `encode_prompt`. Does not belong here: which pipelines there are, or what
becomes of the embeddings.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

Columns = tuple[Any, ...]
"""What `encode_prompt` returns for one row: tensors whose first dimension is 1, or None where it makes nothing."""

_GUIDED = "do_classifier_free_guidance"
_NEGATIVE = "negative_prompt"


class EmbeddingsOnce:
    """`encode_prompt` of one pipeline, with a memory.

    Each text is encoded by itself, so that its embedding does not depend on what else is in the batch; the negative
    prompt is encoded apart from the prompts, once for all of them. A pipeline gets from here just what its own
    method would return, in the same order, so it is called as ever and its pixels stay the same.
    """

    def __init__(self, encode: Callable[..., Any]) -> None:
        self._encode = encode
        self._signature = inspect.signature(encode)
        self._known: OrderedDict[Hashable, Columns] = OrderedDict()

    @classmethod
    def remembered_by(cls, pipeline: Any) -> "EmbeddingsOnce | None":
        """Stand in for the pipeline's `encode_prompt`. None, and nothing done, where it has none that takes texts."""
        encode = getattr(pipeline, "encode_prompt", None)
        if encode is None or "prompt" not in inspect.signature(encode).parameters:
            return None
        pipeline.encode_prompt = once = cls(encode)
        return once

    def forget(self) -> None:
        """Free the embeddings."""
        self._known.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `encode_prompt`: tensors of as many rows as there are prompts."""
        import torch

        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = dict(bound.arguments)
        rows = _rows(call)
        if rows is None or any(isinstance(value, torch.Tensor) for value in call.values()):
            return self._encode(*args, **kwargs)
        encoded = [self._row(row) for row in rows]
        # Only this call's texts are kept: rows of the same prompt come one after the other, and embeddings are large.
        while len(self._known) > len(rows) + 1:
            self._known.popitem(last=False)
        return tuple(
            None if any(part is None for part in column) else torch.cat(column) for column in zip(*encoded, strict=True)
        )

    def _row(self, call: dict[str, Any]) -> Columns:
        if not (call.get(_GUIDED) and {_NEGATIVE, "prompt_embeds"} <= set(call)):
            return self._once(call, lambda: tuple(self._encode(**call)))
        unguided = {**call, _GUIDED: False, _NEGATIVE: self._signature.parameters[_NEGATIVE].default}
        positive = self._once(unguided, lambda: tuple(self._encode(**unguided)))
        negative = self._once({**call, "prompt": None}, lambda: self._negative(call, positive))
        return tuple(n if p is None else p for p, n in zip(positive, negative, strict=True))

    def _negative(self, call: dict[str, Any], positive: Columns) -> Columns:
        """With the prompt's embeddings in hand, a pipeline only encodes the negative prompt."""
        given = {"prompt_embeds": positive[0]}
        if "prompt_attention_mask" in call:
            given["prompt_attention_mask"] = positive[1]
        both = self._encode(**{**call, **given})
        return tuple(b if p is None else None for p, b in zip(positive, both, strict=True))

    def _once(self, key: dict[str, Any], encode: Callable[[], Columns]) -> Columns:
        name = tuple((argument, repr(value)) for argument, value in key.items())
        if name not in self._known:
            self._known[name] = encode()
        self._known.move_to_end(name)
        return self._known[name]


def _rows(call: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The call taken apart, one for each prompt; None if it is not one of several prompts."""
    prompts = call["prompt"]
    if prompts is None and isinstance(call.get("batch_size"), int):
        prompts = [None] * call["batch_size"]  # as much as no text at all, for every row
    if not isinstance(prompts, list):
        return None
    texts = {key: value for key, value in call.items() if key.startswith(("prompt", _NEGATIVE))}
    split = {key for key, value in texts.items() if isinstance(value, list) and len(value) == len(prompts)}
    single = {"batch_size": 1} if "batch_size" in call else {}
    return [{**call, **single, **{key: [call[key][i]] for key in split}} for i in range(len(prompts))]
