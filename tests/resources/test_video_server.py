"""The video server's client against a server that speaks vllm-omni's protocol, over real HTTP."""

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resources.backend_settings import VideoServerSettings
from resources.outcome import Failed, Skipped, Unavailable
from resources.video_jobs import VideoJobs
from resources.video_server import ServedVideoGenerator, decoded
from tests.resources.stub_video_server import MODEL, Plan, StubVideoServer, render_mp4
from tests.resources.video_generator_contract import VideoGeneratorContract, clip_of

ARGUMENTS: dict[str, int | float | str | bool] = {
    "num_frames": 5,
    "width": 48,
    "height": 32,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
}


def settings_of(base_url: str, **changes: Any) -> VideoServerSettings:
    values: dict[str, Any] = {
        "base_url": base_url,
        "model": MODEL,
        "arguments": ARGUMENTS,
        "poll_seconds": 0.02,
        "timeout": 20,
        "retries": 2,
        "concurrency": 4,
    }
    return VideoServerSettings(**{**values, **changes})


def generator_for(stub: StubVideoServer, jobs: Path | None = None, **changes: Any) -> ServedVideoGenerator:
    return ServedVideoGenerator(settings_of(stub.base_url, **changes), jobs)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("resources.endpoint", "resources.video_server"):
        monkeypatch.setattr(f"{module}.FIRST_BACKOFF", 0.02)


class TestContract(VideoGeneratorContract):
    shape = (5, 32, 48)

    @pytest.fixture
    def generator(self) -> Iterator[ServedVideoGenerator]:  # type: ignore[override]
        with StubVideoServer() as stub:
            yield generator_for(stub)


def test_a_job_is_asked_for_with_everything_that_decides_the_clip() -> None:
    arguments = {**ARGUMENTS, "guidance_scale_2": "default", "generate_sound": False, "flow_shift": 3.5}
    with StubVideoServer() as stub:
        generator = generator_for(stub, arguments=arguments, negative_prompt="ugly, “bad”")
        (clip,) = generator.generate(["a cat — 猫\r\n--boundary"], [(1 << 48) - 1])
    (job,) = stub.jobs.values()
    assert job.form == {
        "prompt": "a cat — 猫\r\n--boundary",
        "model": MODEL,
        "seed": str((1 << 48) - 1),
        "negative_prompt": "ugly, “bad”",
        "num_frames": "5",
        "width": "48",
        "height": "32",
        "num_inference_steps": "4",
        "guidance_scale": "5.0",
        "generate_sound": "false",
        "flow_shift": "3.5",
    }
    assert np.array_equal(clip_of(clip), decoded(render_mp4(job.form)))
    assert [(method, path) for method, path, _ in stub.requests] == [
        ("POST", "/v1/videos"),
        ("GET", f"/v1/videos/{job.id}"),
        ("GET", f"/v1/videos/{job.id}/content"),
    ]
    assert stub.requests[0][2]["Content-Type"].startswith("multipart/form-data")


def test_jobs_are_waited_for_and_no_more_are_under_way_than_allowed() -> None:
    prompts = [f"slow {i}" for i in range(9)]
    with StubVideoServer(slow=Plan(seconds=0.3)) as stub:
        outcomes = generator_for(stub, concurrency=3).generate(prompts, range(9))
    assert len({clip_of(outcome).tobytes() for outcome in outcomes}) == 9
    assert stub.most_under_way == 3


def test_rows_that_want_the_same_video_share_its_job() -> None:
    with StubVideoServer() as stub:
        one, other, again = generator_for(stub).generate(["a", "b", "a"], [1, 1, 1])
    assert np.array_equal(clip_of(one), clip_of(again)) and not np.array_equal(clip_of(one), clip_of(other))
    assert len(stub.jobs) == 2


