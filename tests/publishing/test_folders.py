"""The published folders: they load by themselves, and their cards say where everything comes from."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from resources.licences import PublishingSettings
from resources.prompt_optimizer import Ask, OptimizedPrompt, PromptOptimizer, RefusedOutput
from storage.tables import SFT_DATASET
from tests.assets.conftest import World
from tests.publishing.conftest import best, front_matter
from vpo_assets.evaluation_tables import NothingEvaluated
from vpo_assets.publishing.folders import publish_dataset, publish_model
from vpo_assets.publishing.lineage import NoLicence, lineage_of

Make = Callable[..., World]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "1")


def test_the_model_loads_and_its_card_names_sources_recipe_and_figures(world: Make) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    here = world()
    published = publish_model(here.platform, "shapes", best(here))
    assert published.folder == here.platform.home / "published" / "shapes" / "model"
    model = AutoModelForCausalLM.from_pretrained(published.folder)
    tokenizer = AutoTokenizer.from_pretrained(published.folder)
    assert tokenizer.chat_template
    assert model.generation_config.max_new_tokens == 72
    assert (model.generation_config.temperature, model.generation_config.do_sample) == (0.7, True)
    assert not [name for name in published.files if name.endswith((".bin", ".py")) or name == "manifest.json"]

    optimizer = PromptOptimizer.from_folder(published.folder)
    assert optimizer.settings.name == best(here)
    (answer,) = optimizer.answer([Ask("a red ball")])
    assert isinstance(answer, OptimizedPrompt | RefusedOutput)

    card = published.card
    head = front_matter(card)
    assert (head["license"], head["library_name"]) == ("mit", "transformers")
    lineage = lineage_of(here.platform, best(here))
    for manifest in lineage.line:
        assert manifest.id in card
        assert f'"{manifest.id}": {{' in card  # its recipe
        assert manifest.training_file is not None and manifest.training_file.sha256[:16] in card
    assert [manifest.stage for manifest in lineage.line] == ["dpo", "sft"]
    (score,) = here.rows(
        "SELECT value, low, high FROM \"lake\".shapes.evaluation WHERE metric = 'score' AND method = 'vpo' "
        "AND section = 'video_level'"
    )
    assert f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})" in card
    assert '"template"' in card and '"learning_rate"' in card
    assert str(here.home) not in card
    again = publish_model(here.platform, "shapes", best(here))
    assert again.card == card
    assert again.content == published.content
    assert [path.name for path in published.folder.parent.iterdir()] == ["model"]


def test_what_others_wrote_is_shown_as_text(world: Make) -> None:
    here = world()
    card = publish_model(here.platform, "shapes", best(here)).card
    assert "<b>" not in card
    assert "Our &#91;wishes&#93; &#124; of &#60;b&#62;2026&#60;/b&#62;" in card
    assert "(https://e.org/a%29b)" in card


def test_the_cards_own_examples_run(world: Make, tmp_path: Path) -> None:
    here = world()
    published = publish_model(here.platform, "shapes", best(here))
    blocks = re.findall(r"```python\n(.*?)```", published.card, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        values: dict[str, object] = {}
        exec(block.replace("this folder", str(published.folder)), values)
        assert isinstance(values["prompt"], str)
    rows = publish_dataset(here.platform, "shapes", best(here))
    (block,) = re.findall(r"```python\n(.*?)```", rows.card, re.DOTALL)
    exec(block.replace("this folder", str(rows.folder)), values)


def test_the_dataset_loads_with_the_rows_that_the_checkpoint_saw(world: Make, tmp_path: Path) -> None:
    from datasets import load_dataset

    here = world()
    published = publish_dataset(here.platform, "shapes", best(here))
    assert set(published.files) == {"README.md", "sft/train.parquet", "preference_pairs/train.parquet"}
    sft = load_dataset(str(published.folder), "sft", split="train", cache_dir=str(tmp_path / "cache"))
    pairs = load_dataset(str(published.folder), "preference_pairs", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(sft) == here.platform.lake.count(SFT_DATASET) > 0
    assert sft.column_names == ["query_id", "query", "source", "messages", "origin", "prompt_id"]
    assert sft[0]["query"] in sft[0]["messages"][-2]["content"]
    assert set(sft["source"]) == {"queries.jsonl"}
    assert len(pairs) > 0
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    card = published.card
    head = front_matter(card)
    assert head["license"] == "cc-by-4.0"
    assert [configuration["config_name"] for configuration in head["configs"]] == ["sft", "preference_pairs"]
    for name in (*sft.column_names, *pairs.column_names):
        assert f"| {name} |" in card
    assert "Left out" not in card


def test_rows_of_queries_that_were_removed_are_not_published(world: Make) -> None:
    here = world()
    checkpoint_id = best(here)
    before = lineage_of(here.platform, checkpoint_id)
    file = here.home / "queries.jsonl"
    raw = here.rows('SELECT query_id, text FROM "lake".raw_prompts')
    (query_id,) = before.parts[0].rows["query_id"].to_pylist()[:1]
    texts = {row["query_id"]: row["text"] for row in raw}
    file.write_text("".join(json.dumps({"text": text}) + "\n" for key, text in texts.items() if key != query_id))
    here.materialize("raw_prompts")
    after = lineage_of(here.platform, checkpoint_id)
    assert after.parts[0].left_out == 1
    assert query_id not in after.parts[0].rows["query_id"].to_pylist()
    assert "Left out, because their queries were taken down or removed since: 1 of sft." in (
        publish_dataset(here.platform, "shapes", checkpoint_id).card
    )


def test_an_sft_checkpoint_has_no_pairs(world: Make) -> None:
    here = world()
    (sft,) = here.ids("checkpoints WHERE stage = 'sft'", "checkpoint_id")
    published = publish_dataset(here.platform, "shapes", sft)
    assert set(published.files) == {"README.md", "sft/train.parquet"}
    assert "this model is *SFT*" in publish_model(here.platform, "shapes", sft).card


def test_without_figures_there_is_no_card(world: Make) -> None:
    here = world()
    with here.platform.lake.write({"text": "test"}) as transaction:
        transaction.execute("UPDATE lake.shapes.evaluation SET checkpoint_id = 'dpo-another'")
    (sft,) = here.ids("checkpoints WHERE stage = 'sft'", "checkpoint_id")
    with pytest.raises(NothingEvaluated, match="is not in the evaluation of target shapes"):
        publish_model(here.platform, "shapes", sft)
    with here.platform.lake.write({"text": "test"}) as transaction:
        transaction.execute("DELETE FROM lake.shapes.evaluation")
    with pytest.raises(NothingEvaluated, match="target shapes has no evaluation yet"):
        publish_model(here.platform, "shapes", sft)
    assert not (here.platform.home / "published").exists()


# ---- licences --------------------------------------------------------------------------------------------------------


def test_a_source_without_a_licence_is_refused_by_the_setting_that_is_missing(world: Make) -> None:
    here = world(publishing={"base_model": {"id": "mit"}})
    for publish in (publish_model, publish_dataset):
        with pytest.raises(NoLicence) as caught:
            publish(here.platform, "shapes", best(here))
        assert re.fullmatch(
            r"no licence is known for the queries of queries\.jsonl \(\d+ rows\): set publishing\.sources in the "
            r'profile, such as {"queries\.jsonl": {id: cc-by-4\.0, url: \.\.\.}}',
            str(caught.value),
        )
    assert not (here.platform.home / "published").exists()


def test_a_model_without_a_licence_is_refused_and_one_that_declares_it_is_not(world: Make, tmp_path: Path) -> None:
    sources = {"sources": {"*.jsonl": {"id": "cc0-1.0"}}}
    here = world(publishing=sources)
    with pytest.raises(
        NoLicence, match=r"the licence of the base model .* is not known, .* set publishing\.base_model"
    ):
        publish_model(here.platform, "shapes", best(here))

    base = tmp_path / "my-base"
    base.mkdir()
    platform = here.platform
    here.change(language_model={"backend": "transformers", "model": str(base)})
    vars(here.platform)["base_model_name"] = vars(platform)["base_model_name"] = "fake-base 1"
    for readme, declared in (
        ("# no YAML", None),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: ': x\n---\n", None),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: llama3\n---\n# Base", "llama3"),
        ("---\nlicense: other\nlicense_name: mine\nlicense_link: https://e.org/l\n---\n", "other"),
    ):
        (base / "README.md").write_text(readme)
        if declared is None:
            with pytest.raises(NoLicence, match="my-base"):
                publish_model(here.platform, "shapes", best(here))
        else:
            head = front_matter(publish_model(here.platform, "shapes", best(here)).card)
            assert head["license"] == declared
            assert head.get("license_name") == ("mine" if declared == "other" else None)


def test_a_source_for_non_commercial_use_marks_model_and_dataset(world: Make) -> None:
    here = world()
    with here.platform.lake.write({"text": "test"}) as transaction:
        transaction.execute("UPDATE lake.raw_prompts SET source = 'VidProM_unique.csv'")
    for publish in (publish_model, publish_dataset):
        published = publish(here.platform, "shapes", best(here))
        head = front_matter(published.card)
        assert published.licence.non_commercial
        assert head["license"] == "cc-by-nc-4.0"
        assert "non-commercial" in head["tags"]
        assert "**For non-commercial use only**" in published.card
        assert "[VidProM](https://huggingface.co/datasets/WenhaoWang/VidProM)" in published.card


def test_settings_of_licences_are_checked() -> None:
    for wrong in (
        {"base_model": {"id": "CC BY"}},
        {"base_model": {"id": "other"}},
        {"sources": {"a": {"id": "mit", "url": "x"}}},
    ):
        with pytest.raises(ValueError):
            PublishingSettings.model_validate(wrong)
