"""The cards of a published model and dataset: README.md with the hub's YAML on top.

Belongs here: what a card says, made from lineage and evaluation. Does not belong here: finding any of it out
(lineage.py, figures.py).

Texts of others (file names, titles, recipes) are shown as text: escaped in Markdown, and in JSON behind a fence that
they cannot close. Nothing of when or where a card was written is in it: the same checkpoint has the same card.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from huggingface_hub import DatasetCardData, ModelCardData

from resources.licences import OTHER, Licence, of_dataset, of_model
from resources.optimizer_settings import OptimizerSettings
from storage.checkpoints import CheckpointManifest
from storage.tables import QUERIES
from vpo_assets.publishing.lineage import DataPart, Lineage, Source
from vpo_assets.report.tables import escape_markdown, markdown_table

PAPER = "[VPO](https://arxiv.org/abs/2503.20491)"
HIDDEN_ADDRESS = "(an address)"
EXAMPLE = "ruby pyramid heads west"
_PLACEHOLDER = "\ue000"  # of the private use area: no template holds it
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"']+", re.IGNORECASE)


def model_card(
    lineage: Lineage, settings: OptimizerSettings, figures: str, target: str, video_model: str, reward: str
) -> str:
    """The card of a model folder. figures: Markdown. target, video_model, reward: what it was evaluated with."""
    licence = of_model(lineage.base.licence, lineage.licences)
    data = ModelCardData(
        **_licence_fields(licence),
        base_model=lineage.base.hub_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_tags(licence, "prompt-optimization", "text-to-video"),
    )
    sections = [
        f"# {escape_markdown(lineage.checkpoint.id)}",
        "A prompt optimizer for text-to-video models: it rewrites what a user asks for into a prompt that is harmless, "
        f"says what the user said, and is detailed in the way the video model needs. Trained by the method of {PAPER} "
        f"for the video model {escape_markdown(_plain(video_model))} (target {escape_markdown(target)}).",
        _licence_note(licence),
        "## Use",
        _use(settings),
        "## What it is worth",
        f"{figures}\n\nReward model: {escape_markdown(_plain(reward))}. The figures hold for this video model, this "
        "reward model and queries like those it was tested on.",
        "## Where it comes from",
        f"Base model: {_base(lineage)}.",
        _sources(lineage.sources),
        _line(lineage.line),
        "## Recipe",
        _recipes(lineage),
        "## Limits",
        "- It was trained on queries like those of its sources; others it may rewrite badly.\n"
        "- It can still write what is unsafe, refuse, or lose details. `vpo_optimizer.json` says how often an output "
        "that fails the offline judge is drawn again before it is refused; whoever uses the weights alone has no such "
        "judge. The judge knows unsafe words, not meaning.\n"
        "- The reward model's preferences are in it, with that model's mistakes.",
        "## Licences",
        _licences(lineage, licence),
    ]
    return _card(data.to_yaml(), sections)


def dataset_card(lineage: Lineage) -> str:
    """The card of a dataset folder."""
    licence = of_dataset(lineage.licences)
    configurations = [
        {"config_name": part.name, "data_files": [{"split": "train", "path": f"{part.name}/train.parquet"}]}
        for part in lineage.parts
    ]
    data = DatasetCardData(
        **_licence_fields(licence),
        task_categories=["text-generation"],
        tags=_tags(licence, "prompt-optimization", "text-to-video", "sft", "preference"),
        configs=configurations,
    )
    rows = [{"configuration": part.name, "rows": part.rows.num_rows} for part in lineage.parts]
    sections = [
        f"# What {escape_markdown(lineage.checkpoint.id)} learned from",
        f"Conversations and preference pairs for prompt optimization, made by the method of {PAPER}: queries, "
        "prompts written for them, the judge's corrections, and which of two prompts gave the better video.",
        _licence_note(licence),
        markdown_table(rows),
        '```python\nfrom datasets import load_dataset\n\nrows = load_dataset("this folder", '
        f'"{lineage.parts[-1].name}", split="train")\n```',
        "## Columns",
        *(_schema(part) for part in lineage.parts),
        "## Where it comes from",
        _sources(lineage.sources),
        _left_out(lineage.parts),
        f"Prompts were written by models; the base model was {_base(lineage)}. Whether their makers' terms say "
        "something about what is made with their outputs, look up there.",
        "## Recipe",
        _recipes(lineage),
        "## Limits",
        "- Some queries are unsafe on purpose: the optimizer learns to answer them with harmless prompts. Rejected "
        "prompts may be unsafe, too.\n"
        "- Verdicts and preferences are those of the judge and the reward model named in the recipe.",
        "## Licences",
        _licences(lineage, licence),
    ]
    return _card(data.to_yaml(), sections)


def published_columns(part: DataPart) -> list[tuple[str, str, str]]:
    """Name, type and meaning of the columns of a part, in the order in which they are published."""
    own = {column.name: column.description for column in part.table.columns}
    own["query"] = {column.name: column.description for column in QUERIES.columns}["query"]
    own["source"] = "Name of the file that the query came from."
    names = list(dict.fromkeys([part.table.key, "query_id", "query", "source", *part.table.content_columns]))
    return [(name, str(part.rows.schema.field(name).type), own[name]) for name in names]


# ---- parts of cards --------------------------------------------------------------------------------------------------


def _card(yaml: str, sections: Sequence[str]) -> str:
    return f"---\n{yaml.strip()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _licence_fields(licence: Licence) -> dict[str, Any]:
    fields: dict[str, Any] = {"license": licence.id}
    if licence.id == OTHER:
        fields["license_name"] = licence.name
    if licence.url and licence.id == OTHER:
        fields["license_link"] = licence.url
    return fields


def _tags(licence: Licence, *tags: str) -> list[str]:
    return ["vpo", *tags, *(["non-commercial"] if licence.non_commercial else [])]


def _licence_note(licence: Licence) -> str:
    """For readers who see nothing but the top."""
    return "**For non-commercial use only**; see the licences below." if licence.non_commercial else ""


def _use(settings: OptimizerSettings) -> str:
    """With the judge and retries, and with transformers alone."""
    messages = settings.optimize_template().messages(query=_PLACEHOLDER)
    shown = ",\n".join(f"    {_message(message)}" for message in messages)
    sampling = settings.sampling
    drawn = (
        f"do_sample=True, temperature={sampling.temperature}, top_p={sampling.top_p}"
        if sampling.temperature > 0
        else "do_sample=False"
    )
    return "\n\n".join(
        [
            "With the platform, judged, and drawn again where the judge objects; ready for a diffusers pipeline:",
            _fenced(
                "from resources.prompt_optimizer import PromptOptimizer\n\n"
                'optimizer = PromptOptimizer.from_folder("this folder")\n'
                f"prompt = optimizer({_quoted(EXAMPLE)})  # or a list of queries\n"
                "# pipe(prompt=prompt)",
                "python",
            ),
            "With transformers alone:",
            _fenced(
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                'folder = "this folder"\n'
                "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
                "model = AutoModelForCausalLM.from_pretrained(folder)\n"
                f"query = {_quoted(EXAMPLE)}\n"
                f"messages = [\n{shown},\n]\n"
                "tokens = tokenizer.apply_chat_template(\n"
                '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
                ")\n"
                f"output = model.generate(**tokens, {drawn}, max_new_tokens={sampling.max_new_tokens})\n"
                'prompt = tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)',
                "python",
            ),
        ]
    )


def _message(message: Mapping[str, str]) -> str:
    """A message of the template as Python, with the query where it belongs."""
    before, *after = message["content"].split(_PLACEHOLDER)
    pieces = [_quoted(before)] if before else []
    for piece in after:
        pieces.append("query")
        pieces += [_quoted(piece)] if piece else []
    return f'{{"role": {_quoted(message["role"])}, "content": {" + ".join(pieces) or _quoted("")}}}'


def _quoted(text: str) -> str:
    """Text as a literal of Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _base(lineage: Lineage) -> str:
    base = lineage.base
    link = f"https://huggingface.co/{base.hub_name}" if base.hub_name else None
    return f"{_link(_plain(base.name), link)}, {_licence(base.licence)}"


