"""`jaxcoll launch`, as a user runs it."""

import contextlib
import dataclasses
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import warm_python

from jaxcoll._cli import launch

LAUNCH = [sys.executable, "-m", "jaxcoll", "launch"]
SLEEPER = "import sys, time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
# -c is not one of the launcher's ways to give a program; a command of its own is.
PYTHON = ["--", sys.executable, "-uc"]


def run_launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm_python.run([*LAUNCH[1:], *arguments], {**os.environ, **environment}, timeout_s=120)


@contextlib.contextmanager
def started(*arguments: str, lines: int) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose processes have printed this many lines."""
    with subprocess.Popen(
        [*LAUNCH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        for _ in range(lines):
            launcher.stdout.readline()
        try:
            yield launcher
        finally:
            launcher.kill()


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 40
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        # The process that adopts an orphan reaps it; a container without an init may leave it a
        # zombie.
        states = [state(pid) for pid in pids]
        if all(s in "ZX" for s in states):
            return
        time.sleep(0.05)
    assert not [pid for pid in pids if state(pid) not in "ZX"]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def test_bare_initialize_finds_the_other_processes(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, jax\n"
        "jax.distributed.initialize()\n"
        "print('rank', jax.process_index(), 'of', jax.process_count(), jax.local_device_count(),\n"
        "      jax.device_count(), jax.default_backend(), sys.argv[1:])\n"
    )
    done = run_launch("-n", "3", "--devices-per-process=2", str(script), "-n", "--", "x")
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "rank" in line) == [
        f"[{rank}] rank {rank} of 3 2 6 cpu ['-n', '--', 'x']" for rank in range(3)
    ]


def test_bare_initialize_works_inside_other_clusters(tmp_path: Path) -> None:
    """Slurm's and Open MPI's variables of an outer job do not describe ours."""
    script = tmp_path / "job.py"
    script.write_text(
        "import jax\njax.distributed.initialize()\nprint(jax.process_index(), jax.process_count())"
    )
    done = run_launch(
        *("-n", "2", str(script)),
        SLURM_JOB_ID="7",
        SLURM_NTASKS="64",
        SLURM_PROCID="5",
        SLURM_LOCALID="1",
        OMPI_MCA_orte_hnp_uri="1.0;tcp://10.0.0.1:1",
        OMPI_VERSION="5.0.1",
        OMPI_COMM_WORLD_SIZE="9",
        OMPI_COMM_WORLD_RANK="8",
    )
    assert sorted(done.stdout.splitlines()) == ["[0] 0 2", "[1] 1 2"], done.stderr


def test_only_what_jax_and_jaxcoll_read_is_set() -> None:
    program = "import os; print(sorted(os.environ.items()))"
    # os.environ, since readline has changed the environment behind Python's back.
    plain = subprocess.check_output(
        [sys.executable, "-c", program], env=dict(os.environ), text=True
    )
    before = dict(eval(plain))
    lines = run_launch("-n", "2", *PYTHON, program).stdout.splitlines()
    after = dict(eval(next(line for line in lines if line.startswith("[1]")).removeprefix("[1] ")))
    added = {name for name in after if after[name] != before.get(name)}
    assert added <= {
        *("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_PLATFORMS"),
        *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
        *(
            "PYTHONUNBUFFERED",
            "JAXCOLL_SECRET_FD",
            "TF_CPP_MIN_LOG_LEVEL",
        ),  # the last by `import jax` in the launcher
    }
    assert set(before) - set(after) <= {"PJRT_NPROC"}


def make_job(devices: int | None = None, coordinator: str = "127.0.0.1:1") -> launch.Job:
    return launch.Job(["true"], 2, 4, 2, coordinator, devices)


def test_xla_flags_keep_what_else_they_say() -> None:
    flags = "--xla_cpu_max_isa=AVX2 --xla_force_host_platform_device_count=8 --xla_dump_to=x"
    found = launch.environment(make_job(3), 1, {"XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": "4"})
    assert found["XLA_FLAGS"].split() == [
        *("--xla_cpu_max_isa=AVX2", "--xla_dump_to=x"),
        "--xla_force_host_platform_device_count=3",
    ]
    assert "JAX_NUM_CPU_DEVICES" not in found
    assert found["JAX_LOCAL_DEVICE_IDS"] == "3,4,5"
    assert launch.environment(make_job(), 1, {"XLA_FLAGS": flags})["XLA_FLAGS"] == flags


def test_environment_of_one_part_of_a_larger_job() -> None:
    found = launch.environment(make_job(coordinator="10.1.2.3:99"), 1, {"JAX_PLATFORMS": "cuda"})
    assert (found["SLURM_PROCID"], found["SLURM_LOCALID"], found["SLURM_NTASKS"]) == ("3", "1", "4")
    assert found["JAX_COORDINATOR_ADDRESS"] == "10.1.2.3:99"
    assert found["JAX_PLATFORMS"] == "cuda"
    assert "JAX_COORDINATOR_BIND_ADDRESS" not in found  # other hosts must reach it
    local = launch.environment(make_job(), 0, {})
    assert local["JAX_COORDINATOR_BIND_ADDRESS"] == "127.0.0.1:1"


def test_options_become_settings_of_the_processes() -> None:
    job = dataclasses.replace(make_job(), install=True, keep_memory=True)
    found = launch.environment(job, 0, {})
    assert (found["JAXCOLL_INSTALL"], found["JAXCOLL_KEEP_MEMORY"]) == ("1", "1")
    for before, after in {"0": "1", "1": "1", "": "1", "all": "all"}.items():
        found = launch.environment(job, 0, {"JAXCOLL_KEEP_MEMORY": before})
        assert found["JAXCOLL_KEEP_MEMORY"] == after  # "all" keeps more than the option asks for
    assert not {"JAXCOLL_INSTALL", "JAXCOLL_KEEP_MEMORY"} & set(
        launch.environment(make_job(), 0, {})
    )


def test_two_launchers_make_one_job(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("import jax\njax.distributed.initialize()\nprint(jax.process_count())")
    with launch._local_coordinator() as address:
        halves = [
            subprocess.Popen(
                [*LAUNCH, "-n1", "--total=2", f"--first={i}", f"--coordinator={address}", script],
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        printed = [half.communicate(timeout=60)[0] for half in halves]
    assert printed == ["[0] 2\n", "[1] 2\n"]


def test_lines_keep_their_stream_and_are_never_mixed() -> None:
    program = (
        "import os, sys\n"
        "for i in range(300): print('o' * 999, i); print('e' * 999, i, file=sys.stderr)\n"
        "os.write(1, b'no end'); os.write(2, b'nor here')"
    )
    done = run_launch("-n", "3", *PYTHON, program)
    for text, letter, last in ((done.stdout, "o", "no end"), (done.stderr, "e", "nor here")):
        lines = text.splitlines()
        assert text.endswith("\n")
        for rank in range(3):
            own = [line for line in lines if line.startswith(f"[{rank}] ")]
            assert own == [
                *(f"[{rank}] {letter * 999} {i}" for i in range(300)),
                f"[{rank}] {last}",
            ]
        assert len(lines) == 3 * 301


def test_output_arrives_while_the_processes_run() -> None:
    with started("-n", "2", *PYTHON, SLEEPER, lines=2) as launcher:
        assert launcher.poll() is None


def test_stdin_is_empty() -> None:
    done = run_launch("-n", "2", *PYTHON, "import sys; print(repr(sys.stdin.read()))")
    assert sorted(done.stdout.splitlines()) == ["[0] ''", "[1] ''"]


def test_colours_only_on_a_terminal() -> None:
    command = [*LAUNCH, "-n", "1", "--", "echo", "word"]
    assert "\x1b" not in subprocess.check_output(command, text=True)
    leader, follower = pty.openpty()
    subprocess.run(command, stdout=follower, check=True, timeout=60)
    os.close(follower)
    assert select.select([leader], [], [], 5)[0]
    assert os.read(leader, 1000) == b"\x1b[36m[0]\x1b[0m word\r\n"
    os.close(leader)


def test_the_first_failure_ends_the_others_and_is_returned() -> None:
    program = (
        "import os, sys, time\nif os.environ['SLURM_PROCID'] == '1': sys.exit(7)\ntime.sleep(60)"
    )
    start = time.monotonic()
    done = run_launch("-n", "3", *PYTHON, program)
    assert done.returncode == 7
    assert time.monotonic() - start < 30
    assert "rank 1 exited with 7" in done.stderr


def test_a_process_that_a_signal_ended_gives_128_and_its_number() -> None:
    program = "import os; os.kill(os.getpid(), 11)"
    done = run_launch("-n", "2", *PYTHON, program)
    assert done.returncode == 128 + 11
    assert "was ended by SIGSEGV" in done.stderr


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    program = (
        f"import os, sys, time\nif os.environ['SLURM_PROCID'] == '0':\n"
        f"  time.sleep(2); sys.exit(1)\n{STUBBORN}"
    )
    start = time.monotonic()
    assert run_launch("-n", "2", *PYTHON, program).returncode == 1
    assert launch.GRACE_S < time.monotonic() - start < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_everybody(number: int) -> None:
    program = (
        "import signal, sys, time\n"
        "def leave(n, _): print('got', n); sys.exit(0)\n"
        "for n in (1, 2, 15): signal.signal(n, leave)\n"
        "print('up'); time.sleep(60)"
    )
    with started("-n", "3", *PYTHON, program, lines=3) as launcher:
        launcher.send_signal(number)
        printed, _ = launcher.communicate(timeout=50)
        assert sorted(printed.splitlines()) == [f"[{rank}] got {number}" for rank in range(3)]
        assert launcher.returncode == 0


def test_an_interrupt_without_a_handler_gives_its_exit_code() -> None:
    with started("-n", "2", *PYTHON, SLEEPER, lines=2) as launcher:
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=50) == 128 + signal.SIGINT


def test_a_second_signal_kills_at_once() -> None:
    program = "import signal; signal.signal(2, signal.SIG_IGN); " + STUBBORN
    with started("-n", "2", *PYTHON, program, lines=2) as launcher:
        launcher.send_signal(signal.SIGINT)
        time.sleep(1)  # two at once are one
        start = time.monotonic()
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=50) == 128 + signal.SIGKILL
        assert time.monotonic() - start < launch.GRACE_S


def test_children_die_with_a_killed_launcher() -> None:
    program = "import os; print(os.getpid(), flush=True); " + STUBBORN
    with started("-n", "2", *PYTHON, program, lines=0) as launcher:
        assert launcher.stdout is not None
        lines = [launcher.stdout.readline() for _ in range(4)]
        pids = [int(line.split()[1]) for line in lines if line.split()[1].isdigit()]
        assert len(pids) == 2
        launcher.kill()
        wait_until_gone(pids)


def test_a_reader_that_leaves_ends_the_job() -> None:
    program = "import os\nwhile True: print('x' * 1000)"
    with started("-n", "2", *PYTHON, program, lines=1) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.close()
        assert launcher.wait(timeout=50) == 128 + signal.SIGPIPE


def test_something_that_outlives_its_parent_does_not_hold_the_launcher() -> None:
    start = time.monotonic()
    done = run_launch("-n", "2", "--", "sh", "-c", "sleep 50 & echo done")
    assert done.stdout.count("done") == 2
    assert time.monotonic() - start < 40


def test_a_command_that_does_not_exist_says_so() -> None:
    done = run_launch("-n", "1", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command: No such file" in done.stderr


def test_a_module_runs_with_its_arguments() -> None:
    done = run_launch("-n", "1", "-m", "json.tool", "--help")
    assert done.stdout.startswith("[0] usage: python -m json.tool")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "2"], "give a program to run"),
        (["-n", "0", "x.py"], "not a number from 1"),
        (["-n", "\u0663", "x.py"], "not a number from 1"),
        (["-n", "\xb2", "x.py"], "not a number from 1"),
        (["-n", "9" * 5000, "x.py"], "not a number from 1"),
        (["-n", "2", "--first", "\u0661", "x.py"], "not a number from 0"),
        (["-n", "2", "--coordinator", "here:\xb2", "x.py"], "not host:port"),
        (["x.py"], "required: -n"),
        (["-n", "2", "--coordinator", "here", "x.py"], "not host:port"),
        (["-n", "2", "--total", "4", "x.py"], "needs --coordinator"),
        (["-n", "2", "--first", "1", "x.py"], "--first 1 with -n 2 does not fit --total 2"),
    ],
)
def test_bad_arguments_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
