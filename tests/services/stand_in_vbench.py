"""A package with VBench's interface and none of its weights, installed where the service looks for it.

It has the classes that the service uses, with their real signatures (vbench 0.1.5), and scores a video
by how bright it is.
"""

import json
import sys
from pathlib import Path

SOURCE = """
import json, os
import av


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info_dir, self.output_path = device, full_info_dir, output_path

    def build_full_info_json(self, videos_path, name, dimension_list, prompt_list=[], mode="vbench_standard", **kwargs):
        raise AssertionError("the service says itself which videos there are")

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        behaviour = os.environ.get("VBENCH_CACHE_DIR", "")
        if "without_weights" in behaviour:
            import subprocess
            command = ["wget", "https://example.org/weights.pth", "-P", "/cache/umt_model"]
            raise subprocess.CalledProcessError(4, command)
        if "broken" in behaviour:
            raise RuntimeError("CUDA out of memory")
        (dimension,) = dimension_list
        info = json.load(open(self.build_full_info_json(videos_path, name, dimension_list, prompt_list, mode=mode)))
        results = []
        for entry in info:
            assert dimension in entry["dimension"]
            for path in entry["video_list"]:
                assert os.path.basename(path) == entry["prompt_en"] + "-0.mp4"
                with av.open(path) as container:
                    frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
                value = float(frame.mean()) / 255
                result = value > 0.5 if dimension == "human_action" else value
                results.append({"video_path": path, "video_results": result})
        if "skipping" in behaviour:
            results = results[1:]
        if "nan" in behaviour:
            results[0]["video_results"] = float("nan")
        out = os.path.join(self.output_path, name + "_eval_results.json")
        json.dump({dimension: [0.0, results]}, open(out, "w"))
"""

DECORD = """
import av


class VideoReader:
    def __init__(self, path, num_threads=0):
        with av.open(path) as container:
            self.count = sum(1 for _ in container.decode(video=0))

    def __len__(self):
        return self.count
"""

TORCH = "def device(name):\n    return name\n"

FULL_INFO = [
    {"prompt_en": "A person is riding a bike", "dimension": ["human_action"]},
    {"prompt_en": "A person is marching", "dimension": ["human_action"]},
    {
        "prompt_en": "alley",
        "dimension": ["scene", "background_consistency"],
        "auxiliary_info": {"scene": {"scene": {"scene": "alley"}}},
    },
    {
        "prompt_en": "a cat and a dog",
        "dimension": ["multiple_objects"],
        "auxiliary_info": {"multiple_objects": {"object": "cat and dog"}},
    },
    {
        "prompt_en": "A beach, Van Gogh style",
        "dimension": ["appearance_style"],
        "auxiliary_info": {"appearance_style": {"appearance_style": "Van Gogh style"}},
    },
    {"prompt_en": "a/../escape", "dimension": ["scene"], "auxiliary_info": {"scene": {"scene": {"scene": "x"}}}},
]


def stand_in_interpreter(folder: Path, *, version: str = "0.1.5", installed: bool = True) -> Path:
    """An interpreter that finds the stand-in, and av, which this one has; `installed`: whether it finds it at all."""
    import av

    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for name, source in (("decord", DECORD), ("torch", TORCH)):
        (packages / f"{name}.py").write_text(source)
    if installed:
        (packages / "vbench").mkdir(exist_ok=True)
        (packages / "vbench" / "__init__.py").write_text(SOURCE)
        (packages / "vbench" / "VBench_full_info.json").write_text(json.dumps(FULL_INFO))
        (packages / f"vbench-{version}.dist-info").mkdir(exist_ok=True)
        about = f"Metadata-Version: 2.1\nName: vbench\nVersion: {version}\n"
        (packages / f"vbench-{version}.dist-info" / "METADATA").write_text(about)
    start = folder / "start.py"
    start.write_text(
        "import runpy, sys\n"
        f"sys.path[:0] = [{str(packages)!r}]\n"
        f"sys.path.append({str(Path(av.__file__).parent.parent)!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    interpreter = folder / "python"
    # The first word is -I, which the real interpreter takes.
    interpreter.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -I "{start}" "$@"\n')
    interpreter.chmod(0o755)
    return interpreter