def test_the_key_goes_into_every_request_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDEO_KEY", "sk-secret")
    with StubVideoServer(bad=Plan(fails=[(500, "key sk-secret refused")])) as stub:
        generator = generator_for(stub, tmp_path, key_variable="VIDEO_KEY")
        _, failed = generator.generate(["a", "bad"], [1, 2])
    assert {headers.get("Authorization") for _, _, headers in stub.requests} == {"Bearer sk-secret"}
    assert isinstance(failed, Failed) and "sk-secret" not in failed.reason
    assert "secret" not in str(generator.identity())
    assert b"secret" not in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    monkeypatch.delenv("VIDEO_KEY")
    with pytest.raises(Unavailable, match="VIDEO_KEY"):
        generator.generate(["a"], [1])


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        Plan(on_create=[500, 429]),
        Plan(on_create=["cut", "<html>"]),
        Plan(on_create=['{"id": "../../etc", "status": "queued"}', '{"id": 3, "status": "queued"}']),
        Plan(on_status=[503, "cut"]),
        Plan(on_status=["[]", '{"status": 3}']),
        Plan(on_content=[500, "cut"]),
        Plan(on_content=["truncated", "garbage"]),
    ],
    ids=str,
)
def test_what_may_pass_is_asked_for_again(plan: Plan) -> None:
    with StubVideoServer(cat=plan) as stub:
        outcomes = generator_for(stub).generate(["cat", "dog"], [1, 2])
    assert [clip_of(outcome).shape for outcome in outcomes] == [(5, 32, 48, 3)] * 2
    assert not (plan.on_create or plan.on_status or plan.on_content)  # all of it happened


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_failed_job_fails_its_row_with_the_servers_words(status: int, tmp_path: Path) -> None:
    words = "CUDA out of memory\x1b[31m\n" + "very " * 200
    with StubVideoServer(cat=Plan(fails=[(status, words)])) as stub:
        generator = generator_for(stub, tmp_path)
        failed, good = generator.generate(["cat", "dog"], [1, 2])
        assert isinstance(failed, Failed)
        assert failed.reason.startswith("the job ended as failed: CUDA out of memory [31m very")
        assert len(failed.reason) < 400
        assert sum(path.endswith("0") or "video_gen" in path for _, path, _ in stub.requests) <= 4  # not asked again
        clip_of(good)
        clip_of(generator.generate(["cat"], [1])[0])  # the next try is a new job
    assert stub.asked_for["cat", "1"] == 2


def test_many_failed_jobs_do_not_stop_the_others() -> None:
    prompts = [f"bad {i}" for i in range(12)] + ["good"]
    with StubVideoServer(bad=Plan(fails=[(500, "no")] * 12)) as stub:
        outcomes = generator_for(stub).generate(prompts, range(13))
    assert [type(outcome) for outcome in outcomes[:-1]] == [Failed] * 12
    clip_of(outcomes[-1])


def test_a_refused_prompt_fails_alone() -> None:
    with StubVideoServer(bad=Plan(on_create=[400] * 9)) as stub:
        failed, good = generator_for(stub, concurrency=1).generate(["bad", "good"], [1, 2])
    assert (
        isinstance(failed, Failed)
        and failed.reason == 'HTTP 400: {"error": {"code": 400, "message": "it broke\\u001b[31m"}}'
    )
    clip_of(good)


def test_a_server_that_takes_on_nothing_ends_the_asking() -> None:
    with StubVideoServer(bad=Plan(on_create=[422] * 100)) as stub:
        outcomes = generator_for(stub, concurrency=1).generate([f"bad {i}" for i in range(20)], range(20))
    assert [type(outcome) for outcome in outcomes] == [Failed] * 7 + [Skipped] * 13
    assert (
        isinstance(outcomes[-1], Skipped) and "took on none of 8 jobs in a row, the last one: " in outcomes[-1].reason
    )
    assert len(stub.requests) == 8


