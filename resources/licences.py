"""Licences: of query sources, of base models, and of what is made from them.

Belongs here: the section `publishing` of a profile, the sources that are recognised, and what a licence means for what
is published. Does not belong here: finding out which sources a checkpoint learned from, or writing cards
(vpo_assets/publishing).

Nothing is guessed: what is neither set nor recognised has no licence, and is not published.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from resources.backend_settings import Section, WebAddress

PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense"})
"""Licences that let what is made from a work be put under another licence."""
OTHER = "other"
PATTERN = r"^[a-z0-9][a-z0-9.+-]*$"


class Licence(Section):
    """One licence. `id` is what the hub calls it: apache-2.0, cc-by-4.0, llama3; `other` needs a name."""

    id: str = Field(pattern=PATTERN, max_length=60, description="as the hub spells it; `other` with a name")
    name: Annotated[str, AfterValidator(str.strip)] = Field("", max_length=200, description="as people call it")
    url: WebAddress | None = Field(None, description="where its text stands")
    commercial: bool | None = Field(
        None, description="whether commercial use is allowed; none: not if -nc is in the id"
    )

    @model_validator(mode="after")
    def _other_has_a_name(self) -> "Licence":
        if self.id == OTHER and not self.name:
            raise ValueError("a licence with the id `other` needs a name")
        return self

    @property
    def non_commercial(self) -> bool:
        """Whether commercial use is forbidden."""
        return "-nc" in self.id if self.commercial is None else not self.commercial

    @property
    def shown(self) -> str:
        """The name for people."""
        return self.name or self.id


class SourceLicence(Licence):
    """The licence of a file of queries, and where it comes from."""

    title: str = Field("", max_length=200, description="what the source is called; none: its file's name")
    home: WebAddress | None = Field(None, description="where the source can be had")


class PublishingSettings(Section):
    """What a published model or dataset says about its licences. See docs/publishing.md."""

    base_model: Licence | None = Field(
        None, description="of the model that SFT starts from; none: as the README in the model's folder says"
    )
    sources: dict[str, SourceLicence] = Field(
        {}, description="of query files by their names, which may be patterns: {my_queries.csv: {id: cc-by-4.0}}"
    )


APACHE = Licence(id="apache-2.0", name="Apache License 2.0", url="https://www.apache.org/licenses/LICENSE-2.0")
EMBEDDED_MODEL = APACHE
"""SmolLM2-135M-Instruct."""
EMBEDDED_MODEL_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUNDLED_QUERIES = SourceLicence(**APACHE.model_dump(), title="queries of the shapes world, bundled with the platform")
VIDPROM = SourceLicence(
    id="cc-by-nc-4.0",
    name="Creative Commons Attribution-NonCommercial 4.0",
    url="https://creativecommons.org/licenses/by-nc/4.0/",
    title="VidProM",
    home="https://huggingface.co/datasets/WenhaoWang/VidProM",
)


def source_licence(name: str, path: str | None, settings: PublishingSettings) -> SourceLicence | None:
    """The licence of a query file: as set for its name, or for VidProM its own; else None."""
    if name in settings.sources:
        return settings.sources[name]
    for pattern, licence in settings.sources.items():
        if fnmatchcase(name, pattern):
            return licence
    return VIDPROM if "vidprom" in f"{name} {path or ''}".lower() else None


def of_dataset(sources: Sequence[Licence]) -> Licence:
    """The licence of rows from all these sources together."""
    return _together(sources)


def of_model(base: Licence, sources: Sequence[Licence]) -> Licence:
    """The licence of a model trained from a base on queries of these sources. Permissive ones leave it to the base."""
    binding = [licence for licence in sources if licence.id not in PERMISSIVE]
    if base.id in PERMISSIVE and any(licence.non_commercial for licence in binding):
        return _together([licence for licence in binding if licence.non_commercial])
    if any(licence.non_commercial for licence in binding):
        return _together([base, *binding])
    return base


def _together(licences: Sequence[Licence]) -> Licence:
    """One licence if all agree; a lone restrictive one among permissive ones; else `other`, naming them all."""
    different = {licence.id if licence.id != OTHER else licence.name: licence for licence in licences}
    binding = {key: licence for key, licence in different.items() if licence.id not in PERMISSIVE}
    chosen = list((binding or different).values())
    if len(chosen) == 1:
        return Licence(**chosen[0].model_dump(include=set(Licence.model_fields)))
    return Licence(
        id=OTHER,
        name=" and ".join(sorted(licence.shown for licence in chosen))[:200],
        commercial=not any(licence.non_commercial for licence in chosen),
    )
