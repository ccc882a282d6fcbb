"""Cases that need a Python of their own: many devices, the end of the interpreter, a late start."""

import socket

import pytest
from subprocesses import run_python


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_64_devices_on_few_cores_do_not_deadlock():
    run_python(
        """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, PartitionSpec as P
        import jaxcoll

        mesh = Mesh(np.array(jax.devices()).reshape(8, 8), ("x", "y"))
        assert mesh.size == 64

        def body(x):
            rows = [jaxcoll.psum(x + i, ("x", "y")) for i in range(4)]
            rows += [jaxcoll.psum(x * i, "x") for i in range(4)]
            rows += [jaxcoll.all_gather(x, "y").sum(0) for i in range(4)]
            return jnp.stack(rows)[None]

        f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P(("x", "y")),
                                  out_specs=P(("x", "y")), check_vma=False))
        x = np.arange(64 * 1024.0, dtype=np.float32).reshape(64, 1024) % 7
        grid = x.reshape(8, 8, 1024)
        expected = np.stack(
            [np.broadcast_to((x + i).sum(0), (64, 1024)) for i in range(4)]
            + [np.broadcast_to((grid * i).sum(0), grid.shape).reshape(x.shape) for i in range(4)]
            + [np.broadcast_to(grid.sum(1, keepdims=True), grid.shape).reshape(x.shape)] * 4,
            axis=1,
        )
        pending = [f(x) for _ in range(20)]
        for result in pending:
            np.testing.assert_array_equal(np.asarray(result).reshape(64, 12, 1024), expected)
        """,
        device_count=64,
    )


@pytest.mark.parametrize(("threads", "await_every"), [(1, 1000), (3, 10)])
def test_a_thousand_launches_go_on_without_being_awaited(threads, await_every):
    """With XLA's default pool of threads this hangs, with lax's collectives as well.

    Three threads await every tenth: 30 launches are in flight then. With more than 32 of several
    threads, XLA's admission to a device can be overtaken, and all wait for the launch that was.
    """
    run_python(
        """
        import sys, threading
        import jax, numpy as np
        from jax.sharding import Mesh, PartitionSpec as P
        import jaxcoll

        mesh = Mesh(np.array(jax.devices()), ("x",))

        def body(x):
            for _ in range(3):
                x = jaxcoll.psum(x, "x") % 5 + jax.lax.axis_index("x")
            return x

        f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"),
                                  check_vma=False))
        start = jax.device_put(np.arange(8 * 64.0, dtype=np.float32).reshape(8, 64) % 7,
                               jax.NamedSharding(mesh, P("x")))
        expected = np.asarray(start)
        threads, await_every = int(sys.argv[1]), int(sys.argv[2])
        steps = 999 // threads
        for _ in range(3 * steps):
            expected = np.broadcast_to(expected.sum(0) % 5, (8, 64)) + np.arange(8)[:, None]
        f(start).block_until_ready()
        results = [start] * threads

        def train(i):
            for step in range(1, steps + 1):  # each takes the last one's result
                results[i] = f(results[i])
                if step % await_every == 0:
                    results[i].block_until_ready()

        running = [threading.Thread(target=train, args=(i,)) for i in range(threads)]
        for thread in running: thread.start()
        for thread in running: thread.join()
        for result in results:
            np.testing.assert_array_equal(np.asarray(result), expected)
        """,
        str(threads),
        str(await_every),
    )


@pytest.mark.parametrize("size", [16, 4_000_000], ids=["small", "large"])
def test_the_interpreter_exits_with_calls_in_flight(size):
    """No hang, no crash, exit status 0, whatever is still running."""
    run_python(
        f"""
        import jax, numpy as np
        from jax.sharding import Mesh, PartitionSpec as P
        import jaxcoll

        mesh = Mesh(np.array(jax.devices()), ("x",))

        def body(x):
            return jax.lax.fori_loop(0, 50, lambda _, x: jaxcoll.psum(x, "x") / 8, x)

        f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"),
                                  check_vma=False))
        x = jax.device_put(np.ones({size}, np.float32), jax.NamedSharding(mesh, P("x")))
        f(x).block_until_ready()
        pending = [f(x) for _ in range(20)]
        """,
    )


def test_the_interpreter_exits_while_a_call_waits_for_a_device_that_never_comes():
    """The call's deadline is far away; leaving must not wait for it."""
    run_python(
        """
        import jax, numpy as np
        from jax.sharding import Mesh, PartitionSpec as P
        import jaxcoll

        mesh = Mesh(np.array(jax.devices()), ("x",))

        def body(x):
            return jax.lax.cond(
                jax.lax.axis_index("x") > 0, lambda x: jaxcoll.psum(x, "x"), lambda x: x, x
            )

        f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"),
                                  check_vma=False))
        pending = f(np.ones(8, np.float32))
        """,
        environment={"JAXCOLL_TIMEOUT_S": "600"},
        timeout_s=120,
    )


def test_importing_starts_no_back_end():
    """jax.distributed.initialize must still be possible afterwards."""
    run_python(
        """
        import sys
        import jax, jaxcoll

        jax.config.update("jax_num_cpu_devices", 3)  # refused once there is a back end
        with jaxcoll.installed():
            pass
        jax.config.update("jax_num_cpu_devices", 4)
        jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=1, process_id=0)
        jax.distributed.shutdown()
        """,
        str(free_port()),
    )
    run_python(
        """
        import jax

        jax.devices()
        try:
            jax.config.update("jax_num_cpu_devices", 3)
        except RuntimeError:
            raise SystemExit(0)
        raise SystemExit("a back end that has started refuses nothing")
        """
    )