def test_broken_downloads_fail_the_row_in_the_end(tmp_path: Path) -> None:
    with StubVideoServer(cat=Plan(on_content=["truncated"] * 3)) as stub:
        generator = generator_for(stub, tmp_path)
        (failed,) = generator.generate(["cat"], [1])
        assert isinstance(failed, Failed) and "has no video that can be read, in 3 tries" in failed.reason
        clip_of(generator.generate(["cat"], [1])[0])
    assert stub.asked_for["cat", "1"] == 2  # that job's file will not get better


def test_a_video_that_cannot_be_fetched_now_is_fetched_by_the_next_try(tmp_path: Path) -> None:
    with StubVideoServer(cat=Plan(on_content=[500] * 3)) as stub:
        generator = generator_for(stub, tmp_path)
        (failed,) = generator.generate(["cat"], [1])
        assert isinstance(failed, Failed) and "no good answer in 3 tries" in failed.reason
        clip_of(generator.generate(["cat"], [1])[0])
    assert stub.asked_for["cat", "1"] == 1


def test_a_late_job_fails_its_row_and_is_waited_for_again(tmp_path: Path) -> None:
    with StubVideoServer(cat=Plan(seconds=1000)) as stub:
        generator = generator_for(stub, tmp_path, job_timeout=0.2)
        (failed,) = generator.generate(["cat"], [1])
        assert isinstance(failed, Failed) and "no video within job_timeout = 0.2 s" in failed.reason
        stub.finish_jobs()
        clip_of(generator.generate(["cat"], [1])[0])
    assert stub.asked_for["cat", "1"] == 1


def test_a_server_that_is_not_there_is_one_clear_line() -> None:
    with StubVideoServer() as stub:
        generator = generator_for(stub, retries=1)
    with pytest.raises(Unavailable, match=r"nobody answers at .* check that the server runs") as caught:
        generator.generate(["a", "b"], [1, 2])
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_skips_the_rest() -> None:
    with StubVideoServer() as stub:
        generator = generator_for(stub, retries=1)
        clip_of(generator.generate(["a"], [1])[0])
    assert [type(outcome) for outcome in generator.generate(["b", "c"], [1, 2])] == [Skipped, Skipped]


def test_a_server_with_another_model_or_another_protocol_is_refused() -> None:
    with StubVideoServer() as stub:
        with pytest.raises(Unavailable, match=r"Model mismatch.* set model to its name"):
            generator_for(stub, model="other/model").generate(["a"], [1])
        with pytest.raises(Unavailable, match="check base_url and model"):
            ServedVideoGenerator(settings_of(f"{stub.base_url}/v2")).generate(["a"], [1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 5}, "need size or width, size or height, num_inference_steps: "),
        ({"size": "48x32", "num_inference_steps": 4}, "need num_frames or seconds: "),
        ({**ARGUMENTS, "seed": 3}, "arguments.seed cannot be set"),
    ],
)
def test_what_a_model_is_made_for_must_be_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Unavailable, match=message):
        ServedVideoGenerator(settings_of("http://127.0.0.1:9/v1", arguments=arguments)).generate(["a"], [1])


def test_a_file_that_holds_too_much_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = render_mp4({"num_frames": "5", "height": "32", "width": "48"})
    assert decoded(content).shape == (5, 32, 48, 3)
    monkeypatch.setattr("resources.video_server.LARGEST_CLIP", 3 * 32 * 48 * 3)
    with pytest.raises(ValueError, match="more than 13824 bytes of frames"):
        decoded(content)


