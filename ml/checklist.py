"""Checklists: the yes/no questions a video reward asks about a clip, and what their answers are worth.

Here: the questions and how a query is put into them, their weights, the sum of weights that the VPO paper calls the
reward, shares per dimension, named scores as a checklist, reading answers, and the reader of VisionReward's own
files. Not here: who answers the questions (resources/video_reward.py) and which pairs follow from the answers
(ml/preference.py).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from ml.parsing import printable, without_chat_tokens

Floats = npt.NDArray[np.float64]

QUERY_PLACEHOLDER = "[[prompt]]"
LONGEST_QUERY = 2000
"""Characters of a query that a question quotes. The longest of VPO's released queries has 1,106."""

_PLACEHOLDER_AND_QUOTES = re.compile('"?' + re.escape(QUERY_PLACEHOLDER) + '"?')
_DOUBLE_QUOTES = re.compile('["“”„‟«»″‶＂❝❞〝〞〟]')


class UnreadableAnswer(ValueError):
    """An answer that is neither yes nor no."""


class UnusableChecklist(ValueError):
    """A checklist file that does not hold what it should."""


@dataclass(frozen=True)
class Question:
    """One yes/no question. `text` may hold `[[prompt]]`, which stands for the user's query."""

    id: str
    text: str
    dimension: str
    sub_dimension: str
    weight: float

    def ask(self, query: str) -> str:
        """The question as it is put about one query. The query is inserted as it is and never interpreted."""
        return self.text.replace(QUERY_PLACEHOLDER, query)

    def ask_quoting(self, query: str) -> str:
        """The question as it is put to a model: the query stands in double quotes that it cannot end."""
        quoted = f'"{as_quoted(query)}"'
        return _PLACEHOLDER_AND_QUOTES.sub(lambda _: quoted, self.text)


def as_quoted(query: str) -> str:
    """A query as it can stand between double quotes in a question to a model, as data.

    In one line of at most LONGEST_QUERY characters, without control and hidden characters; its own double quotes are
    single ones, and what a tokenizer could take for the start or end of a message is taken apart. So a query can
    neither end its quotation nor answer in the model's place.
    """
    # Hidden characters go first: what they keep apart must not come together afterwards.
    one_line = " ".join(printable(query, LONGEST_QUERY).split())
    return without_chat_tokens(_DOUBLE_QUOTES.sub("'", one_line))


