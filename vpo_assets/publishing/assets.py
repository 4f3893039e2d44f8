"""The published folders as assets: made only when somebody asks for them, never by a run of everything.

Belongs here: the two assets of a target, and telling them from the others. Does not belong here: writing a folder
(folders.py) or pushing one, which no asset does.
"""

from collections.abc import Callable
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    Config,
    DataVersion,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    asset,
)
from pydantic import Field

from vpo_assets.evaluation_tables import best_checkpoint, evaluation_rows
from vpo_assets.platform import Platform
from vpo_assets.publishing.folders import Published, publish_dataset, publish_model
from vpo_assets.report.tables import markdown_table
from vpo_assets.table_assets import OWNERS

ON_REQUEST = "vpo/on_request"
"""The tag of assets that a run of everything leaves out."""

Publish = Callable[[Platform, str, str], Published]


class PublishOptions(Config):
    """What the Launchpad offers: which checkpoint is published."""

    checkpoint: str | None = Field(default=None, description="a checkpoint's id; none: the best one of the evaluation")


def publishing_assets(target: str) -> tuple[AssetsDefinition, ...]:
    """The model folder and the dataset folder of a target that is evaluated."""
    return (
        _folder_asset(
            target,
            "published_model",
            publish_model,
            "The best checkpoint as a folder that is ready for the hub: weights, template, settings, card, licences.",
        ),
        _folder_asset(
            target,
            "published_dataset",
            publish_dataset,
            "What the best checkpoint learned from, as a folder that is ready for the hub: rows, card, licences.",
        ),
    )


def _folder_asset(target: str, name: str, publish: Publish, description: str) -> AssetsDefinition:
    @asset(
        name=name,
        key_prefix=[target],
        deps=[[target, "dpo_checkpoint"], [target, "evaluation"]],
        description=description,
        group_name=target,
        kinds={"huggingface"},
        owners=OWNERS,
        code_version="1",
        tags={ON_REQUEST: "true"},
    )
    def materialize(
        context: AssetExecutionContext, config: PublishOptions, platform: ResourceParam[Platform]
    ) -> MaterializeResult[Any]:
        checkpoint_id = config.checkpoint or best_checkpoint(evaluation_rows(platform, target))[0]
        published = publish(platform, target, checkpoint_id)
        context.log.info(f"{checkpoint_id}: {published.folder}")
        files = published.files
        metadata: dict[str, Any] = {
            "checkpoint": checkpoint_id,
            "dagster/uri": str(published.folder),
            "licence": published.licence.shown,
            "bytes": sum(files.values()),
            "files": MetadataValue.md(markdown_table([{"file": name, "bytes": size} for name, size in files.items()])),
            "card": MetadataValue.md(published.card.partition("\n---\n")[2]),
        }
        return MaterializeResult(metadata=metadata, data_version=DataVersion(published.content))

    return materialize
