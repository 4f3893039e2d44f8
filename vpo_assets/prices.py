"""What rows cost in money, and trainings in time, by what earlier ones cost.

Belongs here: estimates from what was measured. Does not belong here: counting what is spent (resources/budget.py).
"""

from collections.abc import Sequence

from ml.alignment_settings import AlignmentSettings
from resources.backend_settings import BudgetSettings, EndpointModelSettings, LlmJudgeSettings
from resources.budget import Budget
from storage.checkpoints import CheckpointManifest
from storage.tables import DRAFTS, EVAL_PROMPTS, VBENCH_PROMPTS, Table, quoted
from vpo_assets.platform import Platform
from vpo_assets.training import Training

CRITIQUES = ("draft_critiques", "candidate_critiques", "eval_critiques", "eval_safety")
PROMPTS_OF_METHODS = (EVAL_PROMPTS.name, VBENCH_PROMPTS.name)
PAID_METHOD = "few_shot"
"""Of these, the method that the drafting model is asked for; checkpoints write the others here."""


def budget_of(platform: Platform, table: Table) -> BudgetSettings | None:
    """The prices of the model that a table's rows are asked of; None where it has none."""
    profile = platform.profile
    model = None
    if table.name in (DRAFTS.name, *PROMPTS_OF_METHODS):
        model = profile.language_model
    elif table.name in CRITIQUES and isinstance(profile.judge, LlmJudgeSettings):
        model = profile.judge.language_model
    if not isinstance(model, EndpointModelSettings):
        return None
    budget = model.budget
    priced = budget.price_per_million_prompt_tokens or budget.price_per_million_completion_tokens
    return budget if priced else None


def money_a_row(platform: Platform, table: Table, budget: BudgetSettings, recipe: str) -> float | None:
    """What a row costs by the tokens of the table's own: those of this recipe if there are any, else all; None for an
    empty table."""
    paid = f"AND method = '{PAID_METHOD}'" if table.name in PROMPTS_OF_METHODS else ""
    (row,) = platform.lake.query(
        "SELECT avg(prompt_tokens) AS prompt_tokens, avg(new_tokens) AS new_tokens FROM ("
        f"SELECT prompt_tokens, new_tokens FROM {table.qualified} WHERE prompt_tokens IS NOT NULL {paid} "
        f"QUALIFY (recipe = ?) = max(recipe = ?) OVER () ORDER BY {quoted('made_at')} DESC LIMIT 1000)",
        [recipe, recipe],
    ).to_pylist()
    if row["prompt_tokens"] is None:
        return None
    return Budget(budget, table.label).cost(row["prompt_tokens"], row["new_tokens"] or 0).money


def training_seconds(
    manifests: Sequence[CheckpointManifest], training: Training, platform: Platform, examples: float
) -> float | None:
    """How long a training on so many examples should take: as long as the last one of its stage took an example and
    epoch, this target's if there is one. None if none was ever trained."""
    measured = [
        manifest
        for manifest in manifests
        if manifest.stage == training.stage and manifest.metrics.get("examples") and manifest.metrics.get("seconds")
    ]
    own = [manifest for manifest in measured if manifest.target == training.target]
    if not measured:
        return None
    last = (own or measured)[-1]
    settings, seconds = training.settings(platform), float(last.metrics["seconds"])
    if isinstance(settings, AlignmentSettings):  # takes so many steps, however many examples there are
        return seconds / float(last.metrics["steps"]) * settings.steps
    passes = float(last.metrics["examples"]) * _epochs(last)
    return seconds / passes * examples * settings.epochs


def _epochs(manifest: CheckpointManifest) -> float:
    settings = manifest.recipe.get("settings")
    epochs = settings.get("epochs") if isinstance(settings, dict) else None
    return float(epochs) if epochs else 1.0