@dataclass(frozen=True)
class Checklist:
    """A named, versioned list of questions. Answers come in the order of `questions`.

    `counts` says which part of an answer the score is made of: "yes" (0 or 1, as VPO does it) or "probability" (a
    share of 0 to 1, for models that give scores, and for those who want the doubts of a yes/no model to count).
    """

    name: str
    version: str
    questions: tuple[Question, ...]
    counts: Literal["yes", "probability"] = "yes"

    def __post_init__(self) -> None:
        if self.counts not in ("yes", "probability"):
            raise UnusableChecklist(
                f"The checklist {self.name!r} counts {self.counts!r}; an answer has a yes and a probability."
            )
        if not self.questions:
            raise UnusableChecklist(f"The checklist {self.name!r} has no questions.")
        ids = [question.id for question in self.questions]
        twice = sorted({identifier for identifier in ids if ids.count(identifier) > 1})
        if twice:
            raise UnusableChecklist(f"The checklist {self.name!r} uses a question id twice: {', '.join(twice)}.")
        for question in self.questions:
            if not np.isfinite(question.weight):
                raise UnusableChecklist(f"Question {question.id!r} has the weight {question.weight}; give a number.")

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(question.id for question in self.questions)

    def groups(self, size: int) -> list[tuple[Question, ...]]:
        """The questions in their order, up to `size` together."""
        return [self.questions[start : start + size] for start in range(0, len(self), size)]

    @cached_property
    def weights(self) -> Floats:
        """(questions,) the weight of each question."""
        return np.array([question.weight for question in self.questions], dtype=np.float64)

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions in the order in which they first occur."""
        return tuple(dict.fromkeys(question.dimension for question in self.questions))

    @cached_property
    def sub_dimensions(self) -> tuple[str, ...]:
        """The sub-dimensions in the order in which they first occur."""
        return tuple(dict.fromkeys(question.sub_dimension for question in self.questions))

    def score(self, yes: npt.ArrayLike) -> Floats:
        """The reward R = sum(weight * yes) of VPO, section 3: the scale of the paper's margin.

        `yes` is (n, questions) of booleans, or of shares 0..1 where the answers for several seeds were
        averaged. Returns (n,). Raises UnreadableAnswer for values outside 0..1 and for NaN.
        """
        return np.asarray(self._checked(yes) @ self.weights, dtype=np.float64)

    def by_dimension(self, yes: npt.ArrayLike) -> dict[str, Floats]:
        """{dimension: (n,)} the weighted share of yes within each dimension, 0..1.

        Where all weights of a dimension are 0 (VisionReward's safety and physics) every question counts
        alike, so that the dimension can still be seen.
        """
        shares = self.group_shares(yes, "dimension")
        return {dimension: shares[:, column] for column, dimension in enumerate(self.dimensions)}

    def group_shares(self, yes: npt.ArrayLike, level: str) -> Floats:
        """(n, groups) the share of yes per `level`: "question", "sub_dimension" or "dimension"."""
        answers = self._checked(yes)
        if level == "question":
            return answers
        return answers @ self._share_weights(level)

    def _share_weights(self, level: str) -> Floats:
        """(questions, groups) weights whose columns sum to 1."""
        if level == "dimension":
            groups, names = [question.dimension for question in self.questions], self.dimensions
        elif level == "sub_dimension":
            groups, names = [question.sub_dimension for question in self.questions], self.sub_dimensions
        else:
            raise ValueError(f"Unknown level {level!r}; choose question, sub_dimension or dimension.")
        member = np.array([[group == name for name in names] for group in groups], dtype=np.float64)
        # A share is about size, not direction: a negative weight would let a share leave 0..1.
        weighted = member * np.abs(self.weights)[:, None]
        totals = weighted.sum(axis=0)
        weighted = np.where(totals > 0, weighted, member)
        return np.asarray(weighted / weighted.sum(axis=0), dtype=np.float64)

    def _checked(self, yes: npt.ArrayLike) -> Floats:
        raw = np.asarray(yes)
        if raw.dtype.kind not in "bif" and raw.size:
            raise UnreadableAnswer(f"Answers must be booleans or shares 0..1, not {raw.dtype}; read_answer reads text.")
        answers = raw.astype(np.float64)
        if answers.ndim != 2 or answers.shape[1] != len(self):
            raise ValueError(
                f"Answers for {self.name!r} must have the shape (n, {len(self)}); these have {answers.shape}."
            )
        valid = (answers >= 0) & (answers <= 1)  # false for NaN too
        if not valid.all():
            row, column = np.argwhere(~valid)[0]
            raise UnreadableAnswer(
                f"Row {row} answers {self.ids[column]!r} with {answers[row, column]}; "
                "an answer is a yes (1), a no (0) or an average of those."
            )
        return answers

    def to_json(self) -> str:
        """The checklist as JSON that `from_json` reads back to an equal checklist."""
        content: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "questions": [asdict(item) for item in self.questions],
        }
        if self.counts != "yes":  # left out where it is the default: the content of older checklists stays as it was
            content["counts"] = self.counts
        return json.dumps(content, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` writes. Raises UnusableChecklist and names the part that is wrong."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UnusableChecklist(f"The checklist is not JSON: {error}.") from error
        try:
            questions = tuple(_question_from_json(item) for item in content["questions"])
            return cls(
                name=str(content["name"]),
                version=str(content["version"]),
                questions=questions,
                counts=content.get("counts", "yes"),
            )
        except (KeyError, TypeError) as error:
            raise UnusableChecklist(
                "A checklist needs name, version and questions, each question with id, text, dimension, "
                f"sub_dimension and weight; this one lacks or misshapes {error}."
            ) from error


def _question_from_json(item: Mapping[str, Any]) -> Question:
    weight = item["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UnusableChecklist(f"The weight {weight!r} of question {item['id']!r} is not a number.")
    return Question(
        id=str(item["id"]),
        text=str(item["text"]),
        dimension=str(item["dimension"]),
        sub_dimension=str(item["sub_dimension"]),
        weight=float(weight),
    )


def read_answer(text: str) -> bool:
    """True for yes, False for no, whatever the case, with spaces, quotes or a full stop around it.

    Raises UnreadableAnswer for everything else: an unreadable answer must never pass for a silent "no".
    """
    answer = text.strip().strip("\"'*").rstrip(".!,").strip().casefold()
    if answer == "yes":
        return True
    if answer == "no":
        return False
    raise UnreadableAnswer(f"Expected yes or no, got {text[:80]!r}.")


def read_answers(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(questions,) booleans from answers as text; raises UnreadableAnswer and names the position."""
    answers = np.empty(len(texts), dtype=np.bool_)
    for position, text in enumerate(texts):
        try:
            answers[position] = read_answer(text)
        except UnreadableAnswer as error:
            raise UnreadableAnswer(f"Answer {position + 1} of {len(texts)}: {error}") from error
    return answers


_AROUND_A_WORD = re.compile(r"[\W_ĠĊ]+")


def read_token(token: str) -> bool | None:
    """True for a token that says yes, False for no, None for others; case, spaces and punctuation do not count."""
    return {"yes": True, "no": False}.get(_AROUND_A_WORD.sub("", token).casefold())


def probability_of_yes(tokens: Iterable[tuple[str, float]]) -> float | None:
    """P(yes) = yes / (yes + no), each summed over its variants among (token, log probability); None without any.

    Raises UnreadableAnswer for a log probability that is none.
    """
    sums = {True: 0.0, False: 0.0}
    for token, log_probability in tokens:
        said = read_token(token)
        if said is None:
            continue
        if math.isnan(log_probability) or log_probability > 1e-3:  # servers round
            raise UnreadableAnswer(f"The log probability {log_probability} of {token[:20]!r} is none.")
        sums[said] += math.exp(log_probability)
    total = sums[True] + sums[False]
    return sums[True] / total if total > 0 else None


def answers_schema(numbers: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of the answers to several questions at once: {"1": "yes", "2": "no"}."""
    return {
        "type": "object",
        "properties": {number: {"type": "string", "enum": ["yes", "no"]} for number in numbers},
        "required": list(numbers),
        "additionalProperties": False,
    }


def read_numbered_answers(text: str, asked: Mapping[str, str]) -> list[bool]:
    """The answers in a text that is one JSON object as `answers_schema` describes it, and nothing else.

    `asked` maps the numbers to what people call the questions. Raises UnreadableAnswer for anything around the object,
    for numbers that are missing, twice or not asked for, and, naming it, for an answer that is neither yes nor no.
    """
    try:
        found = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        raise UnreadableAnswer(f"Expected one JSON object of answers, got {text[:80]!r}.") from None
    if not isinstance(found, dict) or set(found) != set(asked):
        raise UnreadableAnswer(f"Expected the answers {', '.join(asked)}, each once, got {text[:80]!r}.")
    answers = []
    for number, name in asked.items():
        said = found[number]
        if not isinstance(said, str) or said.strip().casefold() not in ("yes", "no"):
            raise UnreadableAnswer(f"Question {name!r}: expected yes or no, got {str(said)[:80]!r}.")
        answers.append(said.strip().casefold() == "yes")
    return answers


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


@dataclass(frozen=True)
class Scale:
    """A named score that a reward model gives every clip: a number from `low` to `high`, the higher the better."""

    name: str
    low: float
    high: float
    weight: float = 1.0
    text: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UnusableChecklist(f"The score {self.name!r} must have a low end below its high end.")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UnusableChecklist(f"The score {self.name!r} has the weight {self.weight}; give 0 or more.")

    def share(self, value: float) -> float:
        """Where a score lies on its scale, 0 to 1. Raises UnreadableAnswer for one that lies outside, and for NaN."""
        if not self.low <= value <= self.high:
            raise UnreadableAnswer(f"The score {self.name!r} is {value}; its scale is {self.low:g} to {self.high:g}.")
        return (value - self.low) / (self.high - self.low)


def checklist_of_scores(name: str, version: str, scales: Sequence[Scale]) -> Checklist:
    """Named scores as a checklist, for models that give scores instead of answering questions.

    Each score is a question of a dimension of its own, and a clip's share of its scale is the answer's probability.
    The weights are stretched by the scales, so that differences of `Checklist.score` are differences of the model's
    own weighted sum, whatever the scales. Dominance then asks that no score is lower and one is higher.
    """
    questions = tuple(
        Question(
            id=scale.name,
            text=f"{scale.text or scale.name} ({scale.low:g} to {scale.high:g})",
            dimension=scale.name,
            sub_dimension=scale.name,
            weight=scale.weight * (scale.high - scale.low),
        )
        for scale in scales
    )
    return Checklist(name, version, questions, counts="probability")


# VisionReward's questions in the order of its file, in blocks: dimension, sub-dimension, number of questions,
# and a pattern that each question of the block matches, so that another file is not mistaken for this one.
_VISIONREWARD_BLOCKS: tuple[tuple[str, str, int, str], ...] = (
    ("alignment", "alignment", 4, r"requirements stated in the text"),
    ("composition", "composition", 2, r"the composition"),
    ("stability", "focus", 2, r"the focus"),
    ("stability", "camera_movement", 2, r"the camera movement"),
    ("quality", "color", 4, r"the colors"),
    ("quality", "lighting_accuracy", 3, r"lighting"),
    ("quality", "lighting_beauty", 3, r"the lighting"),
    ("preservation", "shape_at_beginning", 3, r"shape of the object at the beginning"),
    ("preservation", "shape_throughout", 4, r"shape of the object .*throughout"),
    ("dynamic", "object_motion", 4, r"the object's motion"),
    ("dynamic", "camera_motion", 4, r"the camera motion"),
    ("stability", "movement_smoothness", 2, r"smoothness of the object's movement"),
    ("fidelity", "movement_realism", 2, r"the object's movement"),
    ("quality", "clarity", 4, r"clear|blurry"),
    ("stability", "image_quality_stability", 4, r"the image quality"),
    ("stability", "camera_stability", 2, r"the camera"),
    ("fidelity", "detail_refinement", 4, r"the details"),
    ("fidelity", "letters", 3, r"letters"),
    ("physics", "laws_of_physics", 3, r"laws of physics"),
    ("physics", "physical_world", 1, r"physical world"),
    ("safety", "safety", 4, r"safe|harmful"),
)


def load_visionreward(questions_file: Path, select_file: Path | None, weights_file: Path) -> Checklist:
    """VisionReward's checklist (arXiv 2412.21059) from its own files.

    `questions_file` holds its 64 questions, one a line; `select_file` those that `weights_file` (a JSON list
    of numbers) weighs, in the order of the weights; all others weigh 0. Without a `select_file`,
    `weights_file` must weigh all 64. Raises UnusableChecklist and names the file and line.
    """
    texts = _lines(questions_file)
    kinds = _visionreward_kinds(questions_file, texts)
    selected = texts if select_file is None else _lines(select_file)
    weights = _read_weights(weights_file)
    if len(weights) != len(selected):
        listing = questions_file if select_file is None else select_file
        raise UnusableChecklist(
            f"{weights_file} holds {len(weights)} weights for the {len(selected)} questions of {listing}."
        )
    weight_of = dict(zip(selected, weights, strict=True))
    if len(weight_of) != len(selected):
        raise UnusableChecklist(f"{select_file} names a question twice.")
    unknown = [text for text in selected if text not in set(texts)]
    if unknown:
        raise UnusableChecklist(f"{select_file} asks {unknown[0]!r}, which {questions_file} does not hold.")
    questions = []
    seen: dict[str, int] = {}
    for text, (dimension, sub_dimension) in zip(texts, kinds, strict=True):
        seen[sub_dimension] = seen.get(sub_dimension, 0) + 1
        identifier = f"{sub_dimension}_{seen[sub_dimension]}"
        questions.append(Question(identifier, text, dimension, sub_dimension, weight_of.get(text, 0.0)))
    return Checklist(name="visionreward-video", version="1", questions=tuple(questions))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UnusableChecklist(f"Cannot read the question file {path}: {error.strerror}.") from error


def _read_weights(path: Path) -> list[float]:
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableChecklist(f"Cannot read the weight file {path}: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise UnusableChecklist(f"The weight file {path} is not JSON: {error}.") from error
    if not isinstance(weights, list) or not all(type(weight) in (int, float) for weight in weights):
        raise UnusableChecklist(f"The weight file {path} must hold a list of numbers.")
    return [float(weight) for weight in weights]


def _visionreward_kinds(path: Path, texts: Sequence[str]) -> list[tuple[str, str]]:
    """(dimension, sub-dimension) of each line."""
    expected = [
        (dimension, sub, pattern) for dimension, sub, count, pattern in _VISIONREWARD_BLOCKS for _ in range(count)
    ]
    if len(texts) != len(expected):
        raise UnusableChecklist(f"{path} holds {len(texts)} questions; VisionReward has {len(expected)}.")
    for line, (text, (_, sub_dimension, pattern)) in enumerate(zip(texts, expected, strict=True), start=1):
        if not re.search(pattern, text):
            raise UnusableChecklist(f"{path}, line {line}: expected a question about {sub_dimension}, found {text!r}.")
    return [(dimension, sub) for dimension, sub, _ in expected]
