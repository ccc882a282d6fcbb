"""Processes forked from one that has imported JAX are what a fresh Python would be."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import warm_python

ROOT = Path(__file__).parent.parent

# As a program sees itself, but for what two runs of one program differ in.
LOOKS = """
import json, os, signal, sys, threading
import jax, jaxcoll

print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv[1:], "path": sys.path, "main": __name__,
    "folder": os.getcwd(), "group": os.getpgid(0) == os.getpid(),
    "environment": {k: v for k, v in os.environ.items() if k not in ("_", "LC_CTYPE")},
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGCHLD)],
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:3],
    "threads": threading.active_count(), "stdin": sys.stdin.read(),
    "devices": len(jax.devices()), "jaxcoll": jaxcoll.__file__,
}))
print("to stderr", file=sys.stderr)
sys.exit(7)
"""


def environment(**added: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **added}


def forked(script: str, *arguments: str, place: int = 0, **added: str) -> warm_python.Process:
    command = ["-c", script, *arguments]
    process = warm_python.start(
        script, arguments, environment(**added), command=command, place=place
    )
    assert process is not None
    return process


def output(process: warm_python.Process) -> tuple[str, int | None]:
    with process.stdin, process.stdout:
        process.stdin.close()
        return process.stdout.read(), process.wait()


def started(script: str, *arguments: str, variables: Mapping[str, str]) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=dict(variables),
        input="",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        timeout=120,
    )
    return done.stdout, done.returncode


def test_a_forked_process_sees_what_a_fresh_one_sees() -> None:
    added = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAXCOLL_TIMEOUT_S": "77"}
    there, code = started(LOOKS, "a", "b c", variables=environment(**added))
    here, same_code = output(forked(LOOKS, "a", "b c", **added))
    assert (code, same_code) == (7, 7)
    (first, *rest), (same, *others) = there.splitlines(), here.splitlines()
    assert rest == others == ["to stderr"]
    assert json.loads(first) == json.loads(same)
    assert json.loads(same)["devices"] == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_is_its_exit_code(number: int) -> None:
    process = forked("import time; print('up'); time.sleep(600)")
    assert process.stdout.readline() == "up\n"
    assert process.poll() is None
    os.kill(process.pid, number)
    _, code = output(process)
    assert code == process.poll() == -number


def test_an_exception_is_told_as_ever() -> None:
    said, code = output(forked("def f():\n    raise ValueError('no')\nf()"))
    assert code == 1
    assert said.endswith("ValueError: no\n")
    assert 'File "<string>", line 2, in f' in said


def test_neighbours_have_another_seed_of_hash_and_other_addresses() -> None:
    script = "print(hash('x'), id(object()))"
    first, second = (output(forked(script, place=place))[0].split() for place in (0, 1))
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize("variable", ["PYTHONHASHSEED", "JAX_ENABLE_X64", "LD_LIBRARY_PATH"])
def test_a_variable_read_on_import_needs_a_fresh_python(variable: str) -> None:
    assert warm_python.start("", [], environment(**{variable: "1"})) is None
    command = ["-c", f"import os; print(os.environ[{variable!r}])"]
    done = warm_python.run(command, environment(**{variable: "1"}), timeout_s=120)
    assert done.stdout == "1\n", done.stderr


def test_a_process_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        warm_python.run(
            ["-c", "print('up'); import time; time.sleep(600)"],
            {**os.environ, "PYTHONUNBUFFERED": "1"},
            timeout_s=5,
        )
    assert caught.value.stdout == "up\n"


def test_the_end_of_a_nursery_ends_all_that_it_has_started() -> None:
    nursery = warm_python._Nursery()
    request = {
        "script": "import time; print('up'); time.sleep(600)",
        "arguments": [],
        "command": ["-c"],
        "environment": dict(nursery.environment),
        "folder": os.getcwd(),
        "warnings_are_errors": False,
    }
    process = nursery.start(request, own_stderr=False)
    with process.stdin, process.stdout:
        process.stdout.readline()
        nursery.close()
        end = time.monotonic() + 60
        while Path(f"/proc/{process.pid}").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert not Path(f"/proc/{process.pid}").exists()
        process._status.close()
