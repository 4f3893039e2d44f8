"""The viewer's pages as HTML, for the server and for the exported folder alike.

Belongs here: templates, and making everything safe to show: all text is untrusted. Does not belong here: layout
(templates/) and reading the lake.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vpo_assets.report import grids
from vpo_assets.report.data import Estimate
from vpo_assets.report.plain_text import readable
from vpo_assets.viewer.filters import PAGE_ROWS, Filter, PairFilter, QueryFilter
from vpo_assets.viewer.gallery import QueryPage
from vpo_assets.viewer.overview import Overview
from vpo_assets.viewer.pairs import PairPage
from vpo_assets.viewer.results import MIME_TYPES, ShownClip
from vpo_assets.viewer.vote_figures import vote_sentences

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
LONGEST_TEXT = 4000
# Everything comes from beside the page; no script, style or frame of anyone else, and none inside a page.
CONTENT_POLICY = (
    "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'"
)


class Pages:
    """Renders pages of one target. `live`: by a server, with filters over everything and votes; else into files."""

    def __init__(self, target: str, *, live: bool) -> None:
        self._target = target
        self._live = live

    def overview(self, shown: Overview) -> str:
        """The first page."""
        return self._render("overview.html", here="overview", shown=shown, sentences=vote_sentences(shown.votes))

    def pairs(self, shown: PairPage, wanted: PairFilter, dimensions: Sequence[str]) -> str:
        """Preference pairs."""
        return self._render(
            "pairs.html",
            here="pairs",
            shown=shown,
            wanted=wanted,
            dimensions=dimensions,
            paging=self._paging(shown.found, wanted),
        )

    def gallery(self, shown: QueryPage, wanted: QueryFilter, dimensions: Sequence[str]) -> str:
        """Held-out queries, one clip a method."""
        return self._render(
            "gallery.html",
            here="gallery",
            shown=shown,
            wanted=wanted,
            dimensions=dimensions,
            paging=self._paging(shown.found, wanted),
        )

    def vote(self, missing: str = "") -> str:
        """The page of blind votes. `missing`: why there is nothing to vote on."""
        return self._render("vote.html", here="vote", missing=missing)

    def problem(self, said: str) -> str:
        """What is wrong with what was asked for."""
        return self._render("problem.html", here="", said=said)

    def _render(self, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(
            target=self._target, live=self._live, policy=CONTENT_POLICY, places=self._places, **values
        )

    @property
    def _places(self) -> Mapping[str, str]:
        if self._live:
            return {"overview": "./", "pairs": "pairs", "gallery": "gallery", "vote": "vote"}
        return {"overview": "index.html", "pairs": "pairs.html", "gallery": "gallery.html"}

    def _paging(self, found: int, wanted: Filter) -> dict[str, Any]:
        """Which rows are shown, and the addresses of the neighbouring pages."""
        pages = max(1, -(-found // PAGE_ROWS))
        asked = {name: value for name, value in wanted.model_dump(exclude_defaults=True).items() if name != "page"}

        def address(page: int) -> str:
            return "?" + urlencode({**asked, "page": page})

        return {
            "page": wanted.page,
            "pages": pages,
            "first": min(wanted.first_row + 1, found),
            "last": min(wanted.first_row + PAGE_ROWS, found),
            "before": address(wanted.page - 1) if wanted.page > 1 else "",
            "after": address(wanted.page + 1) if wanted.page < pages else "",
        }

    @cached_property
    def _environment(self) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_cleaned,
        )
        environment.filters |= {
            "place": self._clip_place,
            "method": grids.method_name,
            "hue": grids.hue,
            "number": _number,
            "percent": _percent,
            "gains": _gains,
        }
        return environment

    def _clip_place(self, clip: ShownClip) -> str:
        """Where a page finds a clip: the server by the video's id, an exported page in the folder beside it."""
        return f"clips/{clip.video_id}" if self._live else exported_clip(clip.uri)


def exported_clip(uri: str) -> str:
    """Where a clip lies in an exported folder: under its hash."""
    name = uri.rpartition("/")[2]
    if Path(name).suffix not in MIME_TYPES:
        raise ValueError(f"a clip is {' or '.join(MIME_TYPES)}, not {name[-20:]!r}")
    return f"clips/{name}"


def _cleaned(value: object) -> object:
    """What every expression of a template passes through before it is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return readable(value, LONGEST_TEXT)
    return value


def _number(value: float | None, places: int = 2, sign: bool = False) -> str:
    return grids.written(Estimate(float("nan") if value is None else value), places, sign)[0]


def _percent(share: float | None) -> str:
    return f"{_number(None if share is None else 100 * share, 0)}%"


def _gains(gains: Mapping[str, float]) -> str:
    """For the script of exported pages: JSON, escaped as an attribute like any text."""
    return json.dumps({name: round(value, 6) for name, value in gains.items()})