def _sources(sources: Sequence[Source]) -> str:
    lines = ["| queries of | published rows | licence |", "| --- | ---: | --- |"]
    for source in sources:
        title = source.licence.title
        shown = _link(title or source.name, source.licence.home)
        shown += f" ({escape_markdown(source.name)})" if title else ""
        lines.append(f"| {shown} | {source.rows:,} | {_licence(source.licence)} |")
    return "\n".join(lines)


def _line(line: Sequence[CheckpointManifest]) -> str:
    """The trainings, the first one first, with what they read."""
    rows = []
    for manifest in reversed(line):
        file = manifest.training_file
        for table, snapshot in manifest.inputs.items():
            rows.append(
                {
                    "checkpoint": manifest.id,
                    "stage": manifest.stage,
                    "trained on": table,
                    "snapshot": str(snapshot),
                    "rows": None if file is None else f"{file.rows:,}",
                    "sha256 of the file": None if file is None else file.sha256[:16],
                }
            )
    return markdown_table(rows)


def _recipes(lineage: Lineage) -> str:
    shown: dict[str, Any] = {manifest.id: _public(manifest.recipe) for manifest in reversed(lineage.line)}
    for part in lineage.parts:
        for label, recipes in part.recipes.items():
            shown[label] = [_public(recipe) for recipe in recipes]
    text = json.dumps(shown, indent=1, sort_keys=False, ensure_ascii=True)
    summary = "<summary>Everything that decided the data and the weights</summary>"
    return f"<details>{summary}\n\n{_fenced(text, 'json')}\n\n</details>"