@pytest.mark.parametrize("content", [b"", b"no video", b"\x00" * 5000])
def test_what_is_no_video_is_one_clear_line(content: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        decoded(content)
    assert "\n" not in str(caught.value)


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_the_same_video_leads_to_the_same_job_in_another_process_and_no_other_does(tmp_path: Path) -> None:
    with StubVideoServer() as stub:
        (one,) = generator_for(stub, tmp_path).generate(["cat"], [1])
        (again,) = generator_for(stub, tmp_path, concurrency=1, poll_seconds=0.5).generate(["cat"], [1])
        assert np.array_equal(clip_of(one), clip_of(again))
        assert sum(stub.asked_for.values()) == 1
        others = [{"negative_prompt": "x"}, {"arguments": {**ARGUMENTS, "num_frames": 9}}, {"revision": "2"}]
        for count, changes in enumerate(others, start=2):
            clip_of(generator_for(stub, tmp_path, **changes).generate(["cat"], [1])[0])
            assert sum(stub.asked_for.values()) == count
        clip_of(generator_for(stub, tmp_path).generate(["cat"], [2])[0])
        clip_of(generator_for(stub, tmp_path).generate(["dog"], [1])[0])
    assert sum(stub.asked_for.values()) == 6


def test_a_job_that_the_server_no_longer_knows_is_asked_for_anew(tmp_path: Path) -> None:
    with StubVideoServer() as stub:
        (one,) = generator_for(stub, tmp_path).generate(["cat"], [1])
        stub.forget_jobs()
        (again,) = generator_for(stub, tmp_path).generate(["cat"], [1])
        assert np.array_equal(clip_of(one), clip_of(again))
        assert stub.asked_for["cat", "1"] == 2
        (job,) = stub.jobs.values()
        job.form["prompt"] = "gone"
        stub.plans = {"gone": Plan(on_content=[404])}  # the job is known but its file is cleared away
        clip_of(generator_for(stub, tmp_path).generate(["cat"], [1])[0])
    assert stub.asked_for["cat", "1"] == 3


@functools.cache
def driver() -> str:
    return textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.resources.test_video_server import settings_of
        from resources.video_server import ServedVideoGenerator
        generator = ServedVideoGenerator(settings_of(sys.argv[1]), Path(sys.argv[2]))
        outcomes = generator.generate([f"slow {i}" for i in range(4)], range(4))
        print([outcome.shape for outcome in outcomes])
        """
    )


def start(stub: StubVideoServer, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", driver(), stub.base_url, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.slow
def test_after_a_kill_the_same_jobs_are_fetched_and_none_is_paid_for_twice(tmp_path: Path) -> None:
    with StubVideoServer(slow=Plan(seconds=1000)) as stub:
        killed = start(stub, tmp_path)
        deadline = time.monotonic() + 120
        while sum(path.count("video_gen") for _, path, _ in list(stub.requests)) < 12:  # all are being polled
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert killed.stdout is not None
        killed.stdout.close()

        stub.finish_jobs()
        again = start(stub, tmp_path)
        printed, _ = again.communicate(timeout=120)
        assert printed.strip() == str([(5, 32, 48, 3)] * 4)
    assert stub.asked_for == {(f"slow {i}", str(i)): 1 for i in range(4)}


def test_jobs_are_kept_apart_replaced_and_forgotten(tmp_path: Path) -> None:
    for jobs in (VideoJobs(None), VideoJobs(tmp_path / "deep" / "folder")):
        assert jobs.get("a") is None
        jobs.forget("a")
        jobs.put("a", "job-1")
        jobs.put("b", "job-2")
        jobs.put("a", "job-3")
        assert (jobs.get("a"), jobs.get("b")) == ("job-3", "job-2")
        jobs.forget("a")
        assert (jobs.get("a"), jobs.get("b")) == (None, "job-2")
    assert VideoJobs(tmp_path / "deep" / "folder").get("b") == "job-2"


def test_old_jobs_are_forgotten(tmp_path: Path) -> None:
    jobs = VideoJobs(tmp_path)
    for key in ("old", "young"):
        jobs.put(key, f"job of {key}")
    (file,) = tmp_path.iterdir()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE jobs SET asked_at = datetime('now', '-8 days') WHERE key = 'old'")
    jobs.put("new", "job of new")
    assert [jobs.get(key) for key in ("old", "young", "new")] == [None, "job of young", "job of new"]
