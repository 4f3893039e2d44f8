import datetime
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.outcome import Unavailable
from resources.server_answers import (
    QUOTED_LENGTH,
    MayPass,
    RequestRefused,
    Server,
    error_of,
    json_of,
    quoted,
    retry_after,
)

KEYS = st.text("abcdefXYZ0123456789-_", min_size=4, max_size=40)
SERVER = Server("http://server/v1", "SOME_KEY", "sk-secret")


def response(status: int, body: str = "", method: str = "POST", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx.Request(method, "http://server/v1/chat/completions")
    return httpx.Response(status, text=body, headers=named, request=request)


@given(st.text(), KEYS, st.text(max_size=400))
def test_what_is_quoted_is_one_short_line_without_the_key(before: str, key: str, after: str) -> None:
    line = quoted(before + key + after, key)
    assert key not in line
    assert line.isprintable()
    assert len(line) <= QUOTED_LENGTH


@given(st.integers(0, QUOTED_LENGTH))
def test_no_beginning_of_a_key_is_left_where_the_text_is_cut(place: int) -> None:
    line = quoted("x" * place + "sk-secret" + "x" * QUOTED_LENGTH, "sk-secret")
    assert "s" not in line


@given(st.text())
def test_a_retry_after_is_some_seconds_or_nothing(header: str) -> None:
    seconds = retry_after(header)
    assert seconds is None or 0 <= seconds < float("inf")


def test_a_retry_after_may_be_seconds_or_a_date() -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert retry_after("0.3") == 0.3
    assert retry_after("-5") == 0
    later = retry_after(format_datetime(now + datetime.timedelta(seconds=90), usegmt=True))
    assert later is not None
    assert 60 < later <= 90
    assert retry_after(format_datetime(now - datetime.timedelta(days=1), usegmt=True)) == 0
    assert retry_after("soon") is retry_after("inf") is retry_after("nan") is retry_after(None) is None


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_asked_again_when_the_server_wishes(status: int) -> None:
    error = error_of(response(status, "busy", Retry_After="7"), SERVER, reached=True)
    assert isinstance(error, MayPass)
    assert error.retry_after == 7
    assert str(error) == f"HTTP {status}: busy"


@pytest.mark.parametrize("status", [400, 406, 413, 415, 422])
def test_other_errors_of_the_client_are_about_this_request(status: int) -> None:
    error = error_of(response(status, "too\nlong \x1b[31m for sk-secret"), SERVER, reached=False)
    assert isinstance(error, RequestRefused)
    assert error.status == status
    assert str(error) == f"HTTP {status}: too long [31m for ***"


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (response(401, "bad key sk-secret"), "check the key in the environment variable SOME_KEY"),
        (response(403), "check the key in the environment variable SOME_KEY"),
        (response(402, "pay"), "no credit left"),
        (response(429, '{"error": {"code": "insufficient_quota"}}'), "no credit left"),
        (response(404, "no such model"), "check base_url and model"),
        (response(405), "check base_url and model"),
        (response(400, '{"error": {"code": "model_not_found"}}'), "check base_url and model"),
        (response(307, Location="https://elsewhere/v1"), "sends us on to https://elsewhere/v1"),
    ],
)
def test_what_no_row_is_to_blame_for_ends_the_asking(refusal: httpx.Response, expected: str) -> None:
    error = error_of(refusal, SERVER, reached=False)
    assert isinstance(error, Unavailable)
    assert expected in str(error)
    assert SERVER.base_url in str(error)
    assert "sk-secret" not in str(error)


def test_without_a_key_one_is_proposed() -> None:
    error = error_of(response(401), Server("http://server/v1", None, None), reached=False)
    assert "name the environment variable that holds one in key_variable" in str(error)


def test_a_403_is_about_the_request_once_the_key_was_good() -> None:
    assert isinstance(error_of(response(403, "flagged"), SERVER, reached=True), RequestRefused)
    assert isinstance(error_of(response(401, "revoked"), SERVER, reached=True), Unavailable)


def test_a_thing_that_is_not_there_is_no_end_of_asking() -> None:
    error = error_of(response(404, "no such job", method="GET"), SERVER, reached=False)
    assert isinstance(error, RequestRefused)
    assert error.status == 404


@pytest.mark.parametrize(
    "body", ["", "<html>", '{"a": ', "[" * 100_000, '{"a": 1}x', "\ud800".encode("utf-16-le", "surrogatepass")]
)
def test_what_is_no_json_is_a_value_error(body: str | bytes) -> None:
    with pytest.raises(ValueError):
        json_of(httpx.Response(200, content=body))
