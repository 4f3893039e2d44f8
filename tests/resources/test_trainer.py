"""The trainer as a keeper of processes; the trainings themselves are in tests/ml/test_fine_tuning.py."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ml.fine_tuning import TrainingJob, TrainingSettings
from resources.settings import TrainerSettings
from resources.trainer import LINES_SHOWN, TrainingFailed, TrlTrainer, build_trainer


class Scripted(TrlTrainer):
    """The trainer with a little program in the place of the training."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.program = textwrap.dedent(program)

    def _command(self, method: str, job_file: Path) -> list[str]:
        return [sys.executable, "-u", "-c", self.program, method, str(job_file)]


def a_job(folder: Path) -> TrainingJob:
    return TrainingJob(
        base_model="tiny",
        data=folder / "data.parquet",
        work=folder / "work",
        output=folder / "output",
        sft=TrainingSettings(learning_rate=0.1),
    )


def is_gone(pid: int, within: float = 5.0) -> bool:
    """Whether the process ends within so many seconds; a zombie has ended."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def pids_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


def test_progress_arrives_step_by_step_and_everything_else_is_logged(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    program = """
        import sys
        print("loading")
        for step in (1, 2):
            print('vpo-progress {"step": %d, "steps": 2, "loss": 0.5}' % step)
        sys.stderr.write("a warning\\n")
        sys.stdout.buffer.write(b"\\xff no utf-8\\n")
    """
    Scripted(program).train("sft", a_job(tmp_path), seen.append)
    assert seen == [{"step": 1, "steps": 2, "loss": 0.5}, {"step": 2, "steps": 2, "loss": 0.5}]
    log = (tmp_path / "work" / "training.log").read_text()
    assert "loading" in log and "a warning" in log and "no utf-8" in log
    assert "vpo-progress" not in log


def test_the_process_gets_the_job_as_it_was_given(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    program = """
        import sys
        from pathlib import Path
        from ml.fine_tuning import TrainingJob
        job = TrainingJob.model_validate_json(Path(sys.argv[2]).read_text())
        Path(job.work, "seen").write_text(f"{sys.argv[1]} {job.model_dump_json()}")
    """
    Scripted(program).train("dpo", job, lambda _: None)
    assert (tmp_path / "work" / "seen").read_text() == f"dpo {job.model_dump_json()}"


def test_a_failure_shows_the_end_of_the_log_and_where_it_is(tmp_path: Path) -> None:
    program = """
        import sys
        for line in range(100):
            print("line", line)
        sys.exit("CUDA out of memory")
    """
    with pytest.raises(TrainingFailed) as caught:
        Scripted(program).train("dpo", a_job(tmp_path), lambda _: None)
    message = str(caught.value).splitlines()
    assert "dpo ended with status 1" in message[0]
    assert str(tmp_path / "work" / "training.log") in message[0]
    assert message[-1] == "CUDA out of memory"
    assert len(message) == 1 + LINES_SHOWN
    assert "line 99" in message[-2]


def test_a_killed_training_is_a_failure_too(tmp_path: Path) -> None:
    program = "import os, signal; print('so far'); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(TrainingFailed, match=r"status -9(.|\n)*so far"):
        Scripted(program).train("sft", a_job(tmp_path), lambda _: None)


def test_whoever_interrupts_the_run_ends_the_training_and_its_children(tmp_path: Path) -> None:
    program = """
        import os, subprocess, sys, time
        from pathlib import Path
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(sys.argv[2]).with_name("pids").write_text(f"{os.getpid()} {child.pid}")
        print('vpo-progress {"step": 1}')
        time.sleep(60)
    """

    def interrupt(_: dict[str, float]) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Scripted(program).train("sft", a_job(tmp_path), interrupt)
    assert time.monotonic() - started < 30
    for pid in pids_in(tmp_path / "work" / "pids"):
        assert is_gone(pid)


def test_a_training_that_will_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.trainer.SECONDS_TO_END", 0.3)
    program = """
        import os, signal, sys, time
        from pathlib import Path
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(sys.argv[2]).with_name("pids").write_text(str(os.getpid()))
        print('vpo-progress {"step": 1}')
        time.sleep(60)
    """

    def interrupt(_: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scripted(program).train("sft", a_job(tmp_path), interrupt)
    assert is_gone(*pids_in(tmp_path / "work" / "pids"))


ENDLESS = """
    import os, sys, time
    from pathlib import Path
    Path(sys.argv[2]).with_name("pids").write_text(str(os.getpid()))
    print('vpo-progress {"step": 1}')
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to their parent on Linux only")
def test_a_run_that_is_killed_leaves_no_training_behind(tmp_path: Path) -> None:
    driver = """
        import sys
        from pathlib import Path
        from tests.resources.test_trainer import ENDLESS, Scripted, a_job
        Scripted(ENDLESS).train("sft", a_job(Path(sys.argv[1])), lambda figures: print(figures["step"], flush=True))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(driver), tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    (pid,) = pids_in(tmp_path / "work" / "pids")
    os.kill(pid, 0)  # it runs
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert is_gone(pid)


def test_several_devices_are_started_by_accelerate() -> None:
    command = build_trainer(TrainerSettings(launch=["--num_processes", "2"]))._command("dpo", Path("job.json"))
    assert command[1:] == ["-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "ml.dpo", "job.json"]
    assert build_trainer(TrainerSettings())._command("sft", Path("job.json"))[1:] == ["-m", "ml.sft", "job.json"]
