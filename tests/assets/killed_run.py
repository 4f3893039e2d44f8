"""`vpo` in processes that are there to be killed: the real command, instance, lake, stores and refresh, small models.

Belongs here: the stage (a process with everything imported, which forks one process for each run, so that a run starts
at once) and the platform that writes down each row it works on. Does not belong here: who kills, and what must hold
afterwards (kills.py).

The stage reads one JSON object a line: `arguments` of vpo, `environment` and the file that takes its `output`. It
answers with the process id, and with the exit status when the process has ended.
"""

import json
import os
import random
import sys
import time
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from resources.judge import Judge, Judgement, RulesJudge
from resources.language_model import Conversation, JsonSchema, LanguageModel, Reply, Sampling
from resources.outcome import Outcome
from resources.trainer import TrlTrainer
from resources.video_generator import Clip
from resources.video_reward import Answer, PixelReward, VideoReward
from tests.assets.fakes import FakeLanguageModel, FakePlatform, FakeTrainer, FakeVideoGenerator

LOG, DELAY, ATTEMPT, TINY_MODEL = "KILLED_LOG", "KILLED_DELAY", "KILLED_ATTEMPT", "KILLED_TINY_MODEL"


def work_on(kind: str, *key: object) -> None:
    """Say that a row is worked on, in one write that a kill leaves whole or not at all, and take a random moment."""
    line = json.dumps([os.environ[ATTEMPT], kind, *map(str, key)]) + "\n"
    log = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(log, line.encode())
    finally:
        os.close(log)
    time.sleep(random.uniform(0, 2 * float(os.environ[DELAY])))


class LoggedLanguageModel(FakeLanguageModel):
    """Row by row, each written down."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        schema: JsonSchema | None = None,
    ) -> list[Outcome[Reply]]:
        replies: list[Outcome[Reply]] = []
        for conversation, seed in zip(conversations, seeds, strict=True):
            work_on("prompt", self.name, conversation[-1]["content"], seed)
            replies += super().generate([conversation], sampling, [seed], schema=schema)
        return replies


class LoggedCamera(FakeVideoGenerator):
    """The same of videos."""

    def _film(self, prompt: str, seed: int) -> Clip:
        work_on("video", prompt, seed)
        return super()._film(prompt, seed)


class LoggedJudge(RulesJudge):
    """The same of critiques."""

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Outcome[Judgement]]:
        judged: list[Outcome[Judgement]] = []
        for query, prompt in zip(queries, prompts, strict=True):
            work_on("critique", query, prompt)
            judged += super().critique([query], [prompt])
        return judged


class LoggedReward(PixelReward):
    """The same of rewards."""

    def answer(self, queries: Sequence[str], clips: Sequence[Clip]) -> list[Outcome[list[Answer]]]:
        answered: list[Outcome[list[Answer]]] = []
        for query, clip in zip(queries, clips, strict=True):
            work_on("reward", query, zlib.crc32(clip.tobytes()))
            answered += super().answer([query], [clip])
        return answered


class LoggedTrainer(FakeTrainer):
    """The same of trainings."""

    def train(self, method: Any, job: Any, on_progress: Any) -> None:
        work_on("training", method, job.output.name.rpartition("-")[0])
        super().train(method, job, on_progress)
        work_on("end of training", method, job.output.name.rpartition("-")[0])


class KilledPlatform(FakePlatform):
    """What runs in the process: stand-ins for the big models, and everything else as it is."""

    @cached_property
    def language_model(self) -> LanguageModel:
        return LoggedLanguageModel("few-shot", self.counts)

    @cached_property
    def base_model(self) -> str:
        return os.environ.get(TINY_MODEL, "fake-base")

    def policy(self, checkpoint_id: str) -> LanguageModel:
        if checkpoint_id not in self._policies:
            self.checkpoints.load(checkpoint_id)
            self._policies[checkpoint_id] = LoggedLanguageModel(checkpoint_id, self.counts)
        return self._policies[checkpoint_id]

    @cached_property
    def judge(self) -> Judge:
        return LoggedJudge()

    @cached_property
    def trainer(self) -> Any:
        return TrlTrainer() if TINY_MODEL in os.environ else LoggedTrainer(self.counts)

    @cached_property
    def camera(self) -> FakeVideoGenerator:
        return LoggedCamera(self.counts)

    @cached_property
    def video_rewards(self) -> dict[str, VideoReward]:
        return {name: LoggedReward() for name in self.profile.targets}


def run(arguments: Sequence[str], environment: dict[str, str], output: str) -> None:
    """Be `vpo` with these arguments; does not return."""
    with Path(output).open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    os.environ.update(environment)
    from vpo_assets import command_line

    try:
        command_line.app(list(arguments))
    except SystemExit as ending:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ending.code if isinstance(ending.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def stage() -> None:
    """Fork a process for each line, and wait for its end."""
    import vpo_assets.platform

    vpo_assets.platform.Platform = KilledPlatform  # type: ignore[misc]  # before anything takes it from there
    import pyarrow.parquet
    import safetensors.torch
    import torch

    import vpo_assets.command_line
    import vpo_assets.instance
    import vpo_assets.progress
    import vpo_assets.running

    assert pyarrow.parquet and safetensors.torch
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("ready", file=answers)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            os.setsid()
            run(order["arguments"], order["environment"], order["output"])
        print(pid, file=answers)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers)


if __name__ == "__main__":
    # Under its own name, so that classes of this module are the same everywhere.
    from tests.assets.killed_run import stage as the_stage

    the_stage()
