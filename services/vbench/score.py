"""VBench in its own environment: videos and the prompts that they are films of go in, scores come out.

    python score.py describe ANSWER
    python score.py score REQUEST ANSWER

Both files are JSON. REQUEST: {"protocol": 1, "package": version, "full_info": path or null, "device": "cuda", "videos":
[{"id", "dimension", "prompt", "path"}]}. ANSWER to score: {"protocol": 1, "package": version, "results": [{"id",
"score"} or {"id", "error"}]}, one for each video, in order; to describe: {"protocol": 1, "package": version,
"full_info": path}. What concerns no single video is {"protocol": 1, "error": text}, with an exit status of 1.

Belongs here: asking the package. Does not belong here: which videos there are, or what scores are worth
(vpo_assets/vbench.py). The file stands alone: nothing but vbench and what it brings is imported, from Python 3.8 on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROTOCOL = 1
PACKAGE = "vbench"
FULL_INFO = "VBench_full_info.json"
DIMENSIONS = ("human_action", "scene", "multiple_objects", "appearance_style")
LONGEST_NAME = 240  # bytes of a file name, beside its number and ending; file systems take 255


class Unusable(Exception):
    """What keeps every video from being scored; says what to do."""


def main() -> int:
    """Answer one request; 0, or 1 where the answer is an error."""
    parser = argparse.ArgumentParser(description="Score videos on dimensions of VBench.")
    commands = parser.add_subparsers(dest="command", required=True)
    describe = commands.add_parser("describe", help="which version this is, and where its prompts are")
    score = commands.add_parser("score", help="score the videos of a request")
    score.add_argument("request", type=Path)
    for command in (describe, score):
        command.add_argument("answer", type=Path)
    arguments = parser.parse_args()
    try:
        answer = described() if arguments.command == "describe" else scored(_read(arguments.request))
    except Unusable as error:
        answer = {"error": str(error)}
    beside = arguments.answer.with_suffix(".writing")
    beside.write_text(json.dumps({"protocol": PROTOCOL, **answer}), encoding="utf-8")
    beside.replace(arguments.answer)
    return 1 if "error" in answer else 0


def described() -> dict[str, Any]:
    """The installed package, without importing it. Raises Unusable where there is none."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise Unusable(
            f"{sys.executable} has no package {PACKAGE}: install services/vbench/requirements.in there"
        ) from None
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return {"package": version, "full_info": str(Path(folders[0]) / FULL_INFO) if folders else None}


