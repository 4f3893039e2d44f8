"""The trainer as a keeper of processes; the trainings themselves are in tests/ml/test_fine_tuning.py."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from ml.fine_tuning import TrainingJob, TrainingSettings
from resources.settings import ACCELERATE_CONFIGS, LAUNCHES, TrainerSettings
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
        sys.exit("no room on the moon")
    """
    with pytest.raises(TrainingFailed) as caught:
        Scripted(program).train("dpo", a_job(tmp_path), lambda _: None)
    message = str(caught.value).splitlines()
    assert "dpo ended with status 1" in message[0]
    assert str(tmp_path / "work" / "training.log") in message[0]
    assert message[-1] == "no room on the moon"
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


# ---- several devices ---------------------------------------------------------------------------------------------


def command_of(folder: Path, **settings: Any) -> list[str]:
    """The command that a training is started with, behind the interpreter."""
    job = a_job(folder)
    file = folder / "job.json"
    file.write_text(job.model_dump_json())
    return build_trainer(TrainerSettings.model_validate(settings))._command("dpo", file)[1:]


def understood(folder: Path, **settings: Any) -> tuple[Any, Any]:
    """What accelerate itself makes of that command: its arguments, and those that it took from the config."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    command = command_of(folder, **settings)
    assert command[:2] == ["-m", "accelerate.commands.launch"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command[2:]))
    assert (arguments.module, arguments.training_script) == (True, "ml.dpo")
    assert arguments.training_script_args == [str(folder / "job.json")]
    assert arguments.main_process_port == 0  # two trainings may run at once
    assert arguments.mixed_precision == "bf16"  # the job's dtype
    return arguments, defaults


def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    assert command_of(tmp_path) == ["-m", "ml.dpo", str(tmp_path / "job.json")]


def test_arguments_of_the_launcher_are_passed_on(tmp_path: Path) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
    assert command_of(tmp_path, launch=["--num_processes", "2"]) == [
        *launcher,
        *("-m", "ml.dpo", str(tmp_path / "job.json")),
    ]
    arguments, _ = understood(tmp_path, accelerate="ddp", processes=4, launch=["--gpu_ids", "4,5,6,7"])
    assert (arguments.num_processes, arguments.gpu_ids) == (4, "4,5,6,7")


def test_accelerate_takes_the_config_of_one_process(tmp_path: Path) -> None:
    arguments, _ = understood(tmp_path, accelerate="single")
    assert arguments.num_processes == 1
    assert not (arguments.multi_gpu or arguments.use_fsdp or arguments.use_deepspeed)


def test_accelerate_takes_the_config_of_copies(tmp_path: Path) -> None:
    arguments, _ = understood(tmp_path, accelerate="ddp", processes=8)
    assert arguments.multi_gpu and arguments.num_processes == 8
    assert not (arguments.use_fsdp or arguments.use_deepspeed)


def test_accelerate_takes_the_config_of_fsdp(tmp_path: Path) -> None:
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments, defaults = understood(tmp_path, accelerate="fsdp", processes=8)
    assert arguments.use_fsdp and arguments.num_processes == 8
    assert str(defaults.distributed_type) == "DistributedType.FSDP"
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert environment["FSDP_OFFLOAD_PARAMS"] == "false"


def test_accelerate_takes_the_config_of_zero3(tmp_path: Path) -> None:
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    arguments, defaults = understood(tmp_path, accelerate="zero3", processes=8)
    assert arguments.use_deepspeed and arguments.num_processes == 8
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment  # those of the training


def test_a_config_of_one_s_own_is_used(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text((ACCELERATE_CONFIGS / "ddp.yaml").read_text() + "num_processes: 7\n")
    arguments, _ = understood(tmp_path, accelerate=str(own), processes=3)
    assert (arguments.multi_gpu, arguments.num_processes) == (True, 3)


def test_every_shipped_config_has_a_name_in_the_settings() -> None:
    shipped = {file.stem for file in ACCELERATE_CONFIGS.glob("*.yaml")}
    assert shipped == set(LAUNCHES) - {"none"}
    for name in shipped:
        assert TrainerSettings(accelerate=name).accelerate_config == ACCELERATE_CONFIGS / f"{name}.yaml"


def test_auto_is_a_process_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.trainer._gpus", lambda: 4)
    assert understood(tmp_path, accelerate="ddp")[0].num_processes == 4
    monkeypatch.setattr("resources.trainer._gpus", lambda: 0)
    assert understood(tmp_path, accelerate="ddp")[0].num_processes == 1


@pytest.mark.parametrize(
    ("settings", "visible", "seen"),
    [
        ({}, None, "0"),  # TRL refuses to share one process between GPUs
        ({}, "2,3", "2"),
        ({}, "", ""),
        ({"accelerate": "single"}, "GPU-8f3a,GPU-77b0", "GPU-8f3a"),
        ({"accelerate": "ddp"}, "2,3", "2,3"),
        ({"launch": ["--multi_gpu"]}, "2,3", "2,3"),
    ],
)
def test_a_process_that_is_alone_sees_one_gpu(settings: dict[str, Any], visible: str | None, seen: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    chosen = build_trainer(TrainerSettings.model_validate(settings))._environment({"HOME": "/h", **environment})
    assert (chosen["CUDA_VISIBLE_DEVICES"], chosen["HOME"]) == (seen, "/h")


def test_a_process_that_is_alone_is_told_of_no_others() -> None:
    of_the_run = {"WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3", "HOME": "/h"}
    assert not build_trainer(TrainerSettings())._environment(of_the_run).keys() & {"WORLD_SIZE", "RANK", "LOCAL_RANK"}


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({}, "work"),
        ({"accelerate": "ddp", "processes": 2}, "work"),  # whole states, which any number of processes can go on from
        ({"accelerate": "fsdp", "processes": 2}, "work/fsdp-2"),
        ({"accelerate": "zero3", "processes": 8}, "work/zero3-8"),
        ({"accelerate": "/etc/own.yaml", "processes": 4}, "work/own-4"),
    ],
)
def test_states_in_pieces_are_kept_apart(tmp_path: Path, settings: dict[str, Any], states: str) -> None:
    trainer = build_trainer(TrainerSettings.model_validate(settings))
    assert trainer._with_own_states(a_job(tmp_path)).work == tmp_path / states


def test_nothing_of_a_training_is_reported_to_anyone() -> None:
    assert build_trainer(TrainerSettings())._environment({})["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("accelerate", "said"),
    [("/nowhere/own.yaml", "there is no such file"), ("zero3", "needs DeepSpeed: pip install 'deepspeed>=0.18.6'")],
)
def test_what_cannot_start_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerate: str, said: str
) -> None:
    monkeypatch.setattr("resources.trainer.find_spec", lambda name: None)
    with pytest.raises(TrainingFailed, match=said):
        build_trainer(TrainerSettings(accelerate=accelerate)).train("sft", a_job(tmp_path), lambda _: None)


# ---- what is said of failures --------------------------------------------------------------------------------------


def test_the_first_reason_stands_before_the_launcher_s_report(tmp_path: Path) -> None:
    program = """
        import sys
        print("Traceback: the true one")
        print('vpo-failure "ValueError: too narrow"')
        print('vpo-failure "RuntimeError: the other one went away"')
        for line in range(100):
            print("ChildFailedError", line)
        sys.exit(1)
    """
    with pytest.raises(TrainingFailed) as caught:
        Scripted(program).train("sft", a_job(tmp_path), lambda _: None)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("sft ended with status 1: ValueError: too narrow; the log is ")
    assert rest == ["Traceback: the true one"]
    assert "ChildFailedError 99" in (tmp_path / "work" / "training.log").read_text()


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        (
            """import sys; print('vpo-failure "OutOfMemoryError: CUDA out of memory"'); sys.exit(1)""",
            "micro_batch_size",
        ),
        ("import sys; sys.exit('torch.cuda.OutOfMemoryError: CUDA out of memory.')", "micro_batch_size"),
        ("import os; os.kill(os.getpid(), 9)", "for want of main memory"),
    ],
)
def test_a_want_of_memory_comes_with_advice(tmp_path: Path, program: str, advice: str) -> None:
    with pytest.raises(TrainingFailed, match=advice):
        Scripted(program).train("sft", a_job(tmp_path), lambda _: None)
