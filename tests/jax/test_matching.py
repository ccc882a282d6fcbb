"""Calls meet the right partners, whatever the order in which devices reach them.

XLA runs independent calls in any order and JAX lowers equal equations once, so several calls of one
program may carry equal attributes. Devices are delayed by loops whose length is data, so that one
compiled program runs under many schedules.
"""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lax_oracle import (
    IMPLEMENTATIONS,
    LAX,
    assert_same,
    make_mesh,
    per_device,
    place,
    run,
    small_integers,
)

import jaxcoll

SEEDS = 200
MOST_TURNS = 4000  # about 0.1 ms of delay per device and call


def delayed(x, turns):
    """`x`, after `turns` turns of a loop that the compiler cannot see through."""

    def turn(_, state):
        return state * 3 + 1

    noise = jax.lax.fori_loop(0, turns, turn, turns.astype(jnp.uint32))
    return x + (noise == 0).astype(x.dtype) * (turns == -1).astype(x.dtype)


def run_seeds(program, mesh, shape, call_count):
    """Compares `program(c, x, turns)` with lax on SEEDS inputs and delays, compiled once each."""
    x = place(mesh, np.zeros((mesh.size, *shape), np.float32))
    turns = place(mesh, np.zeros((mesh.size, call_count), np.int32))
    compiled = []
    for implementation in (LAX, *IMPLEMENTATIONS):
        body = functools.partial(program, implementation.namespace)
        with implementation.context():
            compiled.append(jax.jit(per_device(mesh, body)).lower(x, turns).compile())

    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        x = place(mesh, small_integers((mesh.size, *shape), seed=seed))
        # A few devices are late for a few calls; who and where differs from seed to seed.
        late = rng.random((mesh.size, call_count)) < 0.3
        turns = (late * rng.integers(0, MOST_TURNS, late.shape)).astype(np.int32)
        turns = place(mesh, turns)
        expected, *actual = (jax.tree.map(np.asarray, function(x, turns)) for function in compiled)
        for result, implementation in zip(actual, IMPLEMENTATIONS, strict=True):
            assert_same(result, expected, f"{implementation.name}, seed {seed}")


def test_an_inner_jit_called_on_eight_values_of_one_shape_is_exact():
    mesh = make_mesh((8,))

    def program(c, x, turns):
        inner = jax.jit(lambda x: c.psum(x, "x"))
        return [inner(delayed(x[i], turns[i])) * (i + 1) for i in range(8)]

    run_seeds(program, mesh, (8, 5), call_count=8)


def test_an_unrolled_scan_is_exact():
    mesh = make_mesh((8,))

    def program(c, x, turns):
        def step(_, row_and_turns):
            row, turns = row_and_turns
            return None, c.psum(delayed(row, turns), "x")

        # No dependence between the steps: XLA is free to reorder them.
        return jax.lax.scan(step, None, (x, turns), unroll=True)[1]

    run_seeds(program, mesh, (6, 5), call_count=6)


