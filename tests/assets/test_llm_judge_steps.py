"""The graph's critiques by a language model as judge: what becomes of verdicts, lost comparisons and bad answers."""

import json
import zlib
from collections.abc import Callable

import pytest

from ml import rules
from ml.parsing import COMPARISON_SCHEMA
from resources.backend_settings import LlmJudgeSettings, TransformersModelSettings
from resources.llm_judge import LlmJudge
from tests.assets.conftest import HOSTILE, World, queries_of
from tests.resources.test_llm_judge import Asked, ScriptedModel, answer

pytestmark = pytest.mark.slow


def fate(query: str) -> str:
    """What the model makes of a query, decided by its text alone."""
    return ("unreadable", "declined", "losing", "fine", "fine")[zlib.crc32(query.encode()) % 5]


def by_the_rules(asked: Asked) -> str:
    """A model that judges as the rules do, save for what it cannot, will not, or mends badly."""
    query = asked.shown("Query")
    if fate(query) == "unreadable":
        return f"The verdict: {query}"
    if fate(query) == "declined":
        return "I'm sorry, but I can't judge that."
    if asked.schema is COMPARISON_SCHEMA:
        return json.dumps({"nonce": asked.nonce, "reason": "", "better": "A" if fate(query) == "losing" else "tie"})
    found = rules.critique(query, asked.shown("Prompt"))
    return answer(
        asked.nonce,
        harmless=found.harmless,
        accurate=found.accurate,
        helpful=found.helpful,
        critique=found.critique,
        refined=found.refined,
    )


def test_verdicts_of_a_language_model_go_the_same_way_as_those_of_the_rules(empty_world: Callable[..., World]) -> None:
    world = empty_world([*queries_of(40), *HOSTILE[:5]], refresh={"max_failure_ratio": 1, "text_batch": 16})
    model = ScriptedModel(by_the_rules)
    settings = LlmJudgeSettings(language_model=TransformersModelSettings(), confirm_refinement=True)
    vars(world.platform)["judge"] = LlmJudge(settings, model)
    world.materialize("raw_prompts", "queries", "drafts", "draft_critiques", "sft_dataset")
    assert model.closed

    rows = world.rows(
        'SELECT c.*, q.query FROM "lake".main.draft_critiques AS c JOIN "lake".main.queries AS q USING (query_id)'
    )
    failures = world.rows("SELECT error FROM \"lake\".main.failures WHERE table_name LIKE '%draft_critiques'")
    drafts = world.rows('SELECT count(*) AS drafts FROM "lake".main.drafts')[0]["drafts"]
    assert len(rows) + len(failures) == drafts
    assert {error["error"].split("\n")[0] for error in failures} == {
        "the judge gave no readable verdict: the nonce is missing",
        "the judge's model declined to answer",
    }
    assert all(row["prompt_tokens"] >= 100 and row["new_tokens"] >= 10 for row in rows)
    dropped = {row["query_id"] for row in rows if "lost a comparison" in row["critique"]}
    assert 0 < len(dropped) < len(rows)
    assert all(row["refined"] is None and not row["aligned"] for row in rows if row["query_id"] in dropped)
    taught = world.ids("sft_dataset", "query_id")
    assert taught == {row["query_id"] for row in rows} - dropped

    asked = len(model.asked)
    world.materialize("draft_critiques")
    assert {fate(a.shown("Query")) for a in model.asked[asked:]} == {"unreadable", "declined"}  # tried once more
