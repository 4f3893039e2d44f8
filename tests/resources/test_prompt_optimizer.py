"""The optimizer that every way of asking shares: what it asks the model, what it lets pass, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ml import templates
from resources.backend_settings import SamplingSettings
from resources.language_model import Reply, Sampling
from resources.optimizer_settings import (
    OPTIMIZER_FILE,
    NoOptimizer,
    OptimizerSettings,
    SafetySettings,
    read_optimizer,
)
from resources.outcome import Failed, Skipped, Unavailable
from resources.prompt_optimizer import (
    Ask,
    OptimizedPrompt,
    PromptOptimizer,
    RefusedOutput,
    UnknownCheckpoint,
    UnusableQuery,
)
from storage.checkpoints import CheckpointManifest, CheckpointStore
from tests.resources.scripted_model import GOOD, LOST, REFUSAL, UNSAFE, Says, ScriptedModel
from tests.tiny_model import save_tiny_model

QUERY = "a red ball heads west"


def settings(**changes: object) -> OptimizerSettings:
    values = {"name": "dpo-1", "template": templates.load("optimize").source, **changes}
    return OptimizerSettings.model_validate(values)


def optimizer(says: Says | None = None, **changes: object) -> tuple[PromptOptimizer, ScriptedModel]:
    model = ScriptedModel(says) if says else ScriptedModel()
    return PromptOptimizer(model, settings(**changes)), model


def test_many_queries_are_one_call_and_come_back_in_order() -> None:
    asked, model = optimizer(lambda query, before: f"Optimized Prompt: {GOOD}\n It is about {query}.")
    prompts = asked([f"ball number {i} -ar 16:9 &amp; more" for i in range(20)])
    assert prompts == [f"{GOOD} It is about ball number {i} & more." for i in range(20)]
    assert [len(call) for call in model.calls] == [20]
    assert asked(QUERY) == f"{GOOD} It is about {QUERY}."


def test_the_same_query_is_drawn_by_the_same_seed_and_another_by_another() -> None:
    asked, model = optimizer()
    asked([QUERY, "a cube", QUERY])
    first, second, third = (seed for _, _, seed in model.calls[0])
    assert first == third != second
    other, model_b = optimizer(seed=1)
    other([QUERY])
    assert model_b.calls[0][0][2] != first
    asked.answer([Ask(QUERY, seed=5), Ask(QUERY, seed=5, choice=1), Ask(QUERY, seed=6)])
    assert len({seed for _, _, seed in model.calls[1]} | {first}) == 4


def test_an_unsafe_output_is_drawn_again_by_another_seed_and_only_that_one() -> None:
    asked, model = optimizer(lambda query, before: UNSAFE if query == QUERY and before < 2 else GOOD)
    answers = asked.answer([Ask("a cube"), Ask(QUERY)])
    assert answers == [OptimizedPrompt(GOOD, True, 1, 7, 5), OptimizedPrompt(GOOD, True, 3, 21, 15)]
    assert [[query for query, _, _ in call] for call in model.calls] == [["a cube", QUERY], [QUERY], [QUERY]]
    assert len({seed for call in model.calls for query, _, seed in call if query == QUERY}) == 3


@pytest.mark.parametrize(
    ("output", "verdict", "reason"),
    [(UNSAFE, "unsafe", "keeps unsafe content (blood, naked)"), (REFUSAL, "refusal", "refuses"), ("", "refusal", "")],
)
def test_what_fails_every_time_is_refused_with_the_judges_reason(output: str, verdict: str, reason: str) -> None:
    asked, model = optimizer(lambda query, before: output, safety=SafetySettings(retries=2))
    (answer,) = asked.answer([Ask(QUERY)])
    assert isinstance(answer, RefusedOutput)
    assert (answer.verdict, answer.attempts, answer.usage) == (verdict, 3, (21, 15))
    assert reason in answer.reason
    assert str(answer).startswith(f"each of 3 outputs for '{QUERY}' was refused as {verdict}: ")
    assert len(model.calls) == 3
    with pytest.raises(RefusedOutput):
        asked(QUERY)


def test_lost_details_are_refused_only_where_that_is_wanted() -> None:
    lenient, _ = optimizer(lambda query, before: LOST)
    assert lenient(QUERY) == LOST
    strict, _ = optimizer(lambda query, before: LOST, safety=SafetySettings(retries=0, refuse_imprecise=True))
    with pytest.raises(RefusedOutput, match=r"the output for .* was refused as imprecise: does not say that the color"):
        strict(QUERY)


def test_what_is_drawn_without_chance_is_not_drawn_again() -> None:
    asked, model = optimizer(lambda query, before: UNSAFE)
    (answer,) = asked.answer([Ask(QUERY, Sampling(temperature=0.0))])
    assert isinstance(answer, RefusedOutput) and answer.attempts == 1
    assert len(model.calls) == 1


def test_asks_of_other_sampling_share_no_call() -> None:
    asked, model = optimizer()
    warm, own = Sampling(1.5, 0.5, 10), SamplingSettings().sampling()
    asked.answer([Ask("a"), Ask("b", warm), Ask("c")])
    assert [[(query, sampling) for query, sampling, _ in call] for call in model.calls] == [
        [("a", own), ("c", own)],
        [("b", warm)],
    ]


@pytest.mark.parametrize("bad", ["", "  \n", "-ar 16:9", "\x00", "&nbsp;", "a \ud800 ball"])
def test_a_query_with_nothing_in_it_is_told_and_takes_nothing_from_the_others(bad: str) -> None:
    asked, _ = optimizer()
    first, second, third = asked.answer([Ask("a cube"), Ask(bad), Ask("a ball")])
    assert isinstance(first, OptimizedPrompt) and isinstance(third, OptimizedPrompt)
    assert isinstance(second, UnusableQuery)
    assert str(second).isprintable()
    with pytest.raises(UnusableQuery) as caught:
        asked(["a cube", bad])
    assert caught.value.__notes__ == ["query 2 of 2"]
    assert asked([]) == []


def test_what_the_model_cannot_take_is_the_querys_fault_and_what_it_cannot_do_is_not() -> None:
    asked, _ = optimizer(lambda query, before: Failed("too long") if query == "a cube" else GOOD)
    assert isinstance(asked.answer([Ask("a cube"), Ask(QUERY)])[0], UnusableQuery)
    gone, _ = optimizer(lambda query, before: Skipped("the server is gone"))
    with pytest.raises(Unavailable, match="the server is gone"):
        gone(QUERY)


def test_an_output_that_was_cut_off_says_so() -> None:
    asked, _ = optimizer(lambda query, before: Reply(GOOD, whole=False))
    (answer,) = asked.answer([Ask(QUERY)])
    assert isinstance(answer, OptimizedPrompt) and not answer.whole


# ---- where it comes from ---------------------------------------------------------------------------------------------


def test_importing_it_loads_neither_dagster_nor_a_model_library() -> None:
    script = (
        "import sys, resources.prompt_optimizer; "
        "heavy = ('dagster', 'torch', 'transformers', 'vllm', 'diffusers', 'vpo_assets'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_folder_is_all_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_PROFILE", "no-such-profile")  # nothing of a profile is read
    save_tiny_model(tmp_path)
    chosen = settings(dtype="float32", sampling={"max_new_tokens": 8}, seed=3)
    (tmp_path / OPTIMIZER_FILE).write_text(chosen.model_dump_json())
    one = PromptOptimizer.from_folder(tmp_path)
    assert one.settings == chosen
    prompts = one.answer([Ask(QUERY), Ask("a cube")])
    assert all(isinstance(answer, OptimizedPrompt | RefusedOutput) for answer in prompts)
    assert one.answer([Ask("a cube")])[0] == prompts[1] or isinstance(prompts[1], RefusedOutput)
    one.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no vpo_optimizer.json"),
        ("{", "file: Invalid JSON"),
        ('{"name": "x"}', "template: Field required"),
        (json.dumps({"name": "x", "template": "no query"}), "does not use query"),
        (json.dumps({"name": "x", "template": "{{ query"}), "is broken"),
        (json.dumps({"name": "x", "template": "{{ query }}", "format": 2}), "format: "),
        (json.dumps({"name": "x", "template": "{{ query }}", "code": "rm"}), "code: Extra inputs"),
        (" " * 1_000_001, "too large"),
    ],
)
def test_a_folder_that_is_no_optimizer_is_told_in_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / OPTIMIZER_FILE).write_text(content)
    with pytest.raises(NoOptimizer) as caught:
        read_optimizer(tmp_path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_template_of_a_folder_reaches_no_python_object(tmp_path: Path) -> None:
    source = "{{ query.__class__.__mro__[1].__subclasses__() }}"
    (tmp_path / OPTIMIZER_FILE).write_text(json.dumps({"name": "x", "template": source}))
    asked = PromptOptimizer(ScriptedModel(), read_optimizer(tmp_path))
    with pytest.raises(templates.TemplateProblem, match="unsafe"):
        asked(QUERY)


def test_a_checkpoint_of_a_home_is_sampled_as_its_targets_evaluation(home: Path) -> None:
    manifest = CheckpointManifest(id="dpo-tiny", stage="dpo", target="shapes", base="none", recipe={})
    store = CheckpointStore(home / "checkpoints")
    store.commit("dpo-tiny", manifest, lambda folder: {"saved": save_tiny_model(folder).name})
    asked = PromptOptimizer.from_checkpoint("dpo-tiny", home=home)
    assert asked.settings.name == "dpo-tiny"
    assert asked.settings.sampling == SamplingSettings(temperature=0.7, top_p=1.0, max_new_tokens=72)
    assert asked.model.identity()["model"] == "dpo-tiny"
    assert PromptOptimizer.from_checkpoint("dpo-tiny", home=home, backend="vllm").model.identity()["backend"] == "vllm"
    with pytest.raises(UnknownCheckpoint, match="is of target 'circles', which the profile lacks; name one of shapes"):
        PromptOptimizer.from_checkpoint("dpo-tiny", home=home, target="circles")


@pytest.mark.parametrize(("checkpoint_id", "said"), [("dpo-none", "there is no checkpoint dpo-none"), ("../x", "name")])
def test_an_unknown_checkpoint_is_told(home: Path, checkpoint_id: str, said: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=said):
        PromptOptimizer.from_checkpoint(checkpoint_id, home=home)
