"""Processes that wait for another one know what happens to it before its first link.

Deadlines are long, so that whatever a test waits for comes for another reason.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from processes import Job

TIMEOUT_S = 120
# Seconds in which others must know; a few on an idle machine, but this one may be busy.
SOON_S = 30
SURVIVES = {"survives": True, "heartbeat_timeout_s": 600}  # JAX shall not be the first to know

COMMON = """
import signal, threading
import jaxcoll
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

def mesh_of(ranks):
    devices = [d for d in jax.devices() if d.process_index in ranks]
    return Mesh(np.array(devices), "i")

def call(mesh):
    x = jax.make_array_from_callback(
        (mesh.size, 3), NamedSharding(mesh, P("i")), lambda i: np.ones((mesh.size, 3), "f4")[i])
    f = jax.jit(jax.shard_map(lambda v: jaxcoll.psum(v, "i"), mesh=mesh, in_specs=P("i"),
                              out_specs=P()))
    return f(x)

def fails(mesh, *patterns):
    "The error of a call, which names all that a reader needs, soon."
    print("calls", flush=True)
    start = time.monotonic()
    try:
        jax.block_until_ready(call(mesh))
    except (jax.errors.JaxRuntimeError, ValueError, jaxcoll.JaxcollError) as error:
        print(f"after {time.monotonic() - start:.2f} s: {error}", flush=True)
        text = str(error)
    else:
        raise AssertionError("no error")
    import re
    for pattern in patterns:
        assert re.search(pattern, text), f"{pattern!r} is not in: {text}"
    return text

