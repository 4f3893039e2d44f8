"""What is published of a checkpoint: the rows it learned from, where they come from, and under which licences.

Belongs here: reading lineage from manifests and the lake as of the snapshots that the checkpoint was trained on, and
refusing what has no licence. Does not belong here: the words of a card (cards.py) or files (folders.py).

Rows whose query is not in the lake any more, because it was taken down or removed, are left out.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from yaml import YAMLError

from resources.licences import (
    BUNDLED_QUERIES,
    EMBEDDED_MODEL,
    EMBEDDED_MODEL_HUB_NAME,
    PATTERN,
    Licence,
    SourceLicence,
    source_licence,
)
from resources.models import EMBEDDED_NAME
from storage.checkpoints import CheckpointManifest
from storage.ids import sha256_of
from storage.tables import (
    CANDIDATE_CRITIQUES,
    CANDIDATES,
    DRAFT_CRITIQUES,
    DRAFTS,
    PREFERENCE_PAIRS,
    QUERIES,
    QUERY_FILES,
    RAW_PROMPTS,
    RECIPES,
    SFT_DATASET,
    VIDEO_REWARDS,
    VIDEOS,
    Table,
)
from vpo_assets.platform import BUNDLED_QUERIES as BUNDLED_FILE
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
NAMED = 5  # sources in a message


class NoLicence(ValueError):
    """A source or model whose licence is not known; says which setting to fill in."""


class NotPublishable(ValueError):
    """A checkpoint that cannot be published as it is; says why."""


@dataclass(frozen=True)
class Source:
    """A file of queries: how many published rows come from it, and its licence."""

    name: str
    rows: int
    licence: SourceLicence


@dataclass(frozen=True)
class Base:
    """The model that the first training began with. hub_name: None where it is not known to be on the hub."""

    name: str
    licence: Licence
    hub_name: str | None = None


@dataclass(frozen=True)
class DataPart:
    """A table that the checkpoint learned from, as it is published: its rows with query and source, how many of the
    rows it was trained on are left out, and the recipes of the tables that it was made from."""

    name: str
    table: Table
    snapshot: int
    rows: pa.Table
    left_out: int
    recipes: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Lineage:
    """A checkpoint with everything that is said about it. `line`: the checkpoint, then those it was trained from."""

    checkpoint: CheckpointManifest
    line: tuple[CheckpointManifest, ...]
    base: Base
    parts: tuple[DataPart, ...]
    sources: tuple[Source, ...]

    @property
    def licences(self) -> list[SourceLicence]:
        """Those of the sources."""
        return [source.licence for source in self.sources]


def lineage_of(platform: Platform, checkpoint_id: str) -> Lineage:
    """Everything that is published of a checkpoint.

    Raises BrokenCheckpoint, LakeError for a snapshot that is gone, NotPublishable and NoLicence.
    """
    platform.checkpoints.load(checkpoint_id, verify=False)
    line = tuple(platform.checkpoints.lineage(checkpoint_id))
    trained_on = {manifest.stage: manifest for manifest in reversed(line)}
    if "sft" not in trained_on:
        raise NotPublishable(
            f"checkpoint {checkpoint_id}: the checkpoint {line[-1].base} that it was trained from is not there, so its "
            "lineage cannot be told"
        )
    reader = _Reader(platform)
    parts = tuple(reader.part(trained_on[stage]) for stage in ("sft", "dpo") if stage in trained_on)
    if not any(part.rows.num_rows for part in parts):
        raise NotPublishable(f"checkpoint {checkpoint_id}: none of the queries that it learned from is there any more")
    # The base first: of the two it is the one that nobody can publish without.
    base = _base(platform, trained_on["sft"].base)
    return Lineage(line[0], line, base, parts, tuple(reader.sources(parts)))


class _Reader:
    """Reads rows as of a checkpoint's snapshot, and their sources as they are now."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def part(self, manifest: CheckpointManifest) -> DataPart:
        """The rows that a checkpoint of one stage was trained on."""
        if len(manifest.inputs) != 1:
            raise NotPublishable(f"checkpoint {manifest.id} does not say which table it was trained on")
        ((_, snapshot),) = manifest.inputs.items()
        made_from: tuple[Table, ...]
        if manifest.stage == "sft":
            name, table, made_from = "sft", SFT_DATASET, (DRAFTS, DRAFT_CRITIQUES)
        else:
            target = manifest.target or ""
            name, table = "preference_pairs", PREFERENCE_PAIRS.at(target)
            settings = self._platform.profile.targets.get(target)
            source = (settings.feedback_from if settings else None) or target
            made_from = tuple(t.at(source) for t in (CANDIDATES, CANDIDATE_CRITIQUES, VIDEOS, VIDEO_REWARDS))
        rows = self._platform.lake.read(table, version=snapshot).select(list(table.content_columns)).sort_by(table.key)
        queries = self._queries(snapshot)
        kept, texts, sources = [], [], []
        for index, query_id in enumerate(rows["query_id"].to_pylist()):
            source_of = self._raw.get(query_id)
            if source_of is not None and query_id in queries:
                kept.append(index)
                texts.append(queries[query_id])
                sources.append(source_of[0])
        published = rows.take(kept)
        published = published.append_column("query", pa.array(texts, pa.string()))
        published = published.append_column("source", pa.array(sources, pa.string()))
        recipes = {made.label: list(self._recipes(made, snapshot)) for made in made_from}
        return DataPart(name, table, snapshot, published, rows.num_rows - len(kept), recipes)

    def sources(self, parts: Sequence[DataPart]) -> Iterator[Source]:
        """The files that published rows come from, the largest first. Raises NoLicence."""
        counts: Counter[tuple[str, str]] = Counter()
        for part in parts:
            counts.update(self._raw[query_id] for query_id in part.rows["query_id"].to_pylist())
        found: dict[tuple[str, SourceLicence], int] = {}
        without: list[str] = []
        for (name, sha256), rows in counts.most_common():
            licence = self._licence(name, sha256)
            if licence is None:
                without.append(f"{one_line(name, 100)} ({rows:,} rows)")
            else:
                found[name, licence] = found.get((name, licence), 0) + rows
        if without:
            more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
            raise NoLicence(
                f"no licence is known for the queries of {', '.join(without[:NAMED])}{more}: set "
                f"publishing.sources in the profile, such as {{{one_line(json.dumps(_name_of(without[0])), 100)}: "
                "{id: cc-by-4.0, url: ...}}"
            )
        for (name, licence), rows in found.items():
            yield Source(name, rows, licence)

    def _licence(self, name: str, sha256: str) -> SourceLicence | None:
        paths = self._paths.get(sha256, [])
        if sha256 == self._bundled or str(BUNDLED_FILE.resolve()) in paths:
            return BUNDLED_QUERIES
        return source_licence(name, " ".join(paths), self._platform.profile.publishing)

    @cached_property
    def _bundled(self) -> str:
        return sha256_of(BUNDLED_FILE)

    @cached_property
    def _raw(self) -> dict[str, tuple[str, str]]:
        """{query id: name and hash of the file it came from}, of the queries that are there now."""
        rows = self._platform.lake.read(RAW_PROMPTS, columns=["query_id", "source", "source_sha256"])
        return {
            query_id: (source or "", sha256 or "")
            for query_id, source, sha256 in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        }

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        """{hash of a query file: where files of that content were taken from}"""
        found: dict[str, list[str]] = {}
        for row in self._platform.lake.read(QUERY_FILES, columns=["sha256", "path", "kind"]).to_pylist():
            if row["kind"] != "take_down" and row["sha256"]:
                found.setdefault(row["sha256"], []).append(row["path"])
        return found

    def _queries(self, snapshot: int) -> dict[str, str]:
        rows = self._platform.lake.read(QUERIES, version=snapshot, columns=["query_id", "query"])
        return dict(zip(rows["query_id"].to_pylist(), rows["query"].to_pylist(), strict=True))

    def _recipes(self, table: Table, snapshot: int) -> Iterator[Mapping[str, Any]]:
        """What a table's rows were made with, as of a snapshot."""
        used = self._platform.lake.read(table, version=snapshot, columns=["recipe"])["recipe"].unique().to_pylist()
        for recipe in sorted(used):
            known = self._platform.lake.read(RECIPES, where="recipe = ?", parameters=[recipe])
            for parts in known["parts"].to_pylist():
                yield json.loads(parts)


