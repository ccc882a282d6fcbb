"""Ctrl-C ends a wait: the main thread gets its KeyboardInterrupt, and the others learn why.

With real processes and a real SIGINT. JAX's own waits differ: some look for signals, some do not.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
from processes import Job, Rank
from test_presence import COMMON, SOON_S, SURVIVES, TIMEOUT_S

ROOT = Path(__file__).parents[2]

ALONE = """
import signal, sys, threading, time
import jax, jaxcoll, numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()), "i")
x = np.arange(mesh.size, dtype="f4")

def mapped(body):
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("i"), out_specs=P("i"),
                                 check_vma=False))

total = mapped(lambda v: jaxcoll.psum(v, "i"))
stuck = mapped(lambda v: lax.cond(lax.axis_index("i") == 0, lambda v: v,
                                  lambda v: jaxcoll.psum(v, "i"), v))

def say_when_waiting():
    "Once a call pends: what comes while JAX compiles may end in a callback that swallows it."
    def look():
        while "pending: " not in jaxcoll._native.native.engine_dump():
            time.sleep(0.05)
        print("waiting", flush=True)
    threading.Thread(target=look, daemon=True).start()

def interrupted(wait):
    start = time.monotonic()
    try:
        say_when_waiting()
        wait()
    except KeyboardInterrupt as error:
        print(f"KeyboardInterrupt after {time.monotonic() - start:.2f} s", flush=True)
    else:
        raise AssertionError("not interrupted")