def _schema(part: DataPart) -> str:
    rows = [{"column": name, "type": kind, "meaning": meaning} for name, kind, meaning in published_columns(part)]
    return f"`{part.name}`, {part.rows.num_rows:,} rows (snapshot {part.snapshot}):\n\n{markdown_table(rows)}"


def _left_out(parts: Sequence[DataPart]) -> str:
    left_out = [f"{part.left_out:,} of {part.name}" for part in parts if part.left_out]
    if not left_out:
        return ""
    return f"Left out, because their queries were taken down or removed since: {', '.join(left_out)}."


def _licences(lineage: Lineage, licence: Licence) -> str:
    lines = [f"This is published under {_licence(licence)}.", f"- Base model {_base(lineage)}"]
    lines += [
        f"- Queries: {escape_markdown(source.licence.title or source.name)}, {_licence(source.licence)}"
        for source in lineage.sources
    ]
    if licence.non_commercial:
        lines.append(
            "\nNon-commercial sources are among these, so that nothing here may be put to commercial use without the "
            "leave of those who own them."
        )
    return "\n".join([lines[0], "", *lines[1:]])


def _licence(licence: Licence) -> str:
    return _link(licence.shown, licence.url) + (" (non-commercial)" if licence.non_commercial else "")


def _link(text: str, address: str | None) -> str:
    shown = escape_markdown(text)
    return f"[{shown}]({quote(address, safe='/:~@+,;=.-_')})" if address else shown


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _public(value: Any) -> Any:
    """A recipe without folders and addresses of the machines it was made on."""
    if isinstance(value, Mapping):
        return {str(key): _public(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    return _plain(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    text = _ADDRESS.sub(HIDDEN_ADDRESS, text)
    return re.sub(r"^(?:~|[A-Za-z]:)?[/\\](?:[^/\\\n]*[/\\])*", "", text)
