"""What steps print: kept in files, with no process beside the run."""

import subprocess
import sys
from pathlib import Path

PRINTING = """
import os, subprocess, sys
import psutil
from resources.settings import load_profile
from vpo_assets.instance import prepared_instance

with prepared_instance(load_profile()) as instance:
    logs = instance.compute_log_manager
    key = ["a_run", "compute_logs", "a_step"]
    with logs.capture_logs(key):
        print("printed by the step", flush=True)
        subprocess.run(["sh", "-c", "echo printed by a child; echo a complaint >&2"], check=True)
        beside = len(psutil.Process().children())
        assert not logs.is_capture_complete(key)
    kept = logs.get_log_data(key)
    assert logs.is_capture_complete(key)
print(beside, kept.stdout.decode().splitlines(), kept.stderr.decode().splitlines())
print(sorted(os.path.relpath(os.path.join(folder, name), os.environ["DAGSTER_HOME"])
             for folder, _, names in os.walk(os.path.join(os.environ["DAGSTER_HOME"], "storage"))
             for name in names if name.startswith("a_step")))
"""


def test_what_a_step_prints_is_kept_and_no_process_beside_it_is_started(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PRINTING],
        env={"VPO_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "0 ['printed by the step', 'printed by a child'] ['a complaint']",
        str([f"storage/a_run/compute_logs/a_step.{ending}" for ending in ("complete", "err", "out")]),
    ]
