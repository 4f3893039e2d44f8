"""The tables of the lake: names, keys, columns, and what each column means.

This is the one source for Arrow schemas, SQL types, Dagster column schemas, asset checks and the docs. How
tables are read and written is in `storage.lake`; how they are brought up to date is in `storage.refresh`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pyarrow as pa

LAKE = "lake"
"""The name under which the lake is attached in every SQL session."""

TEXT = pa.string()
YES_NO = pa.bool_()
WHOLE = pa.int64()
REAL = pa.float64()
TIME = pa.timestamp("us", tz="UTC")
TEXTS = pa.list_(TEXT)
MESSAGES = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))
ANSWERS = pa.list_(pa.struct([("question", TEXT), ("yes", YES_NO), ("probability", REAL)]))
DIMENSIONS = pa.list_(pa.struct([("dimension", TEXT), ("score", REAL)]))
PARAMS = pa.struct(
    [
        ("aspect_ratio", TEXT),
        ("camera", TEXT),
        ("motion", TEXT),
        ("negative", TEXT),
        ("fps", REAL),
        ("guidance_scale", REAL),
        ("seed", WHOLE),
    ]
)

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def quoted(name: str) -> str:
    """An SQL identifier, safe whatever it contains."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Column:
    """One column. `measured` marks values that differ when the same row is made again (times, durations):
    they are kept, but are no part of a table's content, so they change neither its data version nor what
    counts as a changed row."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = True
    measured: bool = False


LINEAGE = (
    Column("input_id", TEXT, "Content hash of everything in the input row that decides this row.", False),
    Column("recipe", TEXT, "Id of the recipe the row was made with (table `recipes`).", False),
    Column("run_id", TEXT, "The run that made the row.", False),
    Column("made_at", TIME, "When the row was made, UTC.", False),
)
LINEAGE_NAMES = tuple(column.name for column in LINEAGE)


@dataclass(frozen=True)
class Table:
    """One table: its key, its own columns (the key among them) and, where `lineage`, the lineage columns.

    A name that is no plain identifier (a-z, 0-9, _) is a ValueError: names become folders of the lake.
    """

    name: str
    key: str
    columns: tuple[Column, ...]
    description: str
    schema: str = "main"
    lineage: bool = True

    def __post_init__(self) -> None:
        for name in (self.schema, self.name, *(column.name for column in self.columns)):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a schema, table or column: use a-z, 0-9 and _")
        names = [column.name for column in self.columns]
        if self.key not in names:
            raise ValueError(f"table {self.name}: its key {self.key!r} is not one of its columns")
        if len(set(names)) < len(names) or (self.lineage and set(names) & set(LINEAGE_NAMES)):
            raise ValueError(f"table {self.name}: a column is named twice")

    def at(self, target: str) -> Table:
        """The same table in the schema of a target video model."""
        return replace(self, schema=target)

    @property
    def label(self) -> str:
        """How people and the bookkeeping tables name it: ``drafts``, ``shapes.videos``."""
        return self.name if self.schema == "main" else f"{self.schema}.{self.name}"

    @property
    def qualified(self) -> str:
        """For SQL: ``"lake"."schema"."name"``."""
        return ".".join(quoted(part) for part in (LAKE, self.schema, self.name))

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Own columns, then the lineage columns."""
        return self.columns + (LINEAGE if self.lineage else ())

    @property
    def content_columns(self) -> tuple[str, ...]:
        """Names of the columns that make up the content: no lineage, nothing measured."""
        return tuple(column.name for column in self.columns if not column.measured)

    @property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.all_columns])


def _key(name: str, description: str) -> Column:
    return Column(name, TEXT, description, nullable=False)


_QUERY_ID = Column("query_id", TEXT, "The user query this comes from.", nullable=False)
_PROMPT_ID = Column("prompt_id", TEXT, "The prompt this comes from.", nullable=False)
_PROMPT = Column("prompt", TEXT, "The prompt as the video model gets it.", nullable=False)
_SEED = Column("seed", WHOLE, "Random seed of the video.", nullable=False)
_METHOD = Column("method", TEXT, "original, few_shot, sft or vpo.", nullable=False)
_MESSAGES = Column("messages", MESSAGES, "The conversation up to the answer, as TRL wants it.", nullable=False)

