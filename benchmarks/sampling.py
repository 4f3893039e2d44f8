"""Does sampling through the asset cost anything? Tokens a second of the drafts step against those of plain `LLM.chat`.

    .venv-vllm/bin/python benchmarks/sampling.py --conversations 64 --tokens 32

Both sides write the same conversations with the same sampling and the same engine, in turns, so that whatever else the
machine does falls on both. The step's side is everything that the asset does: planning, templates, the model, stripping
introductions, committing to the lake. The engine's start is on neither side. Prefixes that an earlier turn left in
vLLM's cache are dropped before every turn.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ml.shapes.queries import write_query
from resources.backend_settings import SamplingSettings, VllmModelSettings
from resources.language_model import Conversation, LanguageModel
from resources.settings import Profile, load_profile
from resources.vllm_model import VllmLanguageModel
from storage.ids import content_id
from storage.recipe import Recipe, stamped
from storage.refresh import Mode
from storage.tables import DRAFTS, QUERIES
from vpo_assets.platform import Platform
from vpo_assets.sft import DRAFTS_STEP
from vpo_assets.steps import own_columns


class WarmPlatform(Platform):
    """A platform that keeps its engine between refreshes."""

    def release(self) -> None:
        """Nothing is freed before the end."""


def profile(home: Path, arguments: argparse.Namespace) -> Profile:
    """The embedded default, with vLLM as the model that writes."""
    base = load_profile("local")
    return base.model_copy(
        update={
            "home": home,
            "language_model": VllmModelSettings(
                model=arguments.model, max_model_len=2048, max_num_seqs=256, enforce_eager=arguments.eager
            ),
            "drafts": base.drafts.model_copy(
                update={"sampling": SamplingSettings(temperature=0.7, max_new_tokens=arguments.tokens)}
            ),
            "refresh": base.refresh.model_copy(update={"text_batch": arguments.batch or arguments.conversations}),
        }
    )


def fill(platform: Platform, count: int) -> None:
    """Put so many different queries of the shapes world into the lake."""
    texts: dict[str, None] = {}
    seed = 0
    while len(texts) < count:
        texts[write_query(np.random.default_rng(seed))] = None
        seed += 1
    rows = [
        {
            **{column.name: None for column in QUERIES.columns},
            "query_id": content_id(text),
            "query": text,
            "split": "sft",
            "safety": "general",
            "keep": True,
        }
        for text in texts
    ]
    made = own_columns(QUERIES, rows)
    made = made.append_column("input_id", made[QUERIES.key])
    with platform.lake.write({"asset": QUERIES.label}) as transaction:
        transaction.upsert(QUERIES, stamped(made, Recipe({"by": "benchmark"}).id, "benchmark"))


def asked_of(model: LanguageModel) -> list[tuple[Conversation, int]]:
    """Make a model remember what it is asked: conversations and seeds."""
    asked: list[tuple[Conversation, int]] = []
    generate = model.generate

    def remembering(conversations: Sequence[Conversation], sampling: Any, seeds: Sequence[int], **options: Any) -> Any:
        asked.extend(zip(conversations, seeds, strict=True))
        return generate(conversations, sampling, seeds, **options)

    model.generate = remembering  # type: ignore[method-assign]
    return asked


def through_the_step(platform: Platform, run: str) -> tuple[int, float]:
    """New tokens and seconds of one full refresh of the drafts; a run's own rows would be reused."""
    config = platform.profile.refresh.config(DRAFTS_STEP.batch_size(platform))
    started = time.perf_counter()
    DRAFTS_STEP.refresh(platform, replace(config, mode=Mode.FULL), run, lambda _: None)
    seconds = time.perf_counter() - started
    assert platform.lake.query(f"SELECT DISTINCT run_id FROM {DRAFTS.qualified}").to_pylist() == [{"run_id": run}]
    (total,) = platform.lake.query(f"SELECT sum(new_tokens) AS tokens FROM {DRAFTS.qualified}").to_pylist()
    return int(total["tokens"]), seconds


def through_chat(engine: Any, asked: Sequence[tuple[Conversation, int]], tokens: int) -> tuple[int, float]:
    """New tokens and seconds of one plain call over the same conversations."""
    from vllm import SamplingParams

    started = time.perf_counter()
    answers = engine.chat(
        [list(conversation) for conversation, _ in asked],
        [SamplingParams(temperature=0.7, max_tokens=tokens, seed=seed) for _, seed in asked],
        use_tqdm=False,
    )
    seconds = time.perf_counter() - started
    return sum(len(answer.outputs[0].token_ids) for answer in answers), seconds


def measure(arguments: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Take turns, and compare."""
    platform = WarmPlatform(profile(home, arguments))
    fill(platform, arguments.conversations)
    model = platform.language_model
    assert isinstance(model, VllmLanguageModel)
    asked = asked_of(model)
    through_the_step(platform, "first")  # starts the engine, and shows which conversations the step makes
    conversations = list(asked)
    turns: list[dict[str, tuple[int, float]]] = []
    for number in range(arguments.turns):
        turn: dict[str, tuple[int, float]] = {}
        for side in ("step", "chat") if number % 2 == 0 else ("chat", "step"):
            model._engine.reset_prefix_cache()
            if side == "step":
                turn[side] = through_the_step(platform, f"turn {number}")
            else:
                turn[side] = through_chat(model._engine, conversations, arguments.tokens)
        turns.append(turn)
        print(json.dumps({side: f"{tokens} tokens in {seconds:.2f} s" for side, (tokens, seconds) in turn.items()}))
    model.close()
    rates = {
        side: sum(turn[side][0] for turn in turns) / sum(turn[side][1] for turn in turns) for side in ("step", "chat")
    }
    return {
        "conversations": len(conversations),
        "tokens_per_second": {side: round(rate, 1) for side, rate in rates.items()},
        "ratio": round(rates["step"] / rates["chat"], 3),
    }


def main() -> None:
    """Measure in a data folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="a folder or hub name")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens a conversation at most")
    parser.add_argument("--batch", type=int, help="rows a batch of the step; default: all at once")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="start faster, without compiling")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(measure(arguments, Path(home)), indent=2))


if __name__ == "__main__":
    main()
