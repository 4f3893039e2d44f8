"""A trained prompt optimizer, as the command line asks for it.

Belongs here: choosing the checkpoint, and reading queries of a pipe or file. Does not belong here: the optimizer
itself (resources/prompt_optimizer.py), rewriting many for the graph (writing.py), or what is printed (command_line.py).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from resources.models import build_language_model
from resources.prompt_optimizer import (
    Answer,
    Ask,
    Backend,
    OptimizedPrompt,
    PromptOptimizer,
    RefusedOutput,
    UnusableQuery,
    optimizer_settings,
    with_backend,
)
from storage.query_files import BadRow, ColumnNames, read_query_file
from vpo_assets.evaluation_tables import best_checkpoint, chosen_target, evaluation_rows
from vpo_assets.platform import Platform
from vpo_assets.training import ALIGNED

LONGEST_LINE = 1_000_000  # bytes


class NoCheckpoint(ValueError):
    """What was given as the id of a checkpoint can be none."""


@dataclass(frozen=True)
class Chosen:
    """A checkpoint to work with, the target it is sampled for, and in words why it is this one."""

    checkpoint_id: str
    target: str
    words: str


@dataclass(frozen=True)
class Query:
    """A query with its line, or why the line holds none."""

    line: int
    text: str
    fault: str | None = None


def chosen_checkpoint(platform: Platform, target: str | None, checkpoint_id: str | None) -> Chosen:
    """The checkpoint asked for, else the best one of the target's evaluation. Raises UnknownTarget, NothingEvaluated,
    NoCheckpoint and BrokenCheckpoint."""
    if checkpoint_id is None:
        name = chosen_target(platform, target)
        best, method, score = best_checkpoint(evaluation_rows(platform, name))
        return Chosen(best, name, f"checkpoint {best} ({method}, score {score:.3f} on {name})")
    try:
        manifest = platform.checkpoints.manifest(checkpoint_id)
    except ValueError as error:
        raise NoCheckpoint(str(error)) from error
    if manifest.stage == ALIGNED:
        raise NoCheckpoint(f"{checkpoint_id} is a video model, which writes no prompts: name an sft or dpo checkpoint")
    made_for = manifest.target
    if target is None and made_for in platform.profile.targets:
        target = made_for
    return Chosen(checkpoint_id, chosen_target(platform, target), f"checkpoint {checkpoint_id}")


def optimizer_of(platform: Platform, chosen: Chosen, backend: Backend | None = None) -> PromptOptimizer:
    """The optimizer of a checkpoint, sampled as in the evaluation of its target; with `backend`, run by that one.

    Raises NoCheckpoint, BrokenCheckpoint.
    """
    settings = optimizer_settings(platform.profile, chosen.checkpoint_id, chosen.target)
    try:
        if backend is None:
            return PromptOptimizer(platform.policy(chosen.checkpoint_id), settings)
        path, _ = platform.checkpoints.load(chosen.checkpoint_id)
    except ValueError as error:
        raise NoCheckpoint(str(error)) from error
    policy = with_backend(platform.profile.trained_model, backend)
    model = build_language_model(policy, platform.models, weights=path, name=chosen.checkpoint_id)
    return PromptOptimizer(model, settings)


def answered(optimizer: PromptOptimizer, queries: Iterable[Query], together: int) -> Iterator[tuple[Query, Answer]]:
    """Every query with what became of it, in order; so many at once go through the model."""
    stream = iter(queries)
    while batch := list(islice(stream, together)):
        answers = iter(optimizer.answer([Ask(query.text) for query in batch if query.fault is None]))
        for query in batch:
            yield query, next(answers) if query.fault is None else UnusableQuery(query.fault)


def queries_of_lines(stream: BinaryIO) -> Iterator[Query]:
    """A query a line of UTF-8 text."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield Query(number, "", f"the line has more than {LONGEST_LINE:,} bytes")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Query(number, "", f"the line is no UTF-8 text ({error.reason})")
        else:
            yield Query(number, text)


def queries_of_file(file: Path, column: str | None, columns: dict[str, str]) -> Iterator[Query]:
    """The queries of a file of any kind that `vpo ingest` reads; text files count blank lines, too. Raises
    UnreadableFile."""
    for row in read_query_file(file, column, names=ColumnNames(text=column, mapped=columns)):
        yield Query(row.line, row.excerpt, row.error) if isinstance(row, BadRow) else Query(row.line, row.text)


def as_json(query: Query, answer: Answer) -> dict[str, Any]:
    """One line of `vpo optimize --json`."""
    head: dict[str, Any] = {"line": query.line, "query": query.text}
    if isinstance(answer, OptimizedPrompt):
        return {**head, "prompt": answer.prompt, "whole": answer.whole, "attempts": answer.attempts}
    if isinstance(answer, RefusedOutput):
        error = {"code": "refused", "verdict": answer.verdict, "reason": answer.reason, "attempts": answer.attempts}
    else:
        error = {"code": "unusable_query", "reason": str(answer)}
    return {**head, "error": error}
