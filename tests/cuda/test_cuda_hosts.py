"""JAX processes that share a GPU and take each other for other hosts: what one writes for another
goes through pinned host memory and a link, as it does between machines."""

import pytest
from jax_processes import run
from ranks_on_one_gpu import needs_gpu
from test_cuda_processes import EVERY_CALL, GRAPHS, TRANSFORMATIONS

pytestmark = needs_gpu

JOINED = """
from jaxcoll._native import native
assert any("hosts, joined by a proxy" in line for line in native.cuda_info()["communicators"])
"""


def test_every_collective_between_two_hosts():
    outputs = run(EVERY_CALL.replace("400_000", "40_000") + JOINED, 2, hosts=2)
    assert all("EQUAL" in out for out in outputs)


def test_every_collective_between_two_hosts_of_two_processes():
    outputs = run(EVERY_CALL.replace("(4, 1004, 400_000)", "(1004,)") + JOINED, 4, hosts=2)
    assert all("EQUAL" in out for out in outputs)


@pytest.mark.parametrize("flags", ["", GRAPHS], ids=["launches", "graphs"])
def test_transformations_between_two_hosts(flags):
    """Graphs are replayed without a call: the proxy sees by the kernels' flags what to send."""
    outputs = run(TRANSFORMATIONS + JOINED, 2, hosts=2, XLA_FLAGS=flags)
    assert all("EQUAL" in out for out in outputs)


def test_a_host_whose_process_is_killed_is_named():
    outputs = run(
        """
        from spmd import *
        mesh = make_mesh((2,))
        f = per_device(mesh, lambda v: c.psum(v, "x"))
        placed = place(mesh, np.ones((2, 100), np.float32))
        f(placed).block_until_ready()
        if rank == 1:
            os._exit(0)
        try:
            f(placed).block_until_ready()
        except Exception as error:
            print("RAISED", type(error).__name__, error)
        from jaxcoll._native import native
        print("CAUSE", native.cuda_info()["causes"])
        sys.stdout.flush()
        os._exit(0)  # the context is destroyed, and the other process has ended
        """,
        2,
        hosts=2,
    )
    assert "RAISED" in outputs[0], outputs[0]
    assert "rank 1 (device 1, process 1) is lost" in outputs[0], outputs[0]
