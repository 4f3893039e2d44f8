"""The service as a process: its protocol, its limits, and what it says when it cannot start."""

import concurrent.futures
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.services.clips import asked, mp4, plain_clip
from tests.services.running import SERVER, TINY_MODELS, running_service
from tests.services.tiny_models import Notebook

RED, BLUE = (mp4(plain_clip(color), 4) for color in ((220, 20, 30), (20, 30, 220)))
QUESTIONS = ["Is it red?", "Is it green?", "Is it blue?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    with running_service(folder, "--most-megabytes", "2", "--revision", "r1", adapter="ColorAnswers") as address:
        yield address


def post(address: str, *clips: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{address}/answers", json={"clips": list(clips)}, timeout=60)


def test_health_says_what_is_served(service: str, folder: Path) -> None:
    assert httpx.get(f"{service}/health").json() == {
        "protocol": 1,
        "model": str(folder),
        "revision": "r1",
        "kind": "checklist",
        "scores": None,
        "most_bytes": 2_000_000,
        "most_clips": 64,
    }


def test_clips_are_answered_in_order_each_with_its_own_questions(service: str, folder: Path) -> None:
    answer = post(service, asked(RED, "red", QUESTIONS), asked(BLUE, "red", ["Is it blue?"])).json()
    assert (answer["model"], answer["revision"]) == (str(folder), "r1")
    first, second = answer["results"]
    assert [one["answer"] for one in first["answers"]] == ["yes", "no", "no"]
    assert [one["answer"] for one in second["answers"]] == ["yes"]
    assert 0.5 < first["answers"][0]["probability"] <= 1


def test_a_bad_clip_fails_alone(service: str) -> None:
    good, bad = post(service, asked(RED, "", QUESTIONS), asked(b"nothing", "", QUESTIONS)).json()["results"]
    assert "answers" in good
    assert "cannot be read" in bad["error"]


def test_requests_at_the_same_time_are_all_answered(service: str, folder: Path) -> None:
    before = len(Notebook(folder).calls("encode"))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        contents = [RED, BLUE] * 6
        answers = list(pool.map(lambda content: post(service, asked(content, "", QUESTIONS)).json(), contents))
    words = [[one["answer"] for one in answer["results"][0]["answers"]] for answer in answers]
    assert words == [["yes", "no", "no"], ["no", "no", "yes"]] * 6
    assert len(Notebook(folder).calls("encode")) == before + 12


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "clips must be a list"),
        ([], "clips must be a list"),
        ({"clips": []}, "1 to 64 clips"),
        ({"clips": [asked(b"", "", QUESTIONS)] * 65}, "1 to 64 clips"),
        ({"clips": ["x"]}, r"clips\[0\] must be an object"),
        ({"clips": [asked(RED, "")]}, r"clips\[0\].questions must be a list of 1"),
        ({"clips": [asked(RED, "", ["?"]), asked(RED, "", [])]}, r"clips\[1\].questions"),
        ({"clips": [{**asked(RED, "", ["?"]), "mp4": "no base64!"}]}, r"clips\[0\].mp4 must be the base64"),
        ({"clips": [{**asked(RED, "", ["?"]), "mp4": 7}]}, r"clips\[0\].mp4"),
        ({"clips": [{**asked(RED, "", ["?"]), "query": None}]}, r"clips\[0\].query must be text"),
        ({"clips": [asked(RED, "", ["x" * 20_001])]}, r"questions\[0\] must be text of at most"),
        ({"clips": [asked(RED, "", ["?"] * 1001)]}, "1 to 1000 questions"),
    ],
)
def test_requests_of_another_form_are_refused(service: str, body: Any, said: str) -> None:
    answer = httpx.post(f"{service}/answers", json=body)
    assert answer.status_code == 400
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(answer.json()["error"])


def test_what_is_no_request_is_refused(service: str) -> None:
    assert httpx.get(f"{service}/").status_code == 404
    assert httpx.post(f"{service}/health", json={}).status_code == 404
    assert httpx.get(f"{service}/answers").status_code == 404
    assert (
        httpx.post(f"{service}/answers", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    )
    deep = b"[" * 200_000
    assert (
        httpx.post(f"{service}/answers", content=deep, headers={"Content-Type": "application/json"}).status_code == 400
    )
    assert httpx.post(f"{service}/answers", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.put(f"{service}/answers", json={}).status_code == 501


def test_pages_in_a_browser_cannot_use_it_by_another_name(service: str) -> None:
    assert httpx.get(f"{service}/health", headers={"Host": "evil.example:8100"}).status_code == 403
    assert httpx.get(f"{service}/health", headers={"Host": "localhost:8100"}).status_code == 200


def test_too_large_requests_are_refused_and_the_next_one_is_answered(service: str) -> None:
    with httpx.Client(timeout=60) as client:
        large = client.post(f"{service}/answers", json={"clips": [asked(b"x" * 3_000_000, "", QUESTIONS)]})
        assert large.status_code == 413
        assert "2000000 bytes" in large.json()["error"]
        assert client.post(f"{service}/answers", json={"clips": [asked(RED, "", QUESTIONS)]}).status_code == 200


def test_a_body_without_length_or_cut_off_is_refused(service: str) -> None:
    port = urlsplit(service).port
    start = b"POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    for rest, status in (
        (b"\r\n", b"411"),
        (b"Content-Length: -5\r\n\r\n", b"411"),
        (b"Content-Length: 50\r\n\r\n{}", b"400"),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(start + rest)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000).startswith(b"HTTP/1.1 " + status)
    assert httpx.get(f"{service}/health").status_code == 200


def test_it_listens_on_this_machine_only(service: str) -> None:
    assert urlsplit(service).hostname == "127.0.0.1"
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    own = [line.split()[1] for line in listening if line.split()[1].endswith(f":{urlsplit(service).port:04X}")]
    assert own
    assert all(address.startswith("0100007F:") for address in own)


def test_a_model_that_gives_scores_says_which(tmp_path: Path) -> None:
    with running_service(tmp_path, adapter="ColorScores") as address:
        health = httpx.get(f"{address}/health").json()
        assert health["kind"] == "scalar"
        assert health["scores"] == [
            {"name": "brightness", "low": 0, "high": 255, "weight": 0.01, "text": "how bright it is"},
            {"name": "redness", "low": -1, "high": 1, "weight": 2.0, "text": ""},
        ]
        good, bad = post(address, asked(RED, "red"), asked(RED, "explode")).json()["results"]
        assert good["scores"]["redness"] > 0.5
        assert "what a query" in bad["error"]
        assert post(address, asked(RED, "red", QUESTIONS)).status_code == 400


def failing_start(*arguments: str) -> str:
    """What the service says when it cannot start."""
    command = [sys.executable, str(SERVER), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    return ended.stderr.strip().splitlines()[-1]


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path) -> None:
    tiny = f"{TINY_MODELS}:ColorAnswers"
    assert "is no folder" in failing_start("--model", "a/model", "--port", "0", "--adapter", tiny)
    assert "give a Python file" in failing_start("--model", "x", "--port", "0", "--adapter", "nowhere.py:X")
    assert "derived from ChecklistModel" in failing_start(
        "--model", "x", "--port", "0", "--adapter", f"{TINY_MODELS}:Path"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = failing_start("--model", str(tmp_path), "--port", port, "--adapter", tiny)
    assert f"port {port} cannot be had" in said
    assert "--batch" in failing_start("--model", "x", "--port", "0", "--batch", "0")
