"""The viewer over HTTP: pages, clips, votes, and who is refused."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from storage.tables import PREFERENCE_PAIRS, QUERIES, VOTES
from tests.assets.conftest import World
from tests.report.hostile import TEXTS
from tests.viewer.conftest import ADDRESS, TARGET
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import readable
from vpo_assets.viewer.application import LARGEST_VOTE, Viewer
from vpo_assets.viewer.pages import LONGEST_TEXT

pytestmark = pytest.mark.slow

PAGES = ("/", "/pairs", "/gallery", "/vote")
OWN = {"origin": ADDRESS}


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def first_vote(client: TestClient, annotator: str = "ann", choice: str = "left") -> dict[str, Any]:
    asked = client.get("/vote/next", params={"annotator": annotator}).json()
    return {"annotator": annotator, "comparison_id": asked["comparison"]["id"], "choice": choice}


def votes(world: World) -> int:
    return world.platform.lake.count(VOTES.at(TARGET))


@pytest.mark.parametrize("page", PAGES)
def test_pages_load_nothing_from_elsewhere_and_hold_no_script(client: TestClient, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    seen = Seen(answer.text)
    for tag, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "action"):
            assert "//" not in (attributes.get(name) or "")
    for script in seen.all("script"):
        assert client.get(f"/{script['src']}").headers["content-type"].startswith("text/javascript")
    assert client.get("/static/viewer.css").headers["x-content-type-options"] == "nosniff"


def test_every_clip_of_a_page_is_there(client: TestClient) -> None:
    for page in ("/pairs?feedback=video", "/gallery"):
        images = Seen(client.get(page).text).all("img")
        assert images
        for image in images:
            answer = client.get(f"/{image['src']}")
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "image/webp"
            assert answer.content[:4] == b"RIFF"


def test_videos_can_be_wound(world: World) -> None:
    """Browsers ask for a part of a video; and a video of the format mp4 is a video for them."""
    import numpy as np

    from storage.videos import VideoStore

    stored = VideoStore(world.platform.videos.root, "mp4").put(np.zeros((8, 32, 32, 3), np.uint8), 4.0)
    with world.platform.lake.write({"text": "mp4"}) as transaction:
        transaction.execute("UPDATE lake.shapes.eval_videos SET uri = ?", [stored.uri])
    with TestClient(Viewer(world.platform, TARGET).asgi, base_url=ADDRESS) as client:
        (video, *_) = Seen(client.get("/gallery").text).all("video")
        part = client.get(f"/{video['src']}", headers={"range": "bytes=0-9"})
        assert part.status_code == 206
        assert len(part.content) == 10
        assert part.headers["content-type"] == "video/mp4"
        asked = client.get("/vote/next", params={"annotator": "ann"}).json()["comparison"]
        assert asked["moving"] == {"left": True, "right": True}


@pytest.mark.parametrize(
    "path", ["/clips/nope", "/clips/..%2f..%2fprofile.yaml", "/static/../pages.py", "/static/%2e%2e/pages.py", "/x"]
)
def test_what_is_not_there(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_wrong_filter_is_told(client: TestClient) -> None:
    answer = client.get("/pairs", params={"margin": "<script>x</script>"})
    assert answer.status_code == 400
    assert "margin: Input should be a valid number" in Seen(answer.text).text
    answer = client.get("/gallery", params={"<script>": "1"})
    assert answer.status_code == 400
    assert "<script>: Extra inputs are not permitted" in Seen(answer.text).text


@pytest.fixture(scope="module")
def hostile_world(made: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A copy for texts that replace each other."""
    home = tmp_path_factory.mktemp("hostile") / "world"
    shutil.copytree(made.home, home)
    return World(home)


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_text_is_text(hostile_world: World, text: str) -> None:
    """In queries, prompts, and in the fields of a filter."""
    world, storable = hostile_world, text.encode("utf-8", "replace").decode()
    with world.platform.lake.write({"text": "hostile"}) as transaction:
        transaction.execute(f"UPDATE {QUERIES.qualified} SET query = ?", [storable])
        transaction.execute(f"UPDATE {PREFERENCE_PAIRS.at(TARGET).qualified} SET chosen = ?", [storable])
    expected = "".join(readable(storable, LONGEST_TEXT).split())
    with TestClient(Viewer(world.platform, TARGET).asgi, base_url=ADDRESS) as client:
        for page in ("/pairs", "/gallery"):
            seen = Seen(client.get(page).text)
            clean = {tag for tag, _ in seen.tags}
            assert expected in "".join(seen.text.split())
            assert not {"iframe", "svg", "object"} & clean
            assert all(link["href"] in ("./", "pairs", "gallery", "vote") or link.get("rel") for link in seen.all("a"))
            assert all((image["src"] or "").startswith("clips/") for image in seen.all("img"))
            asked = Seen(client.get(page, params={"text": text[:200].encode("utf-8", "replace").decode()}).text)
            assert {tag for tag, _ in asked.tags} <= clean | {"p", "code"}