"""

WAITS = {
    "block_until_ready": "jax.block_until_ready(stuck(x))",
    "asarray": "np.asarray(stuck(x))",
    "a queue": "np.asarray(stuck(stuck(stuck(x))))",
}


def run(script: str) -> Rank:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAXCOLL_TIMEOUT_S": str(TIMEOUT_S),
    }
    return Rank("alone", [sys.executable, "-c", ALONE + textwrap.dedent(script)], environment)


def interrupt(process: Rank, times: int) -> None:
    """Once it waits for the n-th time."""
    end = time.monotonic() + TIMEOUT_S
    while process.text.count("waiting") < times:
        assert time.monotonic() < end, process.report()
        assert process.code is None, process.report()
        time.sleep(0.05)
    time.sleep(1)
    process.send(signal.SIGINT)


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_within_a_process_ends_and_the_next_call_works(wait: str) -> None:
    script = f"""
    for _ in range(2):  # the second time as well
        interrupted(lambda: {WAITS[wait]})
    assert np.asarray(total(x)).tolist() == [6] * 4
    print("works", flush=True)
    """
    process = run(script)
    try:
        started = time.monotonic()
        for times in (1, 2):
            interrupt(process, times)
        assert process.wait(SOON_S), process.report()
        assert process.code == 0, process.report()
        assert process.text.count("KeyboardInterrupt after") == 2
        assert "works" in process.text
        assert time.monotonic() - started < TIMEOUT_S / 2, process.report()
    finally:
        process.close()


def test_a_program_that_is_interrupted_ends() -> None:
    process = run("say_when_waiting(); jax.block_until_ready(stuck(x))")
    try:
        interrupt(process, 1)
        assert process.wait(SOON_S), process.report()
        assert process.code == -signal.SIGINT, process.report()
        assert "KeyboardInterrupt" in process.text
    finally:
        process.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_with_its_own_handler_keeps_its_collectives(when: str) -> None:
    """To stop gracefully, between two steps."""
    handler = "signal.signal(signal.SIGINT, lambda *_: print('noted', flush=True))"
    script = f"""
    {handler if when == "before" else ""}
    total(x)
    {handler if when == "after" else ""}
    late = mapped(lambda v: jaxcoll.psum(
        jax.pure_callback(lambda a, i: (time.sleep(4 * (i == 0)), a)[1], v, v, lax.axis_index("i")),
        "i"))
    say_when_waiting()
    assert np.asarray(late(x)).tolist() == [6] * 4
    print("works", flush=True)
    """
    process = run(script)
    try:
        interrupt(process, 1)
        assert process.wait(SOON_S), process.report()
        assert process.code == 0, process.report()
        assert "works" in process.text
    finally:
        process.close()


def test_a_handler_that_is_set_and_unset_again_is_noticed() -> None:
    """As IPython does for each cell."""
    script = """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted(lambda: np.asarray(stuck(x)))
    assert np.asarray(total(x)).tolist() == [6] * 4
    """
    process = run(script)
    try:
        interrupt(process, 1)
        assert process.wait(SOON_S), process.report()
        assert process.code == 0, process.report()
    finally:
        process.close()


def test_a_loop_that_does_not_wait_is_interrupted_and_loses_nothing() -> None:
    script = """
    total(x)
    print("waiting", flush=True)
    try:
        while True:
            sum(range(1000))
    except KeyboardInterrupt:
        pass
    assert np.asarray(total(x)).tolist() == [6] * 4
    time.sleep(1)
    assert np.asarray(total(x)).tolist() == [6] * 4
    """
    process = run(script)
    try:
        interrupt(process, 1)
        assert process.wait(SOON_S), process.report()
        assert process.code == 0, process.report()
    finally:
        process.close()


@pytest.mark.parametrize("catches", [True, False], ids=["goes on", "ends"])
def test_the_others_learn_that_a_process_was_interrupted(catches: bool) -> None:
    """Process 0 waits for process 1, which is late; 2 waits with it."""
    end = "print('caught', flush=True); sys.stdin.readline()" if catches else "raise"
    script = f"""
    mesh = mesh_of([0, 1, 2])
    if rank == 0:
        try:
            print("calls", flush=True)
            np.asarray(call(mesh).addressable_data(0))
        except KeyboardInterrupt:
            {end}
    else:
        if rank == 1:
            sys.stdin.readline()
        fails(mesh, "process 0 ", r"was interrupted \\(Ctrl-C\\)")
        if rank == 2:  # else process 1 might find first that this one has ended
            sys.stdin.readline()
    """
    with Job(
        COMMON + textwrap.dedent(script),
        processes=3,
        environment={"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S)},
        **SURVIVES,
    ) as job:
        for rank in (0, 2):
            job.wait_for(rank, "calls")
        time.sleep(2)
        told = time.monotonic()
        job.send(0, signal.SIGINT)
        job.wait_for(2, "interrupted (Ctrl-C)")
        job.write(1, "\n")
        job.wait_for(1, "interrupted (Ctrl-C)")
        job.write(2, "\n")
        assert time.monotonic() - told < SOON_S
        if catches:
            job.wait_for(0, "caught")
            job.write(0, "\n")
        job.finish(exit_codes={0: 0 if catches else -signal.SIGINT})


def test_a_launched_job_ends_as_a_whole(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import jax, time\njax.distributed.initialize()\nrank = jax.process_index()\n"
        "import sys, numpy as np\n"
        + COMMON
        + textwrap.dedent("""
        mesh = mesh_of([0, 1])
        jax.block_until_ready(call(mesh))
        print("calls", flush=True)
        if rank == 1:
            time.sleep(600)
        np.asarray(call(mesh).addressable_data(0))
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAXCOLL_TIMEOUT_S": str(TIMEOUT_S)}
    launcher = Rank(
        "launch", [sys.executable, "-m", "jaxcoll", "launch", "-n", "2", str(script)], environment
    )
    try:
        end = time.monotonic() + TIMEOUT_S
        while launcher.text.count("calls") < 2:
            assert time.monotonic() < end, launcher.report()
            time.sleep(0.05)
        time.sleep(2)
        started = time.monotonic()
        os.kill(launcher._popen.pid, signal.SIGINT)
        assert launcher.wait(SOON_S), launcher.report()
        took_s = time.monotonic() - started
        print(f"took {took_s:.1f} s")
        assert launcher.code == 128 + signal.SIGINT, launcher.report()
        assert launcher.text.count("KeyboardInterrupt") >= 2, launcher.report()
        assert "SIGKILL" not in launcher.text
    finally:
        launcher.close()
