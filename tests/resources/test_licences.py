"""Licences together: what a dataset and a model made from several sources may be published under."""

import pytest

from resources.licences import VIDPROM, Licence, PublishingSettings, SourceLicence, of_dataset, of_model, source_licence

APACHE, MIT, BY, SA = (Licence(id=name) for name in ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0"))
LLAMA = Licence(id="llama3", name="Llama 3", url="https://llama.example/license")


@pytest.mark.parametrize(
    ("sources", "together", "non_commercial"),
    [
        ([BY], "cc-by-4.0", False),
        ([BY, BY], "cc-by-4.0", False),
        ([MIT, BY], "cc-by-4.0", False),
        ([VIDPROM, MIT], "cc-by-nc-4.0", True),
        ([VIDPROM, SA], "other", True),
        ([BY, SA], "other", False),
        ([APACHE, MIT], "other", False),
    ],
)
def test_a_dataset_is_under_all_of_its_sources_licences(
    sources: list[Licence], together: str, non_commercial: bool
) -> None:
    licence = of_dataset(sources)
    assert (licence.id, licence.non_commercial) == (together, non_commercial)
    if together == "other":
        assert all(source.shown in licence.name for source in sources)


@pytest.mark.parametrize(
    ("base", "sources", "together", "non_commercial"),
    [
        (APACHE, [MIT], "apache-2.0", False),
        (APACHE, [BY], "apache-2.0", False),
        (APACHE, [VIDPROM, BY], "cc-by-nc-4.0", True),
        (LLAMA, [BY], "llama3", False),
        (LLAMA, [VIDPROM], "other", True),
        (Licence(id="cc-by-nc-4.0"), [MIT], "cc-by-nc-4.0", True),
        (Licence(id="openrail", commercial=False), [MIT], "openrail", True),
    ],
)
def test_a_model_is_under_its_bases_licence_unless_a_source_forbids_commerce(
    base: Licence, sources: list[Licence], together: str, non_commercial: bool
) -> None:
    licence = of_model(base, sources)
    assert (licence.id, licence.non_commercial) == (together, non_commercial)


def test_sources_are_licensed_by_name_by_pattern_or_known() -> None:
    settings = PublishingSettings(
        sources={"*.csv": SourceLicence(id="cc-by-4.0"), "a.csv": SourceLicence(id="cc0-1.0")}
    )
    assert source_licence("a.csv", None, settings) == SourceLicence(id="cc0-1.0")
    assert source_licence("b.csv", None, settings) == SourceLicence(id="cc-by-4.0")
    assert source_licence("b.txt", None, settings) is None
    assert source_licence("part.parquet", "/cache/datasets--WenhaoWang--VidProM/part.parquet", settings) == VIDPROM
    assert source_licence("VidProM_unique.csv", None, PublishingSettings()) == VIDPROM