def test_the_page_of_votes_knows_no_methods(client: TestClient) -> None:
    asked = client.get("/vote/next", params={"annotator": "ann"})
    page = client.get("/vote", params={"annotator": "ann"})
    clip = client.get(f"/vote/clips/{asked.json()['comparison']['id']}/left", params={"annotator": "ann"})
    assert clip.headers["content-type"] == "image/webp"
    for answer in (asked.text, page.text, str(clip.headers)):
        for secret in ("original", "few_shot", "sft", "vpo-", "prompt_id", "video_id"):
            assert secret not in answer


def test_a_vote_and_the_same_once_more(client: TestClient, world: World) -> None:
    vote = first_vote(client)
    answer = client.post("/votes", json=vote, headers=OWN)
    assert answer.status_code == 200
    told = answer.json()
    assert told["new"]
    assert {told["left"], told["right"]} < {"original", "few_shot", "sft", "vpo"}
    assert told["next"]["done"] == 1
    assert told["next"]["comparison"]["id"] != vote["comparison_id"]
    again = client.post("/votes", json=vote, headers=OWN)
    assert (again.status_code, again.json()["new"]) == (200, False)
    other = client.post("/votes", json={**vote, "choice": "right"}, headers=OWN)
    assert other.status_code == 409
    assert "already" in other.json()["error"]
    assert votes(world) == 1


@pytest.mark.parametrize(
    ("change", "status", "complaint"),
    [
        ({"comparison_id": "nope"}, 404, "no such comparison"),
        ({"annotator": " "}, 400, "needs a name"),
        ({"annotator": "<b>"}, 400, "a name has at most"),
        ({"choice": "both"}, 400, "choice: .*'left', 'right', 'tie' or 'skip'"),
        ({"method": "vpo"}, 400, "method: Extra inputs"),
        ({"annotator": None}, 400, "annotator: .*valid string"),
    ],
)
def test_votes_that_are_none(
    client: TestClient, world: World, change: dict[str, Any], status: int, complaint: str
) -> None:
    answer = client.post("/votes", json={**first_vote(client), **change}, headers=OWN)
    assert answer.status_code == status
    assert re.search(complaint, answer.json()["error"])
    assert votes(world) == 0


def test_other_sites_cannot_vote(client: TestClient, world: World) -> None:
    vote = first_vote(client)
    for headers in ({}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9"}):
        assert client.post("/votes", json=vote, headers=headers).status_code == 403
    plain = client.post("/votes", content=str(vote), headers={**OWN, "content-type": "text/plain"})
    assert plain.status_code == 415
    assert client.post("/votes", content="{", headers={**OWN, "content-type": "application/json"}).status_code == 400
    large = client.post("/votes", json={**vote, "annotator": "x" * LARGEST_VOTE}, headers=OWN)
    assert large.status_code == 413
    assert client.get("/votes").status_code == 405
    assert votes(world) == 0


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:3001", "", "10.0.0.1"])
def test_foreign_names_of_this_machine_are_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/pairs", "/static/viewer.js"):
        assert client.get(path, headers={"host": host}).status_code == 400
    assert client.get("/", headers={"host": "localhost:3001"}).status_code == 200


def test_nothing_made_yet_says_what_to_do(nothing_yet: Platform) -> None:
    with TestClient(Viewer(nothing_yet, TARGET).asgi, base_url=ADDRESS) as client:
        for page in PAGES:
            answer = client.get(page)
            assert answer.status_code == 200
            assert "vpo materialize" in answer.text
        assert client.get("/vote/next?annotator=ann").status_code == 404


def test_a_run_shows_without_a_restart(nothing_yet: Platform, tmp_path: Path) -> None:
    from tests.hand_filled import fill

    with TestClient(Viewer(nothing_yet, TARGET).asgi, base_url=ADDRESS) as client:
        assert "the good prompt" not in Seen(client.get("/pairs").text).text
        fill(nothing_yet, tmp_path)
        assert "the good prompt" in Seen(client.get("/pairs").text).text