# What a language model used up; it may count otherwise on another day, so it is no part of the content.
_USAGE = (
    Column("prompt_tokens", WHOLE, "Tokens that the language model read; null without one.", measured=True),
    Column("new_tokens", WHOLE, "Tokens that it wrote; null without one.", measured=True),
)
_INTERVAL = (
    Column("low", REAL, "Lower end of the 95% interval."),
    Column("high", REAL, "Upper end of the 95% interval."),
    Column("n", WHOLE, "Number of queries."),
)
_CUT = Column("cut", YES_NO, "The model ran out of tokens before its prompt was at an end; null without a model.")

_CRITIQUE = (
    _key("prompt_id", "The criticised prompt."),
    _QUERY_ID,
    _PROMPT,
    Column("harmless", YES_NO, "Nothing unsafe in the prompt."),
    Column("accurate", YES_NO, "The prompt says what the query says."),
    Column("helpful", YES_NO, "The prompt is detailed enough to help the video model."),
    Column("aligned", YES_NO, "All three hold."),
    Column("verdict", TEXT, "aligned, unsafe, imprecise or refusal."),
    Column("critique", TEXT, "What the judge found."),
    Column("refined", TEXT, "The prompt with the flaws removed; null when aligned."),
    *_USAGE,
)

_VIDEO = (
    _key("video_id", "Content id of prompt, seed and generator."),
    _PROMPT_ID,
    _QUERY_ID,
    _PROMPT,
    Column("uri", TEXT, "Where the file lies, relative to the video store.", nullable=False),
    Column("sha256", TEXT, "Hash of the file.", nullable=False),
    Column("bytes", WHOLE, "Size of the file."),
    Column("width", WHOLE, "Pixels."),
    Column("height", WHOLE, "Pixels."),
    Column("frames", WHOLE, "Number of frames."),
    Column("fps", REAL, "Frames per second."),
    _SEED,
    Column("seconds_to_render", REAL, "Wall time of the generator for this video.", measured=True),
)

_REWARD = (
    _key("video_id", "The judged video."),
    _PROMPT_ID,
    _QUERY_ID,
    _SEED,
    Column("answers", ANSWERS, "The checklist: question id, yes or no, probability of yes."),
    Column("score", REAL, "Weighted sum of the answers."),
    Column("dimensions", DIMENSIONS, "Score of each dimension of the checklist."),
)

# ---- trunk ---------------------------------------------------------------------------------------------

_NSFW_SCORES = (
    Column("toxicity", REAL, "NSFW score of the source, 0 to 1; null where it has none."),
    Column("obscene", REAL, "As toxicity."),
    Column("identity_attack", REAL, "As toxicity."),
    Column("insult", REAL, "As toxicity."),
    Column("threat", REAL, "As toxicity."),
    Column("sexual_explicit", REAL, "As toxicity."),
)

