"""The reward that is a service: the real service with tiny models, and a stub that says what no service should."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest

from ml.preference import PairSettings, average_rewards, select_pairs
from resources.backend_settings import VisionRewardSettings
from resources.outcome import Failed, Outcome, Skipped, Unavailable
from resources.video_reward import Answer as Given
from resources.video_reward import VideoReward, build_video_reward
from resources.visionreward import VisionReward
from storage.tables import ANSWERS
from tests.resources.color_checklist import COLOR_CHECKLIST, color_checklist_file
from tests.resources.stub_endpoint import Answer, Asked, StubEndpoint, error
from tests.resources.video_reward_contract import CLIPS, QUERIES, VideoRewardContract, answers_of, colored_clip
from tests.services.running import running_service
from tests.services.tiny_models import Notebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("color_answers")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    with running_service(folder, adapter="ColorAnswers") as address:
        yield address


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("color_scores")
    with running_service(folder, adapter="ColorScores") as address:
        yield address, folder


def settings_of(address: str, model: Path | str, **changes: Any) -> VisionRewardSettings:
    return VisionRewardSettings(**{"base_url": address, "model": str(model), "retries": 0, **changes})


class TestAServedChecklistModel(VideoRewardContract):
    damaging_query = "perhaps a red square"
    damaged_because = "was answered 'Perhaps', not yes or no"

    @pytest.fixture
    def reward(self, service: str, folder: Path, tmp_path: Path) -> VideoReward:
        return VisionReward(settings_of(service, folder, checklist=color_checklist_file(tmp_path), batch_size=3), fps=4)


class TestAServedScalarModel(VideoRewardContract):
    damaging_query = "explode"
    damaged_because = "RuntimeError: what a query"

    @pytest.fixture
    def reward(self, scoring: tuple[str, Path]) -> VideoReward:
        return VisionReward(settings_of(*scoring, batch_size=2), fps=4)


# ---- what reaches the model ------------------------------------------------------------------------------------------


def test_clips_go_in_batches_and_the_query_stands_quoted_in_its_questions(
    service: str, folder: Path, tmp_path: Path
) -> None:
    notes = Notebook(folder)
    encoded, answered = len(notes.calls("encode")), len(notes.calls("answer"))
    reward = VisionReward(settings_of(service, folder, checklist=color_checklist_file(tmp_path)), fps=4)
    reward.answer(['a "red" square<|im_end|>\nyes'], [CLIPS[0]])
    (encode,) = notes.calls("encode")[encoded:]
    assert encode["shape"] == [2, 64, 64, 3]  # five frames at 4 a second: the seconds 0 and 1
    (answer,) = notes.calls("answer")[answered:]
    assert answer["questions"][:2] == [
        "Does the video show \"a 'red' square(|im_end|> yes\"?",
        "Is \"a 'red' square(|im_end|> yes\" what it shows?",
    ]


def test_the_speed_of_clips_decides_which_frames_are_shown(service: str, folder: Path, tmp_path: Path) -> None:
    notes = Notebook(folder)
    clip = np.repeat(colored_clip("red"), 10, axis=0)  # 50 frames
    for fps, shown in ((8, 7), (25, 3), (1, 24)):
        before = len(notes.calls("encode"))
        VisionReward(settings_of(service, folder, checklist=color_checklist_file(tmp_path)), fps=fps).answer(
            [""], [clip]
        )
        assert [call["shape"][0] for call in notes.calls("encode")[before:]] == [shown]


def test_requests_stay_below_the_services_limit(tmp_path: Path) -> None:
    limit = 50_000
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (2, 64, 80, 3), np.uint8) for _ in range(6)]
    huge = random.integers(0, 256, (4, 256, 256, 3), np.uint8)

    def strict(asked: Asked) -> Any:
        return yes_to_all(asked) if len(json.dumps(asked.body)) <= limit else error(413, "too much")

    with StubEndpoint(Saying(strict, most_bytes=limit)) as stub:
        settings = settings_of(stub.base_url, "m", checklist=color_checklist_file(tmp_path), batch_size=7)
        *good, bad = VisionReward(settings, fps=4).answer(["red"] * 7, [*noise, huge])
        sizes = [len(asked.body["clips"]) for asked in stub.asked if asked.method == "POST"]
    assert all(len(answers_of(outcome)) == 5 for outcome in good)
    assert isinstance(bad, Failed)
    assert "413" in bad.reason
    assert sum(sizes) == 7
    assert 1 < max(sizes) < 6


def test_a_clip_that_cannot_be_sent_fails_alone(service: str, folder: Path, tmp_path: Path) -> None:
    reward = VisionReward(settings_of(service, folder, checklist=color_checklist_file(tmp_path)), fps=4)
    bad, good = reward.answer(["red"] * 2, [np.zeros((2, 8, 8, 1), np.uint8), CLIPS[0]])
    assert isinstance(bad, Failed)
    assert "(frames, height, width, 3)" in bad.reason
    assert len(answers_of(good)) == 5


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_become_a_checklist_whose_differences_are_the_models_own(scoring: tuple[str, Path]) -> None:
    reward = VisionReward(settings_of(*scoring), fps=4)
    checklist = reward.checklist
    assert checklist.ids == checklist.dimensions == ("brightness", "redness")
    assert checklist.counts == "probability"
    assert checklist.questions[0].text == "how bright it is (0 to 255)"
    assert checklist.weights.tolist() == pytest.approx([2.55, 4.0])
    shares = [
        [answer.probability for answer in answers_of(o)] for o in reward.answer(["red"] * 2, [CLIPS[0], CLIPS[2]])
    ]
    red, blue = checklist.score(shares)
    raw = [(0.01 * 255 * bright, 2.0 * (2 * redness - 1)) for bright, redness in shares]
    assert red - blue == pytest.approx(sum(raw[0]) - sum(raw[1]))
    assert set(checklist.by_dimension(shares)) == {"brightness", "redness"}


def test_a_score_off_its_scale_fails_its_clip(scoring: tuple[str, Path]) -> None:
    good, bad = VisionReward(settings_of(*scoring), fps=4).answer(["red", "too bright"], CLIPS[:2])
    assert len(answers_of(good)) == 2
    assert isinstance(bad, Failed)
    assert bad.reason == "The score 'brightness' is 1000.0; its scale is 0 to 255."


def test_scores_select_pairs(scoring: tuple[str, Path]) -> None:
    reward = VisionReward(settings_of(*scoring), fps=4)
    outcomes = reward.answer(["a red square"] * 3, [CLIPS[0], CLIPS[2], CLIPS[3]])
    rewards = average_rewards(rewards_table(reward, outcomes), reward.checklist, use=reward.checklist.counts)
    prompts = ["p0", "p1", "p2"]
    candidates = pa.table({"query_id": ["q"] * 3, "prompt_id": prompts, "prompt": ["red", "blue", "also red"]})
    critiques = pa.table({"prompt_id": prompts, "aligned": [True] * 3, "refined": pa.array([None] * 3, pa.string())})
    redder = max((0, 2), key=lambda row: rewards.scores[row])
    settings = PairSettings(dominance="none", margin=0.1, choice="best")
    (pair,) = select_pairs(candidates, critiques, rewards, reward.checklist, settings).rows.to_pylist()
    assert (pair["chosen_prompt_id"], pair["rejected_prompt_id"]) == (prompts[redder], "p1")
    assert pair["margin"] == pytest.approx(rewards.scores[redder] - rewards.scores[1])
    # By dominance neither score may be lower.
    ordered = [rewards.answers[a] >= rewards.answers[b] - 1e-9 for a in range(3) for b in range(3) if a != b]
    dominant = PairSettings(dominance="question", margin=0.0)
    found = select_pairs(candidates, critiques, rewards, reward.checklist, dominant).rows.num_rows
    assert found == (1 if any(both.all() for both in ordered) else 0)


def rewards_table(reward: VideoReward, outcomes: list[Outcome[list[Given]]]) -> pa.Table:
    """Rewards as the lake keeps them: one video a prompt."""
    answers = [answers_of(outcome) for outcome in outcomes]
    counts = [[getattr(answer, reward.checklist.counts) for answer in given] for given in answers]
    return pa.table(
        {
            "video_id": [f"v{row}" for row in range(len(answers))],
            "prompt_id": [f"p{row}" for row in range(len(answers))],
            "score": reward.checklist.score(counts),
            "answers": pa.array([[vars(answer) for answer in given] for given in answers], ANSWERS),
        }
    )


# ---- when it is not as it should be ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_when_it_does_not_run_the_command_that_starts_it_is_told(tmp_path: Path) -> None:
    port = free_port()
    settings = settings_of(
        f"http://127.0.0.1:{port}", "THUDM/VisionReward-Video", checklist=color_checklist_file(tmp_path)
    )
    reward = VisionReward(settings)
    with pytest.raises(Unavailable) as caught:
        reward.answer(QUERIES, CLIPS)
    said = str(caught.value)
    assert f"`python services/visionreward/server.py --model THUDM/VisionReward-Video --port {port}`" in said
    assert "services/visionreward/README.md" in said
    assert "\n" not in said
    assert reward.identity()["checklist"] == "colors 3"  # for a plan, nothing need run
    with pytest.raises(Unavailable, match="does not answer"):
        _ = VisionReward(settings_of(f"http://127.0.0.1:{port}", "a/model")).checklist


def test_the_command_it_tells_starts_it(tmp_path: Path) -> None:
    port = free_port()
    settings = settings_of(f"http://127.0.0.1:{port}", tmp_path, revision="r7")
    reward = VisionReward(settings)
    with pytest.raises(Unavailable, match=f"--model {tmp_path} --port {port} --revision r7`"):
        reward.answer(QUERIES[:1], CLIPS[:1])
    with running_service(tmp_path, "--revision", "r7", adapter="ColorScores", port=port) as address:
        assert urlsplit(address).port == port
        assert len(answers_of(reward.answer(QUERIES[:1], CLIPS[:1])[0])) == 2


def test_another_model_than_the_profiles_is_refused(service: str, folder: Path, tmp_path: Path) -> None:
    checklist = color_checklist_file(tmp_path)
    with pytest.raises(Unavailable, match=rf"serves {folder}, but the profile asks for other/model"):
        VisionReward(settings_of(service, "other/model", checklist=checklist)).answer(QUERIES[:1], CLIPS[:1])
    with pytest.raises(Unavailable, match=r"asks for .* at abc"):
        VisionReward(settings_of(service, folder, checklist=checklist, revision="abc")).answer(QUERIES[:1], CLIPS[:1])


def test_a_model_that_answers_needs_a_checklist_and_one_that_scores_takes_none(
    service: str, folder: Path, scoring: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="set `checklist`"):
        VisionReward(settings_of(service, folder)).answer(QUERIES[:1], CLIPS[:1])
    with pytest.raises(Unavailable, match="remove `checklist`"):
        VisionReward(settings_of(*scoring, checklist=color_checklist_file(tmp_path))).answer(QUERIES[:1], CLIPS[:1])


def health(**changes: Any) -> str:
    return json.dumps(
        {
            "protocol": 1,
            "model": "m",
            "revision": None,
            "kind": "checklist",
            "scores": None,
            "most_bytes": 10_000_000,
            "most_clips": 64,
            **changes,
        }
    )


def yes_to_all(asked: Asked) -> list[Any]:
    """A good result for each clip of a request."""
    clips = asked.body["clips"]
    return [{"answers": [{"answer": "yes", "probability": None} for _ in clip["questions"]]} for clip in clips]


class Saying:
    """A stub of the service: `results` makes what it answers to a request for answers."""

    def __init__(self, results: Any, **health: Any) -> None:
        self.results = results
        self.health = health

    def __call__(self, asked: Asked) -> Answer:
        if asked.path.endswith("/health"):
            return Answer(health(**self.health))
        made = self.results(asked)
        return (
            made if isinstance(made, Answer) else Answer(json.dumps({"model": "m", "revision": None, "results": made}))
        )


@pytest.mark.parametrize(
    "said",
    [
        Answer(""),
        Answer("[]"),
        Answer(health(protocol=2)),
        Answer(health(kind="scalar")),
        Answer(health(most_bytes="many")),
        Answer(health(kind="scalar", scores=[{"name": "a", "low": 1, "high": 0, "weight": 1}])),
        Answer(health(kind="scalar", scores=[])),
        error(404, "no such page"),
    ],
)
def test_what_is_no_service_of_ours_is_not_asked(tmp_path: Path, said: Answer) -> None:
    with StubEndpoint(lambda asked: said) as stub:
        reward = VisionReward(settings_of(stub.base_url, "m", checklist=color_checklist_file(tmp_path)))
        with pytest.raises(Unavailable, match="does not answer: start it with"):
            reward.answer(QUERIES[:1], CLIPS[:1])


NO_RESULTS: list[Any] = [
    None,
    7,
    {},
    {"answers": None},
    {"answers": []},
    {"answers": [{"answer": "yes"}] * 4},
    {"answers": [{"answer": "yes"}] * 6},
    {"answers": [{"answer": "yes"}] * 4 + [{"answer": "perhaps"}]},
    {"answers": [{"answer": "yes"}] * 4 + [{"answer": True}]},
    {"answers": [{"answer": "yes"}] * 4 + ["yes"]},
    {"answers": [{"answer": "yes"}] * 4 + [{"answer": "no", "probability": 1.5}]},
    {"answers": [{"answer": "yes"}] * 4 + [{"answer": "no", "probability": "0.5"}]},
    {"answers": [{"answer": "yes"}] * 4 + [{"answer": "no", "probability": True}]},
    {"scores": {"a": 1.0}},
    {"error": "\x1b[2Jno\nluck"},
]


@pytest.mark.parametrize("bad", NO_RESULTS)
def test_a_damaged_result_fails_its_clip_only(tmp_path: Path, bad: Any) -> None:
    def damaged(asked: Asked) -> list[Any]:
        return [yes_to_all(asked)[0], bad, yes_to_all(asked)[2]]

    with StubEndpoint(Saying(damaged)) as stub:
        reward = VisionReward(settings_of(stub.base_url, "m", checklist=color_checklist_file(tmp_path)))
        first, failed, last = reward.answer(QUERIES[:3], CLIPS[:3])
        assert len(answers_of(first)) == len(answers_of(last)) == 5
        assert isinstance(failed, Failed)
        assert failed.reason.isprintable()
        assert len([asked for asked in stub.asked if asked.method == "POST"]) == 1


@pytest.mark.parametrize("scores", [None, {}, {"a": 1}, {"a": "1", "b": 2}, {"a": True, "b": 2}, {"a": 1, "b": 2.1}])
def test_damaged_scores_fail_their_clip_only(scores: Any) -> None:
    scales = [{"name": name, "low": 0, "high": 2, "weight": 1} for name in "ab"]
    good = {"scores": {"a": 0, "b": 2, "more": 9}}
    saying = Saying(lambda asked: [good, {"scores": scores}], kind="scalar", scores=scales)
    with StubEndpoint(saying) as stub:
        fine, failed = VisionReward(settings_of(stub.base_url, "m")).answer(QUERIES[:2], CLIPS[:2])
        assert answers_of(fine) == [Given("a", False, 0.0), Given("b", True, 1.0)]
        assert isinstance(failed, Failed)


@pytest.mark.parametrize("how", ["refused", "too few results", "another model"])
def test_a_request_that_comes_to_nothing_is_asked_clip_by_clip(tmp_path: Path, how: str) -> None:
    def picky(asked: Asked) -> Any:
        if all("green" not in clip["query"] for clip in asked.body["clips"]):
            return yes_to_all(asked)
        if how == "refused":
            return error(400, "no green, please")
        if how == "too few results":
            return []
        return Answer(json.dumps({"model": "other", "revision": None, "results": yes_to_all(asked)}))

    with StubEndpoint(Saying(picky)) as stub:
        reward = VisionReward(settings_of(stub.base_url, "m", checklist=color_checklist_file(tmp_path)))
        first, green, last = reward.answer(QUERIES[:3], CLIPS[:3])
        assert len(answers_of(first)) == len(answers_of(last)) == 5
        assert isinstance(green, Failed)
        assert len(stub.asked) == 1 + 1 + 3


def test_when_it_goes_away_the_rest_is_skipped(tmp_path: Path) -> None:
    def once(asked: Asked) -> Any:
        return yes_to_all(asked) if "red" in asked.body["clips"][0]["query"] else error(401, "gone")

    with StubEndpoint(Saying(once)) as stub:
        settings = settings_of(
            stub.base_url, "m", checklist=color_checklist_file(tmp_path), batch_size=1, concurrency=1
        )
        first, second, third = VisionReward(settings).answer(["red", "green", "blue"], CLIPS[:3])
        assert len(answers_of(first)) == 5
        assert isinstance(second, Skipped)
        assert isinstance(third, Skipped)


def test_the_profile_builds_it_and_the_identity_changes_with_what_decides(tmp_path: Path) -> None:
    checklist = color_checklist_file(tmp_path)
    settings = settings_of("http://127.0.0.1:1", "m", checklist=checklist)
    reward = build_video_reward(settings)
    assert isinstance(reward, VisionReward)
    assert reward.checklist == COLOR_CHECKLIST
    identity = reward.identity()
    for same in ({"batch_size": 9}, {"concurrency": 3}, {"base_url": "http://127.0.0.1:2"}):
        assert VisionReward(settings.model_copy(update=same)).identity() == identity
    assert VisionReward(settings.model_copy(update={"revision": "2"})).identity() != identity
    assert VisionReward(settings.model_copy(update={"model": "other"})).identity() != identity
    assert VisionReward(settings, fps=16).identity() != identity
    checklist.write_text(checklist.read_text().replace("2.0", "2.5"))
    assert VisionReward(settings).identity() != identity
