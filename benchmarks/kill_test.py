"""Kill runs of the embedded pipeline with small models at random moments, and look at what they leave.

    python -m benchmarks.kill_test                                    # 184 kills of runs, 16 of runs that really train
    python -m benchmarks.kill_test --kills 8 --training-kills 0        # a quick look

Runs are `vpo materialize` in processes of their own over fresh homes: the real command, Dagster instance, lake, stores
and refresh, with small stand-ins for the models that take a random moment for every row, so that kills (SIGKILL) fall
into everything: before the first asset, between rows, into commits, into training, between assets. A run is killed
after a random time, the next one resumes, until one gets to its end or the home has had its share of kills. With
`--training-kills` the real TRL trainer trains a tiny model in its own process group, and half the kills that fall into
a training hit that group instead of the run.

After every kill: no row that was committed is gone, no key and no (input_id, recipe) is there twice, every video row
has its whole file, and no process of the run is left. At the end: every table and training file equals that of an
undisturbed run, one more run finds nothing to do, every file has its row once the store is tidied, and no kill made
more than one batch be worked on again. Any of that failing is told, and ends the command with status 1.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from tests.assets.kills import TEXT_BATCH, VIDEO_BATCH, Killed, Tally, a_stage, campaign
from vpo_assets.report.tables import print_tables

KILLS_A_HOME = 30


def kill(folder: Path, kills: int, longest: float, rng: random.Random, *, trains: bool) -> tuple[Tally, int]:
    """So many kills over as many homes as it takes, and how many homes that were."""
    total, homes = Tally(), 0
    with a_stage() as stage:
        reference = Killed(stage, folder / "undisturbed", trains=trains)
        reference.finish()
        while total.kills.total() < kills:
            share = min(KILLS_A_HOME, kills - total.kills.total())
            tally = campaign(stage, folder / f"home{homes}", reference, share, longest, rng)
            homes += 1
            total.add(tally)
            print(f"home {homes - 1}: {tally.kills.total()} kills, problems: {tally.problems or 'none'}", flush=True)
    return total, homes


def main() -> None:
    """Kill, count, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=184)
    parser.add_argument("--training-kills", type=int, default=16, help="of runs with the real trainer")
    parser.add_argument("--longest", type=float, default=6.0, help="seconds after which a run is killed at the latest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the homes are made; some 20 MB each")
    chosen = parser.parse_args()
    rng, started = random.Random(chosen.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-test-", dir=chosen.folder) as work:
        total, homes = Tally(), 0
        parts = ((chosen.kills, chosen.longest, False), (chosen.training_kills, 4 * chosen.longest, True))
        for kills, longest, trains in parts:
            if kills:
                more, further = kill(Path(work) / f"trains-{trains}", kills, longest, rng, trains=trains)
                total.add(more)
                homes += further
    seconds = time.monotonic() - started
    figures = {
        "kills": total.kills.total(),
        **dict(total.kills),
        "homes": homes,
        "runs that ended before their kill": total.ended_before,
        "rows worked on again, all kills": sum(total.repeated),
        "rows worked on again, worst kill": max(total.repeated, default=0),
        "batch of texts / videos": f"{TEXT_BATCH} / {VIDEO_BATCH}",
        "video files without a row, removed": total.removed_files,
        "unfinished checkpoint folders left": total.unfinished_checkpoints,
        "problems": len(total.problems),
        "minutes": f"{seconds / 60:.1f}",
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    tables = {"Kills": [{"what": what, "count": str(count)} for what, count in figures.items()]}
    tables["Where they fell"] = [{"asset": a, "kills": str(n)} for a, n in sorted(total.fell_in.items())]
    print_tables(tables)
    if total.problems:
        raise SystemExit("\n".join(total.problems))


if __name__ == "__main__":
    main()
