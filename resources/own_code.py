"""Backends that users write themselves: one Python file, named in the profile.

Belongs here: loading that file, and holding what it makes to the interface of its kind, so that a mistake in it is told
as such and the files of others are not blamed. Does not belong here: the interfaces (video_generator.py, judge.py,
video_reward.py).

The file runs in this process with all its rights, as any import does: the profile's author names it, nobody else can.
"""

import hashlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from ml.checklist import Checklist
from ml.rules import Critique
from resources.backend_settings import OwnCodeSettings, OwnVideoGeneratorSettings
from resources.judge import Judgement
from resources.language_model import Identity
from resources.outcome import Failed, Outcome, Skipped, Unavailable
from resources.video_generator import Clip
from resources.video_reward import Answer

T = TypeVar("T")


class _OwnCode:
    """What a user's function makes, made when it is first needed."""

    needs: tuple[str, ...] = ("identity", "close")
    work = ""

    def __init__(self, settings: OwnCodeSettings) -> None:
        self._settings = settings
        self._where = f"{settings.backend}: {settings.make}"

    @cached_property
    def _own(self) -> Any:
        name, _, function = self._settings.make.rpartition(":")
        module = _loaded(Path(name).expanduser().absolute())
        make = getattr(module, function, None)
        if not callable(make):
            raise Unavailable(f"{self._where}: the file has no function or class {function}")
        try:
            own = make(**self._settings.arguments)
        except Exception as error:
            raise Unavailable(f"{self._where} does not work with its arguments: {_said(error)}") from error
        missing = [name for name in (*self.needs, self.work) if not hasattr(own, name)]
        if missing:
            raise Unavailable(f"{self._where} makes a {type(own).__name__}, which has no {', no '.join(missing)}")
        return own

    def identity(self) -> Identity:
        """What it says of itself, and the hash of its file: another file makes other rows."""
        said = self._own.identity()
        try:
            own = json.dumps(said, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise Unavailable(f"{self._where}: identity() must give plain values: {error}") from error
        code = hashlib.sha256(Path(self._settings.make.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()
        arguments = json.dumps(self._settings.arguments, sort_keys=True)
        return {"backend": "python", "own": own, "arguments": arguments, "code": code[:24]}

    def close(self) -> None:
        if "_own" in self.__dict__:
            self._own.close()
            del self._own

    def _one_each(self, given: Any, wanted: int) -> Sequence[Any]:
        if not isinstance(given, Sequence) or len(given) != wanted:
            found = f"{len(given)}" if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise ValueError(f"{self._where}: {self.work}() must give a list of {wanted}, and gave {found}")
        return given

    def _checked(self, given: Any, fault: str | None, made: T) -> Outcome[T]:
        if isinstance(given, Failed | Skipped):
            return given
        return Failed(f"{self._where}: {self.work}() {fault}") if fault else made


class OwnVideoGenerator(_OwnCode):
    """A VideoGenerator."""

    work = "generate"

    def __init__(self, settings: OwnVideoGeneratorSettings) -> None:
        super().__init__(settings)
        self.fps = settings.fps

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Outcome[Clip]]:
        clips = self._one_each(self._own.generate(list(prompts), list(seeds)), len(prompts))
        return [self._checked(clip, _no_clip(clip), clip) for clip in clips]


class OwnJudge(_OwnCode):
    """A Judge. The user's gives a Critique each, or a Judgement where tokens are to be counted."""

    work = "critique"

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Outcome[Judgement]]:
        given = self._one_each(self._own.critique(list(queries), list(prompts)), len(prompts))
        judged = [Judgement(one) if isinstance(one, Critique) else one for one in given]
        return [self._checked(one, _no_judgement(one), one) for one in judged]


class OwnVideoReward(_OwnCode):
    """A VideoReward."""

    needs = ("identity", "close", "checklist")
    work = "answer"

    @property
    def checklist(self) -> Checklist:
        checklist = self._own.checklist
        if not isinstance(checklist, Checklist):
            raise Unavailable(f"{self._where}: checklist must be a Checklist, not a {type(checklist).__name__}")
        return checklist

    def identity(self) -> Identity:
        return {**super().identity(), "checklist": self.checklist.name, "version": self.checklist.version}

    def answer(self, queries: Sequence[str], clips: Sequence[Clip]) -> list[Outcome[list[Answer]]]:
        given = self._one_each(self._own.answer(list(queries), list(clips)), len(clips))
        wanted = list(self.checklist.ids)
        return [self._checked(one, _no_answers(one, wanted), one) for one in given]


def _loaded(file: Path) -> ModuleType:
    name = f"vpo_own_code_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise Unavailable(f"python: there is no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise Unavailable(f"python: {file} cannot be loaded: {_said(error, file)}") from error
    return module


def _said(error: Exception, file: Path | None = None) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if str(file) == frame.filename]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")


def _no_clip(clip: Any) -> str | None:
    if isinstance(clip, np.ndarray) and clip.dtype == np.uint8 and clip.ndim == 4 and clip.shape[3] == 3 and clip.size:
        return None
    found = f"{clip.dtype} {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
    return f"must give clips of uint8 (frames, height, width, 3), and gave {found}"


def _no_judgement(judgement: Any) -> str | None:
    if not isinstance(judgement, Judgement) or not isinstance(judgement.critique, Critique):
        return f"must give a Critique each, and gave a {type(judgement).__name__}"
    critique = judgement.critique
    fine = critique.harmless and critique.accurate and critique.helpful
    return (
        None if fine == critique.aligned else f"says {critique.verdict} of a prompt whose three answers say otherwise"
    )


def _no_answers(answers: Any, wanted: Sequence[str]) -> str | None:
    if not isinstance(answers, Sequence) or not all(isinstance(answer, Answer) for answer in answers):
        return "must give a list of Answer for each clip"
    given = [answer.question for answer in answers]
    return None if given == wanted else f"must answer {', '.join(wanted)} in that order, and answered {given}"