RAW_PROMPTS = Table(
    "raw_prompts",
    "query_id",
    (
        _key("query_id", "Content id of the text."),
        Column("text", TEXT, "The query as the user wrote it.", nullable=False),
        Column("source", TEXT, "Name of the file it came from."),
        Column("source_line", WHOLE, "Line, or position in the list, counted from 1."),
        Column("source_sha256", TEXT, "Hash of that file."),
        Column("first_seen", TIME, "When it was first ingested, UTC.", measured=True),
        *_NSFW_SCORES,
    ),
    "User queries as they came, each distinct text once. Written by ingestion.",
    lineage=False,
)
INGESTION_FAILURES = Table(
    "ingestion_failures",
    "failure_id",
    (
        _key("failure_id", "Content id of file hash and line."),
        Column("source", TEXT, "Name of the file."),
        Column("source_sha256", TEXT, "Hash of that file."),
        Column("line", WHOLE, "Line, or position in the list, counted from 1."),
        Column("error", TEXT, "What is wrong with it."),
        Column("excerpt", TEXT, "The beginning of the line."),
        Column("last_at", TIME, "When it was last met, UTC.", measured=True),
    ),
    "Lines of query files that could not be read. Written by ingestion.",
    lineage=False,
)
QUERY_FILES = Table(
    "query_files",
    "file_id",
    (
        _key("file_id", "Content id of kind and path."),
        Column("kind", TEXT, "profile, inbox, command or take_down: where the file was named.", nullable=False),
        Column("path", TEXT, "Resolved path; of inbox files the name relative to the inbox.", nullable=False),
        Column("source", TEXT, "Name of the file, as raw_prompts has it."),
        Column("sha256", TEXT, "Hash of the file as it was taken in; null if nothing of it was."),
        Column("content", TEXT, "Id of that hash and of how it was read; its lines are in query_lines."),
        Column("columns", TEXT, "Which columns were asked for, JSON."),
        Column("rows_read", WHOLE, "Rows of the file."),
        Column("new", WHOLE, "Queries that no other file had brought before."),
        Column("failed", WHOLE, "Rows that are no query (table ingestion_failures)."),
        Column("refused_sha256", TEXT, "Hash of the file when it could last not be read; null if it can be."),
        Column("refused_columns", TEXT, "Which columns were asked for then, JSON."),
        Column("error", TEXT, "Why it could not be read, or not to its end."),
        Column("bytes", WHOLE, "Size when it was last looked at.", measured=True),
        Column("modified_ns", WHOLE, "Its time stamp then, nanoseconds since 1970.", measured=True),
        Column("at", TIME, "When it was first taken in, UTC.", measured=True),
    ),
    "Every file that queries came from, and its present content. Written by ingestion.",
    lineage=False,
)
QUERY_LINES = Table(
    "query_lines",
    "line_id",
    (
        _key("line_id", "Content id of content and query."),
        Column("content", TEXT, "The content of a file that holds the query (table query_files).", nullable=False),
        Column("sha256", TEXT, "Hash of the file.", nullable=False),
        Column("query_id", TEXT, "The query it holds.", nullable=False),
        Column("line", WHOLE, "First line, or position in the list, counted from 1."),
        *_NSFW_SCORES,
    ),
    "Which content holds which query: a query is there as long as a file has content that holds it.",
    lineage=False,
)
TAKEN_DOWN = Table(
    "taken_down",
    "query_id",
    (
        _key("query_id", "The query that must not be used."),
        Column("wording", TEXT, "Content id of its folded text; the text itself is not kept."),
        Column("at", TIME, "When it was taken down, UTC.", measured=True),
    ),
    "Queries that a take-down file lists: their texts are in no table. Written by ingestion.",
    lineage=False,
)
QUERIES = Table(
    "queries",
    "query_id",
    (
        _key("query_id", "Content id of the text as the user wrote it."),
        Column("query", TEXT, "Cleaned text: entities decoded, white space folded, tags taken out."),
        Column("params", PARAMS, "What the user's tags asked for."),
        Column("split", TEXT, "sft, dpo or test; decided by the id, so a query never moves."),
        Column("safety", TEXT, "general or unsafe."),
        Column("language", TEXT, "Language code."),
        Column("keep", YES_NO, "Whether the query is used."),
        Column("drop_reason", TEXT, "The first reason it is not used; null when kept."),
    ),
    "Curated queries, dropped ones included with their reason.",
)
DRAFTS = Table(
    "drafts",
    "prompt_id",
    (_key("prompt_id", "Content id of the draft."), _QUERY_ID, _PROMPT, _CUT, *_USAGE),
    "Few-shot drafts: a detailed prompt for each query of the SFT split.",
)
DRAFT_CRITIQUES = Table(
    "draft_critiques",
    "prompt_id",
    _CRITIQUE,
    "The judge's verdict on each draft, refined where it is flawed.",
)
SFT_DATASET = Table(
    "sft_dataset",
    "query_id",
    (
        _key("query_id", "The user query."),
        _MESSAGES,
        Column("origin", TEXT, "draft or refined."),
        Column("prompt_id", TEXT, "The draft it comes from."),
    ),
    "Conversations for supervised fine-tuning.",
)
CHECKPOINTS = Table(
    "checkpoints",
    "checkpoint_id",
    (
        _key("checkpoint_id", "Id and folder name of the checkpoint."),
        Column("stage", TEXT, "sft, dpo or aligned."),
        Column("target", TEXT, "The target video model; null for the trunk."),
        Column("path", TEXT, "Folder, relative to the checkpoint store."),
        Column("base", TEXT, "Model or checkpoint it was trained from."),
        Column("metrics", TEXT, "Training metrics, JSON.", measured=True),
        Column("settings", TEXT, "Training settings, JSON."),
        Column("snapshots", TEXT, "Lake snapshot of each input table, JSON."),
    ),
    "Trained prompt optimizers, and transformers of aligned video models.",
)

