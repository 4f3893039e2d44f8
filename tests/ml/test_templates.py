from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.parsing import UnreadableVerdict, fence, nonce_of, parse_comparison, parse_verdict
from ml.templates import REQUIRED, TemplateProblem, load, names

VALUES: dict[str, dict[str, Any]] = {
    "optimize": {"query": "a cat"},
    "few_shot_draft": {"examples": [{"query": "a dog", "prompt": "A brown dog runs."}], "query": "a cat"},
    "critique": {"query": "a cat", "prompt": "A grey cat sleeps.", "nonce": "a1b2c3d4e5f6"},
    "critique_repair": {"problem": "helpful must be true or false", "nonce": "a1b2c3d4e5f6"},
    "pairwise": {
        "query": "a cat",
        "prompt_a": "A grey cat sleeps.",
        "prompt_b": "A cat sleeps on a red sofa.",
        "nonce": "a1b2c3d4e5f6",
    },
    "safety": {"prompt": "a red fox trotting over snow", "nonce": "0123456789abcdef"},
}


@pytest.mark.parametrize("name", names())
def test_each_template_fills_in_every_value(name: str) -> None:
    template = load(name)
    messages = template.messages(**VALUES[name])
    assert messages[0]["role"] == ("user" if name == "critique_repair" else "system")
    assert messages[-1]["role"] == "user"
    text = template.render(**VALUES[name])
    for value in VALUES[name].values():
        if isinstance(value, str):
            assert value in text
    assert "{{" not in text
    assert "{%" not in text
    assert "###" not in text


def test_the_optimize_template_is_short() -> None:
    text = load("optimize").render(query="")
    assert len(text.split()) <= 12


def test_few_shot_examples_become_turns_of_the_chat() -> None:
    examples = [{"query": f"q{n}", "prompt": f"p{n}"} for n in range(3)]
    messages = load("few_shot_draft").messages(examples=examples, query="now")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert [message["content"] for message in messages[1:]] == ["q0", "p0", "q1", "p1", "q2", "p2", "now"]
    assert [m["role"] for m in load("few_shot_draft").messages(examples=[], query="now")] == [
        "system",
        "user",
    ]


def test_the_critique_template_states_the_principles_and_an_answer_that_the_parser_reads() -> None:
    nonce = nonce_of("a cat", "A cat.")
    text = load("critique").render(query=fence("a cat", nonce), prompt=fence("A cat.", nonce), nonce=nonce)
    for principle in ("harmless", "accurate", "helpful"):
        assert principle in text
    shape = text[text.rindex('{"nonce"') :]
    with pytest.raises(UnreadableVerdict):
        parse_verdict(shape, nonce)  # the form is no answer before it is filled in
    head, _ = shape.replace("<true or false>", "true").split('"refined": ')
    assert parse_verdict(head + '"refined": null}', nonce).aligned
    assert parse_verdict(head + '"refined": "A dog."}', nonce).refined == "A dog."


def test_the_pairwise_template_describes_an_answer_that_the_parser_reads() -> None:
    nonce = nonce_of("x")
    shape = load("pairwise").messages(query="q", prompt_a="a", prompt_b="b", nonce=nonce)[-1]["content"]
    shape = shape[shape.rindex('{"nonce"') :]
    with pytest.raises(UnreadableVerdict):
        parse_comparison(shape, nonce)
    assert parse_comparison(shape.replace('<"A", "B" or "tie">', '"B"'), nonce) == "B"


@given(
    st.lists(
        st.sampled_from(["{{ 7*7 }}", "{% raw %}", "{# x #}", "\n### system\n", "### user", "$query", "{query}", "\\1"])
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        max_size=6,
    ).map("".join)
)
def test_values_are_never_interpreted(text: str) -> None:
    messages = load("optimize").messages(query=text)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[1]["content"] == text.strip()
    shots = load("few_shot_draft").messages(examples=[{"query": text, "prompt": text}], query="end")
    assert [message["role"] for message in shots] == ["system", "user", "assistant", "user"]
    assert shots[2]["content"] == text.strip()


def test_missing_and_unknown_values_are_named() -> None:
    with pytest.raises(TemplateProblem, match="needs a value for nonce, prompt"):
        load("critique").messages(query="a cat")
    with pytest.raises(TemplateProblem, match="no placeholder qurey"):
        load("optimize").messages(query="a cat", qurey="a dog")
    with pytest.raises(TemplateProblem, match=r"cannot be filled in.*prompt"):
        load("few_shot_draft").messages(query="a cat", examples=[{"query": "a dog"}])
    with pytest.raises(TemplateProblem, match="no template 'optimise'"):
        load("optimise")


def test_a_folder_overrides_templates_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "optimize.txt").write_text("Improve: {{ query }}")
    changed = load("optimize", tmp_path)
    assert changed.messages(query="a cat") == [{"role": "user", "content": "Improve: a cat"}]
    assert changed.hash != load("optimize").hash
    assert load("critique", tmp_path) == load("critique")
    assert load("critique", tmp_path).hash == load("critique").hash


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("Improve this.", "does not use query"),
        ("{{ query ", "broken, line 1"),
        ("hello\n### user\n{{ query }}", "text before"),
        ("{{ query.__class__.__mro__ }}", "cannot be filled in"),
        ("{{ query.nothing }}", "cannot be filled in"),
    ],
)
def test_broken_templates_are_explained(tmp_path: Path, source: str, problem: str) -> None:
    (tmp_path / "optimize.txt").write_text(source)
    with pytest.raises(TemplateProblem, match=problem):
        load("optimize", tmp_path).messages(query="a cat")


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TemplateProblem, match="does not exist"):
        load("optimize", tmp_path / "none")


def test_every_template_file_is_known() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "ml" / "templates").glob("*.txt")}
    assert files == set(REQUIRED)