def seconds_since(path):
    return time.time() - os.stat(path).st_mtime
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_process_killed_before_its_first_collective_is_detected(
    lost: int, transport: str
) -> None:
    """It has published itself, and has no link yet; one below and one above it wait."""
    script = """
    mesh = mesh_of([0, 1, 2])
    if rank == int(sys.argv[1]):
        print("here", flush=True)
        time.sleep(600)
    fails(mesh, r"all_reduce\\(sum\\) of float32\\[", f"process {sys.argv[1]} \\\\(pid \\\\d+ on ",
          "rank " + sys.argv[1], "has ended")
    """
    with Job(
        COMMON + textwrap.dedent(script),
        *(str(lost), transport),
        processes=3,
        environment={"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S), "JAXCOLL_TRANSPORT": transport},
        **SURVIVES,
    ) as job:
        job.wait_for(lost, "here")
        for rank in {0, 1, 2} - {lost}:
            job.wait_for(rank, "calls")
        time.sleep(1)  # they wait for it
        killed = time.monotonic()
        job.send(lost, signal.SIGKILL)
        job.finish(exit_codes={lost: -signal.SIGKILL})
        assert time.monotonic() - killed < SOON_S


@pytest.mark.parametrize("how", ["sys.exit(0)", "raise RuntimeError('mine')", "os._exit(7)"])
def test_a_process_that_ends_without_a_collective_is_detected(how: str) -> None:
    """In order, by an exception, or without a word."""
    script = f"""
    mesh = mesh_of([0, 1, 2])
    if rank == 1:
        sys.stdin.readline()
        {how}
    fails(mesh, r"process 1 \\(pid \\d+ on ", "rank 1", "has ended")
    """
    with Job(
        COMMON + textwrap.dedent(script),
        processes=3,
        environment={"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S)},
        **SURVIVES,
    ) as job:
        for rank in (0, 2):
            job.wait_for(rank, "calls")
        time.sleep(1)  # they wait for it
        ended = time.monotonic()
        job.write(1, "\n")
        job.finish(exit_codes={1: 0 if "(0)" in how else 7 if "7" in how else 1})
        assert time.monotonic() - ended < SOON_S


@pytest.mark.parametrize("how", ["sys.exit(0)", "os._exit(0)"])
def test_a_process_that_ended_while_others_did_not_know_jaxcoll_yet_is_not_waited_for(
    how: str,
) -> None:
    script = f"""
    import jax.numpy
    if rank == 1:
        import jaxcoll
        jax.devices()
        {how}
    jax.devices()
    sys.stdin.readline()
    """
    with Job(
        textwrap.dedent(script) + COMMON + 'fails(mesh_of([0, 1]), "process 1 ", "has ended")\n',
        processes=2,
        environment={"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S)},
        **SURVIVES,
    ) as job:
        assert job.ranks[1].wait(TIMEOUT_S)
        told = time.monotonic()
        job.write(0, "\n")
        job.finish()
        assert time.monotonic() - told < SOON_S


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_stopped_before_its_first_collective_is_named_as_silent(stopped: int) -> None:
    """After a fifth of the deadline, as later; it is not dead."""
    script = """
    mesh = mesh_of([0, 1])
    if rank == int(sys.argv[1]):
        print("here", flush=True)
        time.sleep(600)
    sys.stdin.readline()
    who = f"process {sys.argv[1]} \\\\(pid \\\\d+ on "
    fails(mesh, who + ".* has not answered for 1[05] s: it is stopped")
    """
    with Job(
        COMMON + textwrap.dedent(script),
        str(stopped),
        processes=2,
        environment={"JAXCOLL_TIMEOUT_S": "50"},  # so 10 s of silence, and 40 s for a link
        **SURVIVES,
    ) as job:
        job.wait_for(stopped, "here")
        job.send(stopped, signal.SIGSTOP)
        job.write(1 - stopped, "\n")
        started = time.monotonic()
        job.finish(exit_codes={stopped: None})  # type: ignore[dict-item]
        assert 9 < time.monotonic() - started < 38


FAULTS = {
    "interface": ("", {"JAXCOLL_IFNAME": "eth7"}, "JAXCOLL_IFNAME=eth7 leaves no network inter"),
    # Only there: JAX needs descriptors, too.
    "descriptors": (
        "import resource\n"
        "start = jaxcoll._job.presence._start_engine_once\n"
        "def without_descriptors():\n"
        "    limits = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))\n"
        "    try:\n"
        "        start()\n"
        "    finally:\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, limits)\n"
        "jaxcoll._job.presence._start_engine_once = without_descriptors\n",
        {},
        "Too many open files",
    ),
    "engine": (
        "jaxcoll._job.presence.jax.devices = lambda: 1 / 0\n",
        {},
        "cannot start the engine between processes: division by zero",
    ),
}


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_process_that_cannot_link_says_why_to_all(kind: str, broken: int) -> None:
    """It fails, and the others with its reason; they have started first, and wait.

    None ends before all have been told: its end would be another reason.
    """
    before, environment, expected = FAULTS[kind]
    script = f"""
    mesh = mesh_of([0, 1, 2])
    if rank == {broken}:
        sys.stdin.readline()
    """
    fault = f"if rank == {broken}:\n" + textwrap.indent(before or "pass", "    ")
    rest = f"\nfails(mesh, {expected!r}, 'process {broken} ')\n"
    rest += "print('has been told', flush=True)\nsys.stdin.readline()\n"
    with Job(
        COMMON + textwrap.dedent(script) + fault + rest,
        processes=3,
        environment={"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S)},
        rank_environment={broken: environment},
        **SURVIVES,
    ) as job:
        for rank in {0, 1, 2} - {broken}:
            job.wait_for(rank, "calls")
        begun = time.monotonic()
        job.write(broken, "\n")
        for rank in range(3):
            job.wait_for(rank, "has been told")
        assert time.monotonic() - begun < SOON_S
        for rank in range(3):
            job.write(rank, "\n")
        job.finish()


INSTALLED = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.jaxcoll") is None,
    reason="jaxcoll is not installed: JAX finds its plugin in site-packages only",
)


@INSTALLED
def test_jax_announces_a_process_when_it_makes_its_back_ends(tmp_path: Path) -> None:
    """By its plugin, where jaxcoll was imported before jax.distributed.initialize."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import jax, jaxcoll
        from jaxcoll._jax import compat as _jax_compat
        from jaxcoll._job import presence as _presence
        jax.distributed.initialize()
        assert _presence._bootstrap is None
        jax.devices()
        store, index, count = _jax_compat.distributed_store()
        for other in range(count):
            assert b"unix_name" in store.wait(f"jaxcoll/1/process/{other}", 0.5)
        assert not jaxcoll._native.native.comm_started()
        jax.distributed.shutdown()
        """)
    )
    launch = [sys.executable, "-m", "jaxcoll", "launch", "-n", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@INSTALLED
def test_the_plugin_does_nothing_where_jaxcoll_is_not_imported() -> None:
    program = (
        "import jax, sys, threading; jax.devices(); "
        "assert 'jax_plugins.jaxcoll' in sys.modules; "
        "assert 'jaxcoll' not in sys.modules; assert threading.active_count() == 1"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