def scored(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request. Raises Unusable."""
    if request.get("protocol") != PROTOCOL:
        raise Unusable(f"this is protocol {PROTOCOL}, and was asked for {request.get('protocol')!r}")
    about = described()
    if request.get("package") != about["package"]:
        raise Unusable(f"{sys.executable} has {PACKAGE} {about['package']}, and was asked for {request.get('package')}")
    videos = request["videos"]
    info = _read(Path(request.get("full_info") or about["full_info"]))
    found: dict[str, dict[str, Any]] = {}
    for dimension in dict.fromkeys(video["dimension"] for video in videos):
        own = [video for video in videos if video["dimension"] == dimension]
        found.update(_of_dimension(dimension, own, info, request["device"]))
    return {"package": about["package"], "results": [{"id": video["id"], **found[video["id"]]} for video in videos]}


def _of_dimension(
    dimension: str, videos: list[dict[str, Any]], info: list[dict[str, Any]], device: str
) -> dict[str, dict[str, Any]]:
    """{id: {"score"} or {"error"}} of the videos of one dimension."""
    if dimension not in DIMENSIONS:
        return {video["id"]: {"error": f"the dimensions are {', '.join(DIMENSIONS)}"} for video in videos}
    entries = {entry["prompt_en"]: entry for entry in info if dimension in entry["dimension"]}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="vbench-") as scratch:
        placed: dict[str, str] = {}
        for number, video in enumerate(videos):
            unusable = _fault(video, entries)
            if unusable:
                found[video["id"]] = {"error": unusable}
            else:
                placed[_placed(Path(scratch) / "videos", number, video)] = video["id"]
        if not placed:
            return found
        prompts = {video["id"]: video["prompt"] for video in videos}
        shown: dict[str, list[str]] = {}
        for path, video_id in placed.items():
            shown.setdefault(prompts[video_id], []).append(path)
        asked = [{**entries[prompt], "dimension": [dimension], "video_list": paths} for prompt, paths in shown.items()]
        for path, value in _evaluated(dimension, asked, Path(scratch), device):
            scored = placed.get(path)
            if scored is not None:
                found[scored] = _result(value)
    for video in videos:
        found.setdefault(video["id"], {"error": f"{PACKAGE} gave no result for it"})
    return found


def _fault(video: dict[str, Any], entries: dict[str, dict[str, Any]]) -> str | None:
    """Why a video cannot be given to the package; None if it can."""
    prompt = video["prompt"]
    if prompt not in entries:
        return f"{prompt[:80]!r} is no prompt of {video['dimension']}"
    if "/" in prompt or "\0" in prompt or len(prompt.encode()) > LONGEST_NAME:
        return f"{prompt[:80]!r} cannot be a file's name, which {PACKAGE} wants"
    try:
        import decord

        if not len(decord.VideoReader(video["path"], num_threads=1)):
            return "it has no frames"
    except Exception as error:  # the reader raises errors of many kinds
        return f"it cannot be read: {str(error).strip().splitlines()[0][:200] if str(error).strip() else error!r}"
    return None


def _placed(folder: Path, number: int, video: dict[str, Any]) -> str:
    """A link to the video under the name that VBench reads: `<prompt>-<index>.mp4`, in a folder of its own, as several
    methods have films of one prompt."""
    own = folder / str(number)
    own.mkdir(parents=True)
    link = own / f"{video['prompt']}-0.mp4"
    link.symlink_to(Path(video["path"]).resolve())
    return str(link)


def _evaluated(dimension: str, asked: list[dict[str, Any]], scratch: Path, device: str) -> list[tuple[str, Any]]:
    """(path, result) of every video that the package has a result for. Raises Unusable."""
    try:
        import torch
        from vbench import VBench
    except ImportError as error:
        raise Unusable(f"{PACKAGE} cannot be imported ({error}): install services/vbench/requirements.in") from error

    info = scratch / "asked_full_info.json"
    info.write_text(json.dumps(asked), encoding="utf-8")

    class Given(VBench):  # type: ignore[misc]
        """The package with the videos of a list in the place of those that it would look for in one folder, where a
        prompt has five at most."""

        def build_full_info_json(self, *_: Any, **__: Any) -> str:
            return str(info)

    try:
        bench = Given(torch.device(device), str(info), str(scratch))
        # local: the weights are read from VBENCH_CACHE_DIR, and are fetched into it where they are missing.
        bench.evaluate(videos_path=str(scratch), name=dimension, dimension_list=[dimension], local=True)
    except subprocess.CalledProcessError as error:
        raise Unusable(f"{dimension}: {_not_fetched(error)}") from error
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise Unusable(f"{dimension}: {PACKAGE} failed: {type(error).__name__}: {said[-1][:300]}") from error
    results = json.loads((scratch / f"{dimension}_eval_results.json").read_text(encoding="utf-8"))
    return [(one["video_path"], one["video_results"]) for one in results[dimension][1]]


def _not_fetched(error: subprocess.CalledProcessError) -> str:
    """Which file of weights is missing, and where it belongs."""
    words = [str(word) for word in error.cmd] if isinstance(error.cmd, (list, tuple)) else []
    address = next((word for word in words if word.startswith("http")), None)
    folder = words[words.index("-P") + 1] if "-P" in words[:-1] else os.environ.get("VBENCH_CACHE_DIR")
    if address is None:
        return f"a command of {PACKAGE} failed: {error}"
    return f"its weights cannot be fetched: put {address} into {folder} yourself"


def _result(value: Any) -> dict[str, Any]:
    """A video's result as a score; VBench's are shares or similarities."""
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value) or not -1 <= value <= 1:
        return {"error": f"{PACKAGE} gave {str(value)[:80]!r}, which is no score from -1 to 1"}
    return {"score": float(value)}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"{file} cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