def _name_of(shown: str) -> str:
    return shown.rpartition(" (")[0]


# ---- the base model --------------------------------------------------------------------------------------------------


def _base(platform: Platform, name: str) -> Base:
    """The base model by the name that manifests give it. Raises NoLicence."""
    chosen = platform.profile.publishing.base_model
    if name == EMBEDDED_NAME:
        return Base(name, EMBEDDED_MODEL, EMBEDDED_MODEL_HUB_NAME)
    model = platform.profile.trained_model.model if name == platform.base_model_name else name
    folder = Path(model)
    shown = folder.name if folder.is_absolute() or folder.is_dir() else model.partition("@")[0]
    hub_name = shown if HUB_NAME.fullmatch(shown) and not folder.is_dir() else None
    licence = chosen or _declared(_readme(folder, hub_name))
    if licence is None:
        raise NoLicence(
            f"the licence of the base model {one_line(shown, 100)} is not known, for no README.md in its folder names "
            "one: set publishing.base_model in the profile, such as {id: apache-2.0, url: ...}"
        )
    return Base(shown, licence, hub_name)


def _readme(folder: Path, hub_name: str | None) -> Path | None:
    """The card of a model in a folder, or of one in the hub's cache."""
    if folder.is_dir():
        return folder / "README.md"
    if hub_name is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_name, "README.md")
    return Path(found) if isinstance(found, str) else None


def _declared(readme: Path | None) -> Licence | None:
    """The licence that a model's card declares, if it does so in a way that can be repeated."""
    if readme is None or not readme.is_file():
        return None
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
        declared = str(data.get("license") or "").lower()
        link = data.get("license_link")
        return Licence(
            id=declared if re.fullmatch(PATTERN, declared) else "",
            name=str(data.get("license_name") or ""),
            url=link if isinstance(link, str) and link.startswith("https://") else None,
        )
    except (ValueError, YAMLError):  # no YAML, no licence, or one of another form: then it is for the user to say
        return None