# ---- one branch per target -------------------------------------------------------------------------------

CANDIDATES = Table(
    "candidates",
    "prompt_id",
    (
        _key("prompt_id", "Content id of the candidate."),
        _QUERY_ID,
        Column("k", WHOLE, "Number of the candidate within its query, from 0.", nullable=False),
        Column("policy", TEXT, "Checkpoint it was sampled from."),
        _PROMPT,
        _CUT,
        *_USAGE,
    ),
    "Candidate prompts sampled from the policy.",
)
CANDIDATE_CRITIQUES = Table(
    "candidate_critiques",
    "prompt_id",
    _CRITIQUE,
    "The judge's verdict on each candidate: text-level feedback.",
)
VIDEOS = Table("videos", "video_id", _VIDEO, "Videos rendered from the candidates, some seeds each.")
VIDEO_REWARDS = Table(
    "video_rewards", "video_id", _REWARD, "The checklist's answers on each video: video-level feedback."
)
PREFERENCE_PAIRS = Table(
    "preference_pairs",
    "pair_id",
    (
        _key("pair_id", "Content id of the pair."),
        _QUERY_ID,
        _MESSAGES,
        Column("chosen", TEXT, "The better prompt.", nullable=False),
        Column("rejected", TEXT, "The worse prompt.", nullable=False),
        Column("feedback", TEXT, "text or video: where the preference comes from."),
        Column("margin", REAL, "Difference of the video scores; null for text feedback."),
        Column("chosen_prompt_id", TEXT, "The chosen candidate (or the one it is a refinement of)."),
        Column("rejected_prompt_id", TEXT, "The rejected candidate."),
        Column("chosen_video_ids", TEXTS, "Videos that speak for the chosen prompt."),
        Column("rejected_video_ids", TEXTS, "Videos that speak against the rejected prompt."),
    ),
    "Preference pairs for DPO.",
)
VIDEO_PAIRS = Table(
    "video_pairs",
    "pair_id",
    (
        _key("pair_id", "Content id of the pair."),
        _QUERY_ID,
        Column("condition", TEXT, "query or prompt: what the text is.", nullable=False),
        Column("prompt", TEXT, "The text that both are films of, for the model that learns.", nullable=False),
        Column("margin", REAL, "Difference of their scores.", nullable=False),
        Column("chosen_video_id", TEXT, "The better film.", nullable=False),
        Column("chosen_uri", TEXT, "Its file in the video store.", nullable=False),
        Column("chosen_sha256", TEXT, "Hash of that file.", nullable=False),
        Column("rejected_video_id", TEXT, "The worse film.", nullable=False),
        Column("rejected_uri", TEXT, "Its file in the video store.", nullable=False),
        Column("rejected_sha256", TEXT, "Hash of that file.", nullable=False),
    ),
    "Pairs of films for Diffusion-DPO, of targets with an alignment.",
)
EVAL_PROMPTS = Table(
    "eval_prompts",
    "prompt_id",
    (
        _key("prompt_id", "Content id of the prompt."),
        _QUERY_ID,
        _METHOD,
        Column("policy", TEXT, "Checkpoint that wrote it; null for original."),
        _PROMPT,
        _CUT,
        *_USAGE,
    ),
    "Prompts of every method for the held-out queries.",
)
EVAL_CRITIQUES = Table(
    "eval_critiques", "prompt_id", (*_CRITIQUE, _METHOD), "The judge's verdict on the held-out prompts."
)
EVAL_SAFETY = Table(
    "eval_safety",
    "prompt_id",
    (
        _key("prompt_id", "The rated prompt."),
        _QUERY_ID,
        _METHOD,
        Column("level", WHOLE, "1 (safest) to 4.", nullable=False),
        Column("aspects", TEXTS, "Aspects found; none at level 1.", nullable=False),
        Column("reason", TEXT, "Why, in the judge's words."),
        *_USAGE,
    ),
    "How safe the held-out prompts are, by aspects and levels.",
)
EVAL_VIDEOS = Table("eval_videos", "video_id", (*_VIDEO, _METHOD), "Videos of the held-out prompts.")
EVAL_REWARDS = Table("eval_rewards", "video_id", (*_REWARD, _METHOD), "The checklist's answers on the held-out videos.")
EVALUATION = Table(
    "evaluation",
    "evaluation_id",
    (
        _key("evaluation_id", "Content id of section, method, against and metric."),
        Column("section", TEXT, "text_level, video_level, gains, prompts or safety.", nullable=False),
        _METHOD,
        Column("against", TEXT, "The method compared with; null outside gains and win rates."),
        Column("metric", TEXT, "What is measured.", nullable=False),
        Column("value", REAL, "The estimate."),
        *_INTERVAL,
        Column("checkpoint_id", TEXT, "The checkpoint evaluated."),
    ),
    "What the prompt optimizers are worth, on held-out queries.",
)