def test_different_collectives_over_different_groups_interleave():
    mesh = make_mesh((2, 4), order=(3, 0, 6, 1, 7, 2, 4, 5))

    def program(c, x, turns):
        return [
            c.psum(delayed(x[0], turns[0]), "x"),
            c.psum(delayed(x[1], turns[1]), "y"),
            c.all_gather(delayed(x[2], turns[2]), "y"),
            c.psum(delayed(x[3], turns[3]), ("x", "y")),
            c.ppermute(delayed(x[4], turns[4]), "y", [(0, 1), (1, 2), (2, 3), (3, 0)]),
            c.psum(delayed(x[5], turns[5]), "x"),
        ]

    run_seeds(program, mesh, (6, 4), call_count=6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
def test_thousands_of_calls_are_in_flight_from_concurrent_executables(implementation):
    """Threads dispatch different executables on the same devices and on disjoint ones."""
    # XLA itself blocks for good when threads put more than 32 runs in flight on one device.
    thread_count, launches, turns, calls = 4, 6, 16, 8  # 3072 calls in all
    meshes = [
        make_mesh((8,)),
        make_mesh((8,), order=(7, 6, 5, 4, 3, 2, 1, 0)),
        make_mesh((4,), order=(0, 2, 4, 6)),
        make_mesh((4,), order=(1, 3, 5, 7)),
    ]
    functions = []
    for i, mesh in enumerate(meshes):

        def body(x, c=implementation.namespace, i=i):
            def turn(_, rows):
                summed = [c.psum(row, "x") for row in rows]
                rank = jax.lax.axis_index("x").astype(x.dtype)
                return [(total * (j + 1) + rank + i) % 11 for j, total in enumerate(summed)]

            return jax.lax.fori_loop(0, turns, turn, list(x))

        x = place(mesh, small_integers((mesh.size, calls, 64), seed=i))
        with implementation.context():
            compiled = jax.jit(per_device(mesh, body)).lower(x).compile()
        expected = np.asarray(x)
        for _ in range(turns):
            factor = np.arange(1, calls + 1)[:, None]
            ranks = np.arange(mesh.size)[:, None, None]
            expected = (expected.sum(0) * factor + ranks + i) % 11
        functions.append((compiled, x, expected))
    failures = []
    start = threading.Barrier(thread_count)

    def work(i):
        compiled, x, expected = functions[i]
        start.wait()
        try:
            results = [compiled(x) for _ in range(launches)]  # dispatched before any is awaited
            for result in results:
                np.testing.assert_array_equal(np.stack(result, axis=1), expected)
        except Exception as error:
            failures.append((i, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(thread_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert not failures, failures


def test_one_executable_is_dispatched_many_times_before_anything_is_awaited():
    mesh = make_mesh((8,))
    x = place(mesh, small_integers((8, 1000)))
    function = jax.jit(per_device(mesh, lambda x: x + jaxcoll.psum(x, "x")))
    results = [x]
    for _ in range(200):
        results.append(function(results[-1]) % 1024)
    expected = np.asarray(x)
    for _ in range(200):
        expected = (expected + expected.sum(0)) % 1024
    np.testing.assert_array_equal(np.asarray(results[-1]), expected)


def test_a_loop_repeats_one_call_many_times():
    mesh = make_mesh((8,))
    x = small_integers((8, 16), np.int32)

    def program(c, x):
        def step(_, x):
            return x + c.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])

        return per_device(mesh, lambda x: jax.lax.fori_loop(0, 500, step, x))(x)

    expected = run(LAX, program, x)
    for implementation in IMPLEMENTATIONS:
        np.testing.assert_array_equal(run(implementation, program, x), expected)


def test_equal_programs_from_two_jits_do_not_meet():
    mesh = make_mesh((8,))
    x = place(mesh, small_integers((8, 64)))

    def make():
        return jax.jit(per_device(mesh, lambda x: jaxcoll.psum(x, "x")))

    functions = [make() for _ in range(4)]
    inputs = [x + i for i in range(4)]
    results = [f(y) for _ in range(6) for f, y in zip(functions, inputs, strict=True)]
    for i, result in enumerate(results):
        np.testing.assert_array_equal(np.asarray(result)[3], np.asarray(inputs[i % 4]).sum(0))


def test_clearing_the_caches_between_calls_changes_nothing():
    mesh = make_mesh((8,))
    x = place(mesh, small_integers((8, 5)))
    expected = np.broadcast_to(np.asarray(x).sum(0), (8, 5))
    for _ in range(3):
        function = jax.jit(per_device(mesh, lambda x: jaxcoll.psum(x, "x")))
        pending = function(x)
        jax.clear_caches()
        np.testing.assert_array_equal(np.asarray(pending), expected)


def test_meshes_of_equal_shape_over_permuted_devices_do_not_mix():
    """Their calls carry equal attributes but for the device ids."""
    first, second = make_mesh((8,)), make_mesh((8,), order=(1, 0, 3, 2, 5, 4, 7, 6))
    x = small_integers((8, 3))

    def rotate(x):
        return jaxcoll.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])

    for _ in range(5):
        for mesh in (first, second):
            result = jax.jit(per_device(mesh, rotate))(place(mesh, x))
            np.testing.assert_array_equal(np.asarray(result), np.roll(x, 1, axis=0))
