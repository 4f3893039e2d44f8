"""The package `vbench`, which lives in an environment of its own, as a scorer of videos.

Belongs here: running services/vbench/score.py by that environment's interpreter, and holding what it says to the
protocol. Does not belong here: what is filmed or what scores are worth (vpo_assets/vbench.py).
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from resources.language_model import Identity
from resources.outcome import Failed, Outcome, Unavailable
from resources.sent_clips import SentClips
from resources.server_answers import quoted
from resources.vbench_settings import VbenchSettings
from resources.video_generator import Clip

COMMAND = Path(__file__).parent.parent / "services" / "vbench" / "score.py"
PROTOCOL = 1
SECONDS_TO_DESCRIBE = 60.0
PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VBENCH_CACHE_DIR", "HF_HOME", "HF_HUB_OFFLINE")
PASSED_ON_FAMILIES = ("CUDA_", "NVIDIA_", "LC_", "TORCH_", "XDG_", "OMP_")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True)
class VbenchPrompt:
    """A prompt of VBench's, and the dimension that it belongs to."""

    dimension: str
    prompt: str


class _Answer(BaseModel):
    """What is the same in every answer; what else a service may say is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    protocol: int
    package: str | None = None
    error: str | None = None


A = TypeVar("A", bound=_Answer)


class _Description(_Answer):
    full_info: str | None = None


class _Result(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    id: str
    score: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    error: str | None = None


class _Scores(_Answer):
    results: list[_Result] = []


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt_en: Annotated[str, Field(min_length=1, max_length=1000)]
    dimension: list[str]


class VbenchScorer:
    """VBench as `settings` name it. Nothing is run before it is asked."""

    def __init__(self, settings: VbenchSettings, *, fps: float, folder: Path | None = None) -> None:
        """`fps` is that of the clips; `folder` is where their files lie while they are scored."""
        self.settings = settings
        self._fps = fps
        self._folder = folder

    def identity(self) -> Identity:
        """What decides a score beside prompt and video. The version is held to when scores are asked for."""
        return {"package": "vbench", "version": self.settings.version, "protocol": PROTOCOL}

    def prompts(self) -> list[VbenchPrompt]:
        """The prompts of the dimensions asked for, in VBench's order. Raises Unavailable."""
        found = []
        for dimension in self.settings.dimensions:
            own = dict.fromkeys(entry.prompt_en for entry in self._entries if dimension in entry.dimension)
            if not own:
                raise Unavailable(f"{self._full_info} has no prompt of the dimension {dimension}")
            found += [VbenchPrompt(dimension, prompt) for prompt in list(own)[: self.settings.prompts_per_dimension]]
        return found

    def score(self, asked: Sequence[VbenchPrompt], clips: Sequence[Clip]) -> list[Outcome[float]]:
        """Each clip's score on its prompt's dimension, as VBench gives it: a share or a similarity, -1 to 1.

        `clips` are uint8 (frames, height, width, 3). A clip without a score is Failed with the reason. Raises
        Unavailable where none can be scored.
        """
        outcomes: dict[int, Outcome[float]] = {}
        videos: list[Mapping[str, str]] = []
        with SentClips(self._folder) as files:
            for n, (one, clip) in enumerate(zip(asked, clips, strict=True)):
                try:
                    path = files.mp4(clip, self._fps)
                except ValueError as error:
                    outcomes[n] = Failed(str(error))
                    continue
                videos.append({"id": str(n), "dimension": one.dimension, "prompt": one.prompt, "path": str(path)})
            if videos:
                outcomes |= self._scores(videos)
        return [outcomes[n] for n in range(len(clips))]

    # ---- the protocol --------------------------------------------------------------------------------------------

    def _scores(self, videos: Sequence[Mapping[str, str]]) -> dict[int, Outcome[float]]:
        request = {
            "protocol": PROTOCOL,
            "package": self.settings.version,
            "full_info": str(self._full_info),
            "device": self.settings.device,
            "videos": list(videos),
        }
        answer = self._asked(_Scores, "score", request, self.settings.timeout)
        if answer.package != self.settings.version:
            raise Unavailable(
                f"{self.settings.python} answers with vbench {quoted(str(answer.package))}, and version is "
                f"{self.settings.version}"
            )
        given = {result.id: result for result in answer.results}
        if len(given) < len(answer.results):
            raise Unavailable(f"{self._who} gave two results for one video")
        return {int(video["id"]): _outcome(given.get(video["id"])) for video in videos}

    @cached_property
    def _full_info(self) -> Path:
        if self.settings.full_info is not None:
            return self.settings.full_info.expanduser().absolute()
        answer = self._asked(_Description, "describe", None, SECONDS_TO_DESCRIBE)
        if answer.full_info is None:
            raise Unavailable(f"{self._who} does not say where VBench_full_info.json is: set full_info")
        return Path(answer.full_info)

    @cached_property
    def _entries(self) -> list[_Entry]:
        try:
            return TypeAdapter(list[_Entry]).validate_json(self._full_info.read_bytes())
        except OSError as error:
            raise Unavailable(f"full_info = {str(self._full_info)!r}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            raise Unavailable(f"{self._full_info} is no VBench_full_info.json: {_first(error)}") from error

    def _asked(self, kind: type[A], command: str, request: object, seconds: float) -> A:
        """What the command answers. Raises Unavailable."""
        with TemporaryDirectory(prefix="vpo-vbench-") as scratch:
            answer, asked = Path(scratch) / "answer.json", Path(scratch) / "request.json"
            if request is not None:
                asked.write_text(json.dumps(request), encoding="utf-8")
            files = [str(answer)] if request is None else [str(asked), str(answer)]
            said = self._run([command, *files], Path(scratch) / "said.txt", seconds)
            try:
                given = kind.model_validate_json(answer.read_bytes())
            except OSError:
                raise Unavailable(f"{self._who} ended without an answer; it said: {quoted(said)}") from None
            except ValidationError as error:
                raise Unavailable(f"{self._who} gave an answer that cannot be read: {_first(error)}") from error
        if given.protocol != PROTOCOL:
            raise Unavailable(f"{self._who} speaks protocol {given.protocol}, and {PROTOCOL} is needed")
        if given.error is not None:
            raise Unavailable(f"vbench: {quoted(given.error)}")
        return given

    def _run(self, arguments: Sequence[str], log: Path, seconds: float) -> str:
        """The last line that the command said, on either stream."""
        python = self.settings.python.expanduser().absolute()  # not resolved: a venv's interpreter is a link
        with log.open("wb") as stream:
            try:
                subprocess.run(  # noqa: S603 (the profile names the program; no shell, and no text of a prompt)
                    [str(python), "-I", str(COMMAND), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    timeout=seconds,
                    check=False,
                )
            except OSError as error:
                raise Unavailable(f"vbench.python = {str(python)!r}: cannot be run ({error.strerror})") from error
            except subprocess.TimeoutExpired:
                raise Unavailable(f"{self._who} took longer than {seconds:g} seconds: raise vbench.timeout") from None
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    @property
    def _who(self) -> str:
        return f"services/vbench/score.py, run by {self.settings.python},"


def _outcome(result: _Result | None) -> Outcome[float]:
    if result is None:
        return Failed("vbench gave no result for this video")
    if result.score is None:
        return Failed(f"vbench: {quoted(result.error or 'neither a score nor an error')}")
    return result.score


def _environment() -> dict[str, str]:
    """What the package needs of ours: it gets no keys, and none of our Python's paths."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_FAMILIES) or name.lower() in PROXIES
    }


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
