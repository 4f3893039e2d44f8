"""How prompts come about and how they are criticised, wherever in the graph that is.

Belongs here: the work that drafts, candidates and held-out prompts have in common. Does not belong here: which
queries are written for, or when.
"""

from collections.abc import Sequence
from typing import Any

from ml.drafting import choose_examples
from ml.parsing import strip_introduction
from resources.backend_settings import SamplingSettings
from resources.judge import Judgement
from resources.language_model import Conversation, LanguageModel, Reply
from resources.outcome import Outcome
from storage.ids import content_id
from storage.recipe import JSON
from storage.tables import QUERIES, Table
from vpo_assets.platform import Platform
from vpo_assets.steps import Made, Row, RowStep, joined, seed_for


def few_shot_prompts(platform: Platform, rows: Sequence[Row]) -> list[Outcome[Row]]:
    """The language model rewrites each row's query, having seen the examples that are most like it."""
    template, shots = platform.template("few_shot_draft"), platform.profile.drafts.shots
    conversations = [
        template.messages(query=row["query"], examples=choose_examples(row["query"], platform.examples, shots))
        for row in rows
    ]
    return _write(platform, platform.language_model, conversations, rows, platform.profile.drafts.sampling)


def policy_prompts(
    platform: Platform, checkpoint_id: str, rows: Sequence[Row], sampling: SamplingSettings
) -> list[Outcome[Row]]:
    """A trained prompt optimizer rewrites each row's query."""
    template = platform.template("optimize")
    conversations: list[Conversation] = [template.messages(query=row["query"]) for row in rows]
    return _write(platform, platform.policy(checkpoint_id), conversations, rows, sampling)


def few_shot_recipe(platform: Platform) -> dict[str, JSON]:
    """What decides a few-shot prompt beside its query."""
    drafts = platform.profile.drafts
    examples = content_id(*(part for e in platform.examples for part in (e.query, e.prompt)))
    return {
        "language_model": dict(platform.language_model.identity()),
        "template": platform.template("few_shot_draft").hash,
        "examples": examples,
        "shots": drafts.shots,
        "sampling": sampling_recipe(drafts.sampling),
        "seed": platform.profile.seed,
    }


def policy_recipe(platform: Platform, checkpoint_id: str, sampling: SamplingSettings) -> dict[str, JSON]:
    """What decides a policy's prompt beside its query."""
    return {
        "policy": checkpoint_id,
        "template": platform.template("optimize").hash,
        "sampling": sampling_recipe(sampling),
        "seed": platform.profile.seed,
    }


def sampling_recipe(sampling: SamplingSettings) -> dict[str, JSON]:
    """Sampling settings as a part of a recipe."""
    return dict(sampling.model_dump(mode="json"))


def critique_rows(platform: Platform, rows: Sequence[Row]) -> list[Made]:
    """The judge's verdict on each row's prompt, against its query."""
    judged = platform.judge.critique([row["query"] for row in rows], [row["prompt"] for row in rows])
    return joined(rows, judged, _critique_row)


def _critique_row(row: Row, judgement: Judgement) -> Row:
    critique = judgement.critique
    return {
        "prompt_id": row["prompt_id"],
        "query_id": row["query_id"],
        "prompt": row["prompt"],
        "harmless": critique.harmless,
        "accurate": critique.accurate,
        "helpful": critique.helpful,
        "aligned": critique.aligned,
        "verdict": critique.verdict,
        "critique": critique.critique,
        "refined": critique.refined,
        "prompt_tokens": judgement.prompt_tokens,
        "new_tokens": judgement.new_tokens,
        **method_of(row),
    }


def critique_step(critiques: Table, prompts: RowStep) -> RowStep:
    """The step of a table of critiques: every prompt of another step, judged against its query."""
    return RowStep(
        table=critiques,
        inputs=lambda _: critiqued(prompts.table.qualified, QUERIES.qualified),
        recipe=judge_recipe,
        work=critique_rows,
        stage="critiques",
        backends=lambda profile: (profile.judge,),
        batch_size=lambda platform: platform.profile.refresh.text_batch,
        reads=(prompts,),
    )


def method_of(row: Row) -> Row:
    """The method that a held-out prompt was written by; nothing for the others."""
    return {"method": row["method"]} if "method" in row else {}


def judge_recipe(platform: Platform) -> dict[str, JSON]:
    """What decides a critique beside query and prompt."""
    return {"judge": dict(platform.judge.identity())}


def critiqued(prompts_table: str, queries_table: str) -> str:
    """The inputs of a table of critiques: every prompt with its query."""
    return (
        f"SELECT content_id([p.prompt_id, q.query]) AS input_id, p.*, q.query FROM {prompts_table} AS p "
        f"JOIN {queries_table} AS q USING (query_id)"
    )


def verdict_counts(platform: Platform, table: str) -> Any:
    """How many prompts got which verdict."""
    return platform.lake.query(f"SELECT verdict, count(*) AS prompts FROM {table} GROUP BY ALL ORDER BY prompts DESC")


def _write(
    platform: Platform,
    model: LanguageModel,
    conversations: Sequence[Conversation],
    rows: Sequence[Row],
    sampling: SamplingSettings,
) -> list[Outcome[Row]]:
    """The columns that a written prompt brings with it, for each row."""
    seeds = [seed_for(platform, row["input_id"]) for row in rows]
    replies = model.generate(conversations, sampling.sampling(), seeds)
    return joined(rows, replies, lambda _, reply: _written(reply))


def _written(reply: Reply) -> Row:
    """A reply as a prompt: the chatter around it stripped, in one paragraph."""
    return {
        "prompt": " ".join(strip_introduction(reply.text).split()),
        "cut": not reply.whole,
        "prompt_tokens": reply.prompt_tokens,
        "new_tokens": reply.new_tokens,
    }