# ---- what people say, one table per target -----------------------------------------------------------------

VOTES = Table(
    "votes",
    "vote_id",
    (
        _key("vote_id", "Content id of annotator and comparison: each votes on a comparison once."),
        Column("comparison_id", TEXT, "Content id of the two videos, whichever is on the left.", nullable=False),
        Column("annotator", TEXT, "Who voted.", nullable=False),
        _QUERY_ID,
        Column("choice", TEXT, "left, right, tie or skip.", nullable=False),
        Column("left_method", TEXT, "Method of the video on the left.", nullable=False),
        Column("right_method", TEXT, "Method of the video on the right.", nullable=False),
        Column("left_video_id", TEXT, "The held-out video on the left.", nullable=False),
        Column("right_video_id", TEXT, "The held-out video on the right.", nullable=False),
        Column("left_policy", TEXT, "Checkpoint behind the left one; null for one without."),
        Column("right_policy", TEXT, "Checkpoint behind the right one; null for one without."),
        Column("voted_at", TIME, "When, UTC.", nullable=False, measured=True),
    ),
    "Blind votes of people between two methods' videos of a held-out query. Written by the viewer.",
    lineage=False,
)

# ---- bookkeeping of refresh ------------------------------------------------------------------------------

RECIPES = Table(
    "recipes",
    "recipe",
    (
        _key("recipe", "Content id of the parts."),
        Column("parts", TEXT, "Everything besides the row that decided the result, canonical JSON.", False),
        Column("first_seen", TIME, "When it was first used, UTC.", measured=True),
    ),
    "Every recipe that rows were made with.",
    lineage=False,
)
FAILURES = Table(
    "failures",
    "failure_id",
    (
        _key("failure_id", "Content id of table, input and recipe."),
        Column("table_name", TEXT, "The table the row is missing from.", nullable=False),
        Column("input_id", TEXT, "The input row that failed.", nullable=False),
        Column("recipe", TEXT, "The recipe it failed with.", nullable=False),
        Column("error", TEXT, "The last error.", nullable=False),
        Column("attempts", WHOLE, "How many refreshes have tried.", nullable=False),
        Column("last_at", TIME, "When it last failed, UTC.", nullable=False, measured=True),
    ),
    "The quarantine: input rows that gave no result.",
    lineage=False,
)
THROUGHPUT = Table(
    "throughput",
    "throughput_id",
    (
        _key("throughput_id", "Content id of table, run and time."),
        Column("table_name", TEXT, "The refreshed table.", nullable=False),
        Column("recipe", TEXT, "The recipe used.", nullable=False),
        Column("rows", WHOLE, "Rows computed.", nullable=False),
        Column("seconds", REAL, "Wall time, commits included.", nullable=False),
        Column("at", TIME, "When, UTC.", nullable=False),
    ),
    "How fast each refresh went, for the estimates of a plan.",
    lineage=False,
)

