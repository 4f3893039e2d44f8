import hashlib
import html
import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml.curation import (
    DROP_REASONS,
    QUERIES_SCHEMA,
    CurationResult,
    CurationSettings,
    clean,
    curate,
    language_of,
    parse_tags,
    split_of,
)
from ml.curation.duplicates import exact_duplicates, near_duplicates, normalised
from tests.ml.shared_data import shared_data


def identifier(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def raw_table(texts: list[str], **scores: list[float | None]) -> pa.Table:
    return pa.table({"query_id": [identifier(text) for text in texts], "text": pa.array(texts, pa.string()), **scores})


def rows_by_text(texts: list[str], curation_settings: CurationSettings | None = None) -> dict[str, dict[str, Any]]:
    rows = {row["query_id"]: row for row in curate(raw_table(texts), curation_settings).rows.to_pylist()}
    return {text: rows[identifier(text)] for text in texts}


# -------------------------------------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("it&#39;s &quot;raining&quot;", 'it\'s "raining"'),
        ("it&amp;#39;s", "it's"),
        ("it&amp;amp;amp;#x27;s", "it's"),
        ("rock &notes &amp; AT&T", "rock &notes & AT&T"),
        ("  a\tcat\r\n sleeps\x00 ", "a cat sleeps"),
        ("cafe\u0301 \u200bnoir\ufeff", "café noir"),
        ("poetry of life&#", "poetry of life"),
        ("prompt:a dog", "a dog"),
        ("/create prompt:/create prompt: a dog", "a dog"),
        ("/imagine a cat", "a cat"),
        ('a man on <img\n loading="lazy" alt="🐎" title="racehorse" src="https://x.y/z.svg">', "a man on 🐎"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("'; DROP TABLE queries; --", "'; DROP TABLE queries; --"),
        ("👨\u200d👩\u200d👧 walk", "👨\u200d👩\u200d👧 walk"),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


pieces = st.sampled_from(
    [
        "&",
        "amp;",
        "#39;",
        "&#39;",
        "&lt;",
        "img ",
        ">",
        "<",
        'alt="x"',
        "prompt:",
        "/create ",
        " ",
        "\x00",
        "\u200b",
        "e",
        "́",
        "-ar 16:9",
        "-neg ",
        "-camera zoom in",
        "--seed",
        " 5",
        "a cat",
        "]",
        "[",
        ",",
        ".",
        "naked ",
    ]
)
messy_texts = st.lists(pieces | st.text(max_size=6), max_size=14).map("".join)


@given(messy_texts)
def test_cleaning_twice_is_the_same_as_once(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert "\n" not in cleaned
    assert "  " not in cleaned


@given(st.text(alphabet="abc '\"<>&é", max_size=20), st.integers(1, 4))
def test_cleaning_undoes_any_number_of_encodings(text: str, times: int) -> None:
    encoded = text
    for _ in range(times):
        encoded = html.escape(encoded)
    assert clean(encoded) == clean(text)


# ------------------------------------------------------------------------------------------------ tags


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    query, params = parse_tags(text)
    return query, {name: value for name, value in params.as_dict().items() if value is not None}


@pytest.mark.parametrize(
    ("text", "query", "params"),
    [
        ("a cat -camera zoom in", "a cat", {"camera": "zoom in"}),
        (
            "a cat -camera zoom in -neg blurry, bad -ar 9:16",
            "a cat",
            {"camera": "zoom in", "negative": "blurry, bad", "aspect_ratio": "9:16"},
        ),
        ("a cat --ar 16:9 -motion 2", "a cat", {"aspect_ratio": "16:9", "motion": "2"}),
        ("a cat —ar 16:9", "a cat", {"aspect_ratio": "16:9"}),
        ("a cat - ar 16x9", "a cat", {"aspect_ratio": "16:9"}),
        ("a cat -ar9:16 -motion3 -gs12 -fps24", "a cat",
         {"aspect_ratio": "9:16", "motion": "3", "guidance_scale": 12.0, "fps": 24.0}),
        ("a cat, -fps 24-ar 16:9", "a cat", {"fps": 24.0, "aspect_ratio": "16:9"}),
        ("-ar 9:16 a cat on a mat -seed 7", "a cat on a mat", {"aspect_ratio": "9:16", "seed": 7}),
        ("a cat -seed 5 -seed 6", "a cat", {"seed": 6}),
        ("a cat -seed 11342711863440741027", "a cat", {"seed": 11342711863440741027 % 2**63}),
        ('a cat -neg "CGI, art" -neg “blur”', "a cat", {"negative": "CGI, art, blur"}),
        ("a cat. -camera pan left. -camera zoom out.", "a cat.", {"camera": "pan left, zoom out"}),
        ("a cat -camera rotate ccw -gs 5.5", "a cat", {"camera": "rotate ccw", "guidance_scale": 5.5}),
        ("[a cat runs -ar 16:9 --seed 4567]", "[a cat runs]", {"aspect_ratio": "16:9", "seed": 4567}),
        ("a sunset path--ar 16:9", "a sunset path", {"aspect_ratio": "16:9"}),
        ("a cat -hide -ar 1:1", "a cat", {"aspect_ratio": "1:1"}),
        ("-ar 16:9 -motion 2", "", {"aspect_ratio": "16:9", "motion": "2"}),
        ("-neg a, b", "", {"negative": "a, b"}),
    ],
)  # fmt: skip
def test_tags_become_params(text: str, query: str, params: dict[str, Any]) -> None:
    assert parsed(text) == (query, params)


@pytest.mark.parametrize(
    "text",
    [
        "a cat -realistic -cinematic",
        "a cat --v 5 --style raw",
        "a slow-motion shot, well-camera",
        "a cat -ar wide",
        "a cat -ar 0:9",
        "a cat -camera 9:16",
        "a cat -motion fast",
        "a mountain-area 3 by the sea",
        "an article - arrows fly",
        "16:9 video of a cat, camera zoom in",
        "a cat - negotiating peace",
        "a poster - negative space around a cat",
    ],
)
def test_unknown_and_senseless_tags_stay_text(text: str) -> None:
    assert parsed(text) == (text, {})


@given(messy_texts)
def test_no_tag_makes_words_up(text: str) -> None:
    cleaned = clean(text)
    query, params = parse_tags(cleaned)
    assert len(query) <= len(cleaned)
    remaining = iter(cleaned)
    assert all(character in remaining for character in query if character != " ")
    if all(value is None for value in params.as_dict().values()) and "-neg" not in cleaned:
        assert query == cleaned


# ----------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\u200b", "empty"),
        ("-ar 16:9 -motion 2", "only_tags"),
        ("robot", "too_short"),
        ("a a", "too_short"),
        ("word " * 300, "too_long"),
        ("12 34 !!", "no_letters"),
        ("a cat https://example.org/x", "url"),
        ("image:IMG_29.JPG a cat", "url"),
        ("animate this photo, please", "blocked_phrase"),
        ("a ^^~~<<>>{}{}\\\\ cat", "special_characters"),
        ("go go go go go now", "repeated_words"),
        ("cat a cat b cat c cat cat", "repeated_words"),
        ("una mujer camina por la ciudad", "not_english"),
        ("кот идёт домой", "not_english"),
        ("猫が歩いています", "not_english"),
    ],
)
def test_every_rule_drops_what_it_is_for(text: str, reason: str) -> None:
    row = rows_by_text([text])[text]
    assert (row["keep"], row["drop_reason"]) == (False, reason)


@pytest.mark.parametrize(
    "text",
    [
        "red ball",
        "a cat",
        "Putin & Trump play chess!",
        "ice cream eat ice cream at the end blink",
        "shop sign saying Maker-Mall.com",
        "café in Málaga, señor drinks coffee",
        "Dulcinea del Toboso and el Cid",
        "a man in Tokyo 東京",
        "90's VHS, 8k, --v 5",
        "The moonlight dances. This image evokes calm.",
        "crimson hoop zips eastbound",
        "<b>'; DROP TABLE queries; -- {{ 7*7 }}",
    ],
)
def test_ordinary_queries_are_kept(text: str) -> None:
    row = rows_by_text([text])[text]
    assert (row["keep"], row["drop_reason"]) == (True, None)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a dog runs", "en"),
        ("xyzzy plugh", "en"),
        ("un perro corre por la playa", "es"),
        ("ein Hund läuft auf der Straße", "de"),
        ("un chien marche dans la rue", "fr"),
        ("собака бежит", "ru"),
        ("狗在跑步", "zh"),
        ("犬が走る", "ja"),
        ("123", "und"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


def test_a_query_of_100_000_characters_is_dropped_quickly_and_stored_short() -> None:
    started = time.perf_counter()
    texts = [
        "a cat " * 20_000,
        "&amp;" * 20_000,
        "<" * 100_000,
        "x" * 100_000,
        "-ar " * 25_000,
        "&" * 100_000,
    ]
    for row in rows_by_text(texts).values():
        assert (row["keep"], row["drop_reason"]) == (False, "too_long")
        assert len(row["query"]) <= CurationSettings().maximum_characters
    assert time.perf_counter() - started < 5


def test_rules_can_be_set() -> None:
    one_word = CurationSettings(minimum_words=1, english_only=False, blocked_phrases=("cat",))
    rows = rows_by_text(["robot", "una mujer en la calle", "a cat"], one_word)
    assert [row["drop_reason"] for row in rows.values()] == [None, None, "blocked_phrase"]
    with pytest.raises(ValidationError, match="must sum to 1"):
        CurationSettings(sft_share=0.9)
    with pytest.raises(ValidationError):
        CurationSettings.model_validate({"min_words": 2})


# ------------------------------------------------------------------------------------------ duplicates


def test_exact_duplicates_keep_the_smallest_id() -> None:
    texts = ["a red ball rolls", "A red ball, rolls!", "a red  ball rolls -ar 16:9", "a blue ball rolls"]
    rows = rows_by_text(texts, CurationSettings(near_duplicate_threshold=None))
    same = sorted(texts[:3], key=identifier)
    assert rows[same[0]]["keep"]
    assert [rows[text]["drop_reason"] for text in same[1:]] == ["exact_duplicate"] * 2
    assert rows[texts[3]]["keep"]


def jaccard(one: str, other: str) -> float:
    def grams(text: str) -> set[str]:
        text = normalised(text) or text
        return {text[i : i + 5] for i in range(max(len(text) - 4, 1))} if len(text) > 5 else {text}

    a, b = grams(one), grams(other)
    return len(a & b) / len(a | b)


_WORDS = ("red", "blue", "ball", "ring", "rolls", "jumps", "slowly", "over", "the", "quiet", "green", "hill")
_sentences = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=9).map(" ".join)
similar_texts = st.lists(_sentences, min_size=1, max_size=12, unique=True)


@settings(max_examples=100)
@given(similar_texts, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_near_duplicates_against_all_pairs(texts: list[str], threshold: float) -> None:
    ids = [identifier(text) for text in texts]
    dropped = near_duplicates(ids, texts, threshold)
    kept = [n for n in range(len(texts)) if not dropped[n]]
    for n in np.flatnonzero(dropped):
        assert any(ids[k] < ids[n] and jaccard(texts[k], texts[n]) >= threshold - 1e-6 for k in kept)
    order = np.random.default_rng(0).permutation(len(texts))
    again = near_duplicates([ids[n] for n in order], [texts[n] for n in order], threshold)
    assert {ids[n] for n in np.flatnonzero(dropped)} == {ids[order[n]] for n in np.flatnonzero(again)}


def test_near_duplicates_are_found() -> None:
    random = np.random.default_rng(0)
    words = [f"word{n}" for n in range(400)]
    texts = [" ".join(random.choice(words, 12)) for _ in range(300)]
    texts += [text + " now" for text in texts]
    dropped = near_duplicates([identifier(text) for text in texts], texts, 0.8)
    assert dropped.sum() == 300


def test_a_thousand_near_copies_are_quick() -> None:
    texts = [
        f"the very same long boilerplate text about a red ball rolling over a green hill number {n}"
        for n in range(3000)
    ]
    started = time.perf_counter()
    dropped = near_duplicates([identifier(text) for text in texts], texts, 0.8)
    assert dropped.sum() > 2900
    assert time.perf_counter() - started < 10


def test_exact_duplicates_of_texts_without_words() -> None:
    assert exact_duplicates(["b", "a", "c"], ["!!", "!!", "??"]).tolist() == [True, False, False]


def test_common_queries_are_dropped_for_diversity_only_beyond_the_sample() -> None:
    sizes, shapes = ("big", "small", "tiny", "huge"), ("ball", "ring", "cube", "star")
    colors = ("red", "blue", "green", "white", "black")
    texts = [f"a {size} {color} {shape} rolls over the hill" for size in sizes for color in colors for shape in shapes]
    base = CurationSettings(near_duplicate_threshold=None, diversity_threshold=0.7, diversity_sample=40)
    result = curate(raw_table(texts), base)
    dropped = dict(result.funnel)["low_diversity"]
    assert 0 < dropped <= 40
    off = curate(raw_table(texts), base.model_copy(update={"diversity_threshold": None}))
    assert dict(off.funnel)["kept"] == len(texts)
    assert result.self_bleu is not None


# -------------------------------------------------------------------------------------- splits, safety


def test_splits_have_their_shares_and_hold() -> None:
    defaults = CurationSettings()
    ids = [identifier(str(n)) for n in range(20_000)]
    splits = np.array([split_of(query_id, defaults) for query_id in ids])
    for name, share in (("sft", 0.45), ("dpo", 0.35), ("test", 0.20)):
        assert (splits == name).mean() == pytest.approx(share, abs=0.015)
    other = CurationSettings(sft_share=0.2, dpo_share=0.6, test_share=0.2)
    assert all(
        (split_of(query_id, other) == "test") == (split == "test") for query_id, split in zip(ids, splits, strict=True)
    )
    larger = CurationSettings(sft_share=0.4, dpo_share=0.3, test_share=0.3)
    assert all(split_of(query_id, larger) == "test" for query_id in np.array(ids)[splits == "test"])
    all_test = CurationSettings(sft_share=0, dpo_share=0, test_share=1)
    assert {split_of(query_id, all_test) for query_id in ids[:1000]} == {"test"}
    no_test = CurationSettings(sft_share=1, dpo_share=0, test_share=0)
    assert {split_of(query_id, no_test) for query_id in ids[:1000]} == {"sft"}


def test_safety_comes_from_scores_and_from_the_lexicon() -> None:
    texts = ["a red ball", "a bloody corpse", "a quiet field", "a green hill"]
    scores = {"toxicity": [0.9, 0.0, None, 0.1], "threat": [0.0, 0.0, None, 0.5]}
    rows = curate(raw_table(texts, **scores)).rows.to_pylist()
    safety = {row["query"]: row["safety"] for row in rows}
    assert safety == {
        "a red ball": "unsafe",
        "a bloody corpse": "unsafe",
        "a quiet field": "general",
        "a green hill": "general",
    }
    assert all(row["keep"] for row in rows)


# ------------------------------------------------------------------------------------------- the whole


@settings(max_examples=60)
@given(st.lists(messy_texts | _sentences, max_size=10, unique=True), st.randoms())
def test_every_row_is_accounted_for_whatever_the_order(texts: list[str], random: Any) -> None:
    result = curate(raw_table(texts))
    check_accounting(result, len(texts))
    shuffled = list(texts)
    random.shuffle(shuffled)
    assert curate(raw_table(shuffled)).rows.equals(result.rows)


def check_accounting(result: CurationResult, total: int) -> None:
    assert result.rows.schema.equals(QUERIES_SCHEMA)
    assert result.rows.num_rows == total
    assert [reason for reason, _ in result.funnel] == [*DROP_REASONS, "kept"]
    assert sum(count for _, count in result.funnel) == total
    rows = result.rows.to_pylist()
    assert all(row["keep"] == (row["drop_reason"] is None) for row in rows)
    for reason, count in result.funnel:
        assert count == sum((row["drop_reason"] or "kept") == reason for row in rows)


def test_adding_queries_never_moves_one_to_another_split() -> None:
    texts = [f"a {color} ball number {n}" for n, color in enumerate(["red", "blue", "green"] * 10)]
    before = {row["query_id"]: row["split"] for row in curate(raw_table(texts)).rows.to_pylist()}
    after = {
        row["query_id"]: row["split"] for row in curate(raw_table([*texts, "a new dog", "red ball"])).rows.to_pylist()
    }
    assert before.items() <= after.items()


def test_no_rows_null_texts_and_equal_ids() -> None:
    check_accounting(curate(raw_table([])), 0)
    null = pa.table({"query_id": ["a"], "text": pa.array([None], pa.string())})
    assert dict(curate(null).funnel)["empty"] == 1
    with pytest.raises(ValueError, match="occurs twice"):
        curate(pa.table({"query_id": ["a", "a"], "text": ["a cat", "a dog"]}))


def test_the_real_queries() -> None:
    texts = json.loads(shared_data("queries", "vpo_sft_queries.json").read_text(encoding="utf-8"))
    assert len(texts) == len(set(texts)) == 11_640
    started = time.perf_counter()
    result = curate(raw_table(texts))
    seconds = time.perf_counter() - started
    check_accounting(result, 11_640)
    assert seconds < 30
    funnel = dict(result.funnel)
    assert funnel["kept"] > 0.97 * 11_640
    assert 50 <= funnel["not_english"] <= 200
    rows = result.rows.to_pylist()
    assert not any("&#" in row["query"] or "&quot;" in row["query"] for row in rows)
    assert sum(row["params"]["aspect_ratio"] is not None for row in rows) > 1100
    assert sum(row["params"]["motion"] is not None for row in rows) > 750
    assert 0.02 < sum(row["safety"] == "unsafe" for row in rows) / len(rows) < 0.10
