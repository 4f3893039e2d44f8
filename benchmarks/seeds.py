"""How much of the result is luck: the whole loop, run from nothing with several seeds.

    python benchmarks/seeds.py --seeds 0 1 2 --folder .vpo-seeds

Each seed has a data folder of its own, and draws its own drafts, candidates, training order and videos. A run that
was interrupted goes on where it stopped. Prints the score of every method and the gains, by seed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vpo_assets.report.tables import print_tables


def run(seed: int, folder: Path) -> dict[str, Any]:
    """Materialize everything with one seed, and read its evaluation."""
    environment = {**os.environ, "VPO_SEED": str(seed), "VPO_HOME": str(folder / f"seed-{seed}")}
    vpo = [sys.executable, "-m", "vpo_assets.command_line"]
    started = time.monotonic()
    subprocess.run([*vpo, "materialize"], env=environment, check=True)
    seconds = time.monotonic() - started
    printed = subprocess.run([*vpo, "evaluation", "--json"], env=environment, check=True, capture_output=True)
    (evaluation,) = json.loads(printed.stdout)["targets"].values()
    return {**evaluation, "seconds": seconds}


def main() -> None:
    """Run every seed and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path(".vpo/seeds"))
    arguments = parser.parse_args()
    results = {seed: run(seed, arguments.folder.resolve()) for seed in arguments.seeds}
    scores = [
        {"seed": seed, **{row["method"]: row["score"] for row in result["video_level"]}}
        for seed, result in results.items()
    ]
    gains = [
        {"seed": seed, **{name: row[name] for name in ("method", "against", "mean", "low", "high")}}
        for seed, result in results.items()
        for row in result["gains"]
    ]
    verdicts = [{"seed": seed, **row} for seed, result in results.items() for row in result["text_level"]]
    print_tables({"Video-level score": scores, "Gains": gains, "Text level, in percent": verdicts})


if __name__ == "__main__":
    main()