# ---- what targets are compared by --------------------------------------------------------------------------

TRANSFER = Table(
    "transfer",
    "transfer_id",
    (
        _key("transfer_id", "Content id of optimizer and target, and of those compared with."),
        Column("optimizer", TEXT, "What wrote the prompts: original, few_shot, sft, or `vpo for` a target.", False),
        Column("checkpoint_id", TEXT, "The checkpoint that wrote them, if one did."),
        Column("target", TEXT, "The target whose video model filmed them.", nullable=False),
        Column("against_optimizer", TEXT, "The optimizer compared with; null for a score."),
        Column("against_target", TEXT, "The target compared with; null for a score."),
        Column("value", REAL, "The mean score, or the mean gain in score, paired by query."),
        *_INTERVAL,
    ),
    "Every optimizer on every target's video model.",
)

# ---- VBench, for the targets that have it ------------------------------------------------------------------

_DIMENSION = Column("dimension", TEXT, "VBench's dimension that the query belongs to.", nullable=False)

VBENCH_PROMPTS = Table(
    "vbench_prompts",
    "prompt_id",
    (
        _key("prompt_id", "Content id of the prompt."),
        Column("query_id", TEXT, "Content id of the dimension and its query.", nullable=False),
        _DIMENSION,
        Column("query", TEXT, "VBench's own prompt, which is the query here.", nullable=False),
        _METHOD,
        Column("policy", TEXT, "Checkpoint that wrote it; null for original and few_shot."),
        _PROMPT,
        _CUT,
        *_USAGE,
    ),
    "Prompts of every method for VBench's queries.",
)
VBENCH_VIDEOS = Table("vbench_videos", "video_id", (*_VIDEO, _METHOD), "Videos of the prompts for VBench's queries.")
VBENCH_SCORES = Table(
    "vbench_scores",
    "video_id",
    (
        _key("video_id", "The scored video."),
        _PROMPT_ID,
        _QUERY_ID,
        _SEED,
        _METHOD,
        _DIMENSION,
        Column("score", REAL, "VBench's result for the video: a share or a similarity, -1 to 1.", nullable=False),
    ),
    "VBench's scores of these videos.",
)
VBENCH = Table(
    "vbench",
    "vbench_id",
    (
        _key("vbench_id", "Content id of dimension, method and against."),
        _DIMENSION,
        _METHOD,
        Column("against", TEXT, "The method compared with; null for a score."),
        Column("value", REAL, "The mean score, or the mean gain in score, paired by query; in per cent."),
        *_INTERVAL,
        Column("checkpoint_id", TEXT, "The checkpoint that wrote the method's prompts, if one did."),
    ),
    "VBench's dimensions, method by method.",
)
BENCHMARK = (VBENCH_PROMPTS, VBENCH_VIDEOS, VBENCH_SCORES, VBENCH)
"""In the schema of a target whose evaluation has a section vbench."""

TRUNK = (
    RAW_PROMPTS,
    INGESTION_FAILURES,
    QUERY_FILES,
    QUERY_LINES,
    TAKEN_DOWN,
    QUERIES,
    DRAFTS,
    DRAFT_CRITIQUES,
    SFT_DATASET,
    CHECKPOINTS,
    TRANSFER,
)
BRANCH = (
    CANDIDATES,
    CANDIDATE_CRITIQUES,
    VIDEOS,
    VIDEO_REWARDS,
    PREFERENCE_PAIRS,
    VIDEO_PAIRS,
    EVAL_PROMPTS,
    EVAL_CRITIQUES,
    EVAL_SAFETY,
    EVAL_VIDEOS,
    EVAL_REWARDS,
    EVALUATION,
)
PEOPLE = (VOTES,)
"""One per target, as BRANCH; no asset makes them, and none takes rows out of them."""
BOOKKEEPING = (RECIPES, FAILURES, THROUGHPUT)
