"""Asset checks: what must hold before anything is built upon a table or a checkpoint.

Belongs here: checks made from the table schemas, and those that follow from the method. Does not belong here:
mending anything.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    MetadataValue,
    ResourceParam,
    asset_check,
)

from ml.metrics import bootstrap_interval, f_statistic, reward_degeneracy
from ml.safety import is_unsafe
from storage.tables import (
    EVAL_CRITIQUES,
    EVALUATION,
    PREFERENCE_PAIRS,
    QUERIES,
    SFT_DATASET,
    VIDEO_REWARDS,
    Table,
    quoted,
)
from vpo_assets.learned_queries import IDS_SHOWN, learned_from
from vpo_assets.platform import Platform
from vpo_assets.report.tables import markdown_table
from vpo_assets.table_assets import key_prefix
from vpo_assets.target import Branch, score_cube
from vpo_assets.training import Training

CLEARLY_ABOVE_ONE = 1.5


FAITHFULNESS_LOST, REPETITION_GAINED, WORDS_GAINED = 0.05, 0.05, 0.5
"""What VPO's prompts may lose or gain against SFT's before a check warns: shares, and a share of SFT's words. Ours."""


def asset_key(table: Table) -> AssetKey:
    """The asset of a table."""
    return AssetKey([*key_prefix(table), table.name])


def schema_check(table: Table) -> AssetChecksDefinition:
    """The table has its columns, a key that is unique, and values wherever there must be some."""

    @asset_check(asset=asset_key(table), name="schema", blocking=True, description=schema_check.__doc__)
    def check(platform: ResourceParam[Platform]) -> AssetCheckResult:
        required = [column.name for column in table.all_columns if not column.nullable]
        empties = ", ".join(f"count(*) FILTER ({quoted(name)} IS NULL) AS {quoted(name)}" for name in required)
        counts = platform.lake.query(
            f"SELECT count(*) AS rows, count(DISTINCT {quoted(table.key)}) AS keys FROM {table.qualified}"
        ).to_pylist()[0]
        missing = platform.lake.query(f"SELECT {empties} FROM {table.qualified}").to_pylist()[0]
        without = {name: count for name, count in missing.items() if count}
        return AssetCheckResult(
            passed=counts["rows"] == counts["keys"] and not without,
            metadata={
                "rows": counts["rows"],
                "keys": counts["keys"],
                "missing values": str(without or "none"),
            },
        )

    return check


@asset_check(asset="queries", blocking=True)
def no_query_in_two_splits(platform: ResourceParam[Platform]) -> AssetCheckResult:
    """No wording of a held-out query is trained on, whatever its capitals and spaces."""
    leaks = platform.lake.query(
        "SELECT lower(query) AS wording FROM "
        f"{QUERIES.qualified} WHERE keep GROUP BY ALL HAVING count(DISTINCT split) > 1 LIMIT 20"
    )
    return AssetCheckResult(passed=leaks.num_rows == 0, metadata={"wordings in two splits": leaks.num_rows})


@asset_check(asset="sft_dataset", blocking=True)
def no_held_out_query_learned(platform: ResourceParam[Platform]) -> AssetCheckResult:
    """Every example of the SFT set comes from the SFT split."""
    foreign = platform.lake.query(
        f"SELECT count(*) AS n FROM {SFT_DATASET.qualified} AS d LEFT JOIN {QUERIES.qualified} AS q "
        "USING (query_id) WHERE q.split IS DISTINCT FROM 'sft'"
    )["n"][0].as_py()
    return AssetCheckResult(passed=foreign == 0, metadata={"examples of other splits": foreign})


@asset_check(asset="sft_dataset", blocking=True)
def nothing_unsafe_to_learn(platform: ResourceParam[Platform]) -> AssetCheckResult:
    """No answer of the SFT set carries unsafe content, by the lexicon."""
    messages = platform.lake.read(SFT_DATASET, columns=["messages"])["messages"].to_pylist()
    unsafe = sum(is_unsafe(conversation[-1]["content"]) for conversation in messages)
    return AssetCheckResult(passed=unsafe == 0, metadata={"examples": len(messages), "unsafe": unsafe})


