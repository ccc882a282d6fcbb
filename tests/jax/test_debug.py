"""The flight recorder of the calls within one process; tests/multiprocess has the others."""

import io
import re
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxcoll


def dumped() -> str:
    file = io.StringIO()
    jaxcoll.debug.dump(file)
    return file.getvalue()


def summed(count: int, elements: int):
    """A jitted sum over `count` devices, and its operand."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("here",))
    f = jax.jit(
        jax.shard_map(
            lambda x: jaxcoll.psum(x, "here"), mesh=mesh, in_specs=P("here"), out_specs=P()
        )
    )
    x = jax.device_put(np.ones((count, elements), np.float32), jax.NamedSharding(mesh, P("here")))
    return f, x


def test_the_recorder_lists_the_last_calls_first() -> None:
    for elements in (41, 42):
        f, x = summed(2, elements)
        f(x).block_until_ready()
    lines = [line for line in dumped().splitlines() if "axis 'here' (2 ranks)" in line]
    pattern = r"  \S+ s ago: all_reduce\(sum\) of float32\[(?:1,)?(\d+)\] .*, took \S+ s"
    assert [re.fullmatch(pattern, line)[1] for line in lines[:2]] == ["42", "41"]


def test_the_recorder_is_bounded() -> None:
    f, x = summed(2, 43)
    for _ in range(300):
        f(x).block_until_ready()
    assert dumped().count("float32[1,43]") == 256
    ended = [int(n) for n in re.findall(r"within this process: (\d+) calls have ended", dumped())]
    f(x).block_until_ready()
    assert re.search(rf"within this process: {ended[0] + 1} calls have ended, 0 wait", dumped())


@pytest.mark.filterwarnings("ignore")  # of a callback in a thread that outlives the test
def test_the_recorder_names_missing_ranks() -> None:
    """One device waits in a callback before the collective; the other one is there."""
    entered, leave = threading.Event(), threading.Event()

    def hold(index: np.ndarray) -> np.ndarray:
        if index == 1:
            entered.set()
            assert leave.wait(60)
        return np.float32(1)

    def body(x: jax.Array) -> jax.Array:
        index = jax.lax.axis_index("here")
        factor = jax.pure_callback(hold, jax.ShapeDtypeStruct((), np.float32), index)
        return jaxcoll.psum(x * factor, "here")

    mesh = Mesh(np.array(jax.devices()[:2]), ("here",))
    f = jax.jit(
        jax.shard_map(body, mesh=mesh, in_specs=P("here"), out_specs=P("here"), check_vma=False)
    )
    x = jax.device_put(np.ones((2, 44), np.float32), jax.NamedSharding(mesh, P("here")))
    results: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: results.append(np.asarray(f(x))))
    thread.start()
    try:
        assert entered.wait(60)
        pattern = r"pending: all_reduce.*float32\[1,44\].*arrived: rank 0 .*; missing: rank 1 "
        while not re.search(pattern, text := dumped()):
            assert thread.is_alive(), text
    finally:
        leave.set()
        thread.join(60)
    assert results
    assert (results[0] == 2).all()