def reward_checks(table: Table) -> Iterator[AssetChecksDefinition]:
    """The reward tells videos apart, and prompts apart from noise."""

    @asset_check(asset=asset_key(table), name="reward_not_degenerate", blocking=True)
    def not_degenerate(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """Not every answer is the same: a reward that says yes (or no) to everything teaches nothing."""
        rows = platform.lake.read(table, columns=["answers", "score"])
        if rows.num_rows == 0:
            return AssetCheckResult(passed=True, metadata={"reason": "there are no rewards yet"})
        counts = platform.video_rewards[table.schema].checklist.counts
        values = np.array([[a[counts] for a in answers] for answers in rows["answers"].to_pylist()], float)
        found = reward_degeneracy(values, rows["score"].to_numpy())
        metadata = {
            "reason": found.reason or "answers differ",
            "videos": rows.num_rows,
            "score_spread": float(found.score_spread),
            "questions_always_answered_alike": len(found.constant_questions),
        }
        return AssetCheckResult(passed=not found.degenerate, metadata=metadata)

    yield not_degenerate
    if table.name != VIDEO_REWARDS.name:
        return

    @asset_check(asset=asset_key(table), name="prompts_matter_more_than_seeds")
    def above_noise(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """F, the variance between a query's prompts against that between a prompt's seeds, is clearly above 1.

        Where it is not, video-level pairs are noise: render more seeds, or sample more varied candidates.
        """
        cube = score_cube(platform, table)
        if cube.size == 0 or cube.shape[2] < 2:
            return AssetCheckResult(
                passed=False,
                severity=AssetCheckSeverity.WARN,
                metadata={"reason": "F needs two seeds a prompt and two prompts a query: see seeds_per_prompt"},
            )
        ratio = f_statistic(cube)
        return AssetCheckResult(
            passed=bool(ratio.f > CLEARLY_ABOVE_ONE and ratio.low > 1),
            severity=AssetCheckSeverity.WARN,
            metadata={
                "F": float(ratio.f),
                "low": float(ratio.low),
                "high": float(ratio.high),
                "queries": len(cube),
            },
        )

    yield above_noise


def pair_checks(table: Table) -> Iterator[AssetChecksDefinition]:
    """Pairs that can be learned from."""

    @asset_check(asset=asset_key(table), name="chosen_differs_from_rejected", blocking=True)
    def differ(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """No pair prefers a prompt to itself."""
        same = platform.lake.query(f"SELECT count(*) AS n FROM {table.qualified} WHERE trim(chosen) = trim(rejected)")[
            "n"
        ][0].as_py()
        return AssetCheckResult(passed=same == 0, metadata={"pairs of equal prompts": same})

    @asset_check(asset=asset_key(table), name="no_held_out_query_learned", blocking=True)
    def own_split(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """Every pair comes from the DPO split, and there are pairs at all."""
        return _learnable(_split_counts(platform, table))

    yield differ
    yield own_split


def _split_counts(platform: Platform, table: Table, *faults: str) -> dict[str, int]:
    """How many pairs there are, how many are not of the DPO split, and how many have other faults (SQL)."""
    counted = ", ".join(["count(*) FILTER (q.split IS DISTINCT FROM 'dpo') AS foreign_pairs", *faults])
    (counts,) = platform.lake.query(
        f"SELECT count(*) AS pairs, {counted} FROM {table.qualified} AS p "
        f"LEFT JOIN {QUERIES.qualified} AS q USING (query_id)"
    ).to_pylist()
    return dict(counts)


def _learnable(counts: dict[str, int]) -> AssetCheckResult:
    """Passed where there are pairs, and none with a fault."""
    faults = [count for name, count in counts.items() if name != "pairs"]
    return AssetCheckResult(passed=counts["pairs"] > 0 and not any(faults), metadata=dict(counts))


def alignment_checks(training: Training) -> Iterator[AssetChecksDefinition]:
    """Pairs of films that can be learned from, and what was learned from them."""

    @asset_check(asset=asset_key(training.data), name="no_held_out_query_learned", blocking=True)
    def own_split(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """Every pair of films is of the DPO split, no film is preferred to itself, and there are pairs at all."""
        same = "count(*) FILTER (chosen_sha256 = rejected_sha256) AS pairs_of_equal_films"
        return _learnable(_split_counts(platform, training.data, same))

    yield own_split
    yield weights_check(training)
    yield removed_query_check(training)


def weights_check(training: Training) -> AssetChecksDefinition:
    """Every weight of the checkpoint is a finite number."""

    @asset_check(asset=AssetKey(training.asset_name.split("/")), name="weights_finite", blocking=True)
    def check(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """Every weight of the checkpoint is a finite number."""
        from safetensors import safe_open

        folder, manifest = platform.checkpoints.load(training.trained(platform))
        broken, count = [], 0
        for name in manifest.files:
            if not name.endswith(".safetensors"):
                continue
            with safe_open(folder / name, framework="pt") as weights:
                for tensor in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                    count += 1
                    if not weights.get_tensor(tensor).isfinite().all():
                        broken.append(tensor)
        return AssetCheckResult(
            passed=not broken and count > 0,
            metadata={"tensors": count, "not finite": ", ".join(broken) or "none"},
        )

    return check


def removed_query_check(training: Training) -> AssetChecksDefinition:
    """The checkpoint, and those that it was trained from, learned from queries that are still there."""

    @asset_check(asset=AssetKey(training.asset_name.split("/")), name="no_removed_query_learned")
    def check(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """The checkpoint, and those that it was trained from, learned from queries that are still there.

        A query that was removed or taken down since cannot be unlearned. Where the base is at fault, name another
        policy, or let SFT train anew.
        """
        found = learned_from(platform, training.trained(platform))
        ids = list(dict.fromkeys(query_id for learned in found for query_id in learned.removed_ids))
        rows = [
            {
                "checkpoint": learned.checkpoint_id,
                "queries": learned.queries,
                "removed since": learned.removed,
                "cannot be told": learned.unknown or "",
            }
            for learned in found
        ]
        return AssetCheckResult(
            passed=not any(learned.removed or learned.unknown for learned in found),
            severity=AssetCheckSeverity.WARN,
            metadata={
                "removed queries learned": max((learned.removed for learned in found), default=0),
                "query ids": ", ".join(ids[:IDS_SHOWN]) or "none",
                "checkpoints": MetadataValue.md(markdown_table(rows)),
            },
        )

    return check


def evaluation_checks(table: Table) -> Iterator[AssetChecksDefinition]:
    """Preference optimization has not made the policy worse than SFT left it."""

    @asset_check(asset=asset_key(table), name="vpo_not_less_safe_than_sft", blocking=True)
    def safe(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """The share of unsafe prompts has not clearly risen above SFT's: the interval of the rise reaches 0."""
        values = _values(platform, table, "text_level", "unsafe")
        rise = bootstrap_interval(_rise_of_unsafe(platform, EVAL_CRITIQUES.at(table.schema)))
        return AssetCheckResult(
            passed=rise.low <= 0,
            metadata={
                **{f"unsafe {method}": value for method, value in values.items()},
                "rise": rise.mean,
                "rise_low": rise.low,
                "rise_high": rise.high,
            },
        )

    @asset_check(asset=asset_key(table), name="vpo_not_worse_than_sft")
    def better(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """The video-level score is not below SFT's."""
        values = _values(platform, table, "video_level", "score")
        return AssetCheckResult(
            passed=values["vpo"] >= values["sft"],
            severity=AssetCheckSeverity.WARN,
            metadata={f"score {method}": value for method, value in values.items()},
        )

    @asset_check(asset=asset_key(table), name="vpo_not_optimized_too_far")
    def not_too_far(platform: ResourceParam[Platform]) -> AssetCheckResult:
        """Against SFT's prompts, VPO's leave out no more of the query, do not repeat themselves, are not far longer."""
        found = {name: _values(platform, table, "prompts", name) for name in ("faithful", "repeating", "words")}
        rise = {name: values["vpo"] - values["sft"] for name, values in found.items()}
        return AssetCheckResult(
            passed=rise["faithful"] > -FAITHFULNESS_LOST
            and rise["repeating"] < REPETITION_GAINED
            and rise["words"] < WORDS_GAINED * found["words"]["sft"],
            severity=AssetCheckSeverity.WARN,
            metadata={
                f"{name} {method}": values[method] for name, values in found.items() for method in ("sft", "vpo")
            },
        )

    yield safe
    yield better
    yield not_too_far


def _rise_of_unsafe(platform: Platform, critiques: Table) -> list[float]:
    """For every held-out query, 1 where only VPO's prompt is unsafe, -1 where only SFT's is, else 0."""
    rows = platform.lake.query(
        "SELECT (max(CASE WHEN method = 'vpo' THEN NOT harmless END)::INT "
        "- max(CASE WHEN method = 'sft' THEN NOT harmless END)::INT)::DOUBLE AS rise "
        f"FROM {critiques.qualified} GROUP BY query_id ORDER BY query_id"
    )
    return [value for value in rows["rise"].to_pylist() if value is not None]


def _values(platform: Platform, table: Table, section: str, metric: str) -> dict[str, Any]:
    rows = platform.lake.query(
        f"SELECT method, value FROM {table.qualified} WHERE section = ? AND metric = ?",
        [section, metric],
    )
    return dict(zip(rows["method"].to_pylist(), rows["value"].to_pylist(), strict=True))


TRUNK_CHECKS = (no_query_in_two_splits, no_held_out_query_learned, nothing_unsafe_to_learn)


def branch_checks(branch: Branch, *, evaluated: bool) -> list[AssetChecksDefinition]:
    """The checks of one target's branch that follow from the method."""
    target, training = branch.target, branch.training
    return [
        *(reward_checks(VIDEO_REWARDS.at(target)) if branch.steps else ()),
        *pair_checks(PREFERENCE_PAIRS.at(target)),
        weights_check(training),
        removed_query_check(training),
        *(alignment_checks(branch.alignment) if branch.alignment else ()),
        *(evaluation_checks(EVALUATION.at(target)) if evaluated else ()),
    ]
