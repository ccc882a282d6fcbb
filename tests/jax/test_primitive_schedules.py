"""Schedules written in Python: verified while tracing, run as they are written."""

import jax
import numpy as np
import pytest
from lax_oracle import TARGET, make_mesh, per_device, place, small_integers

import jaxcoll
from jaxcoll.schedule import INPUT, OUTPUT, Schedule, ScheduleSpec, build, copy, put
from jaxcoll.schedule.verifier import ScheduleError
from jaxcoll.tune import select


def ring_all_gather(ranks, break_it=False):
    ops = [copy(rank, INPUT[0], OUTPUT[rank]) for rank in range(ranks)]
    for step in range(ranks - 1 - break_it):
        for rank in range(ranks):
            block = OUTPUT[(rank - step) % ranks]
            ops += put(rank, (rank + 1) % ranks, block, block, step=step)
    return Schedule.from_ops("all_gather", ranks, ops)


def traced(body, ranks=4):
    mesh = make_mesh((ranks,))
    x = place(mesh, small_integers((ranks, 6)))
    return jax.jit(per_device(mesh, body)), x


def test_a_schedule_written_in_python_runs():
    f, x = traced(lambda x: jaxcoll.all_gather(x, "x", schedule=ring_all_gather(4)))
    text = f.lower(x).as_text()
    assert TARGET in text
    assert ring_all_gather(4).serialize().splitlines()[0] in text
    np.testing.assert_array_equal(f(x), np.tile(x, (4, 1, 1)))


def test_a_schedule_serves_every_reduce_op_and_its_derivative():
    ring = build(ScheduleSpec("all_reduce", 4, "ring"))
    f, x = traced(lambda x: jaxcoll.all_reduce(x, "x", op="max", schedule=ring))
    np.testing.assert_array_equal(f(x), np.tile(np.max(x, 0), (4, 1)))
    jax.block_until_ready(jax.grad(lambda x: f(x).sum())(x))


def test_a_wrong_schedule_is_refused_naming_rank_and_chunk():
    f, x = traced(lambda x: jaxcoll.all_gather(x, "x", schedule=ring_all_gather(4, break_it=True)))
    with pytest.raises(ScheduleError, match=r"(?s)rank.*output\["):
        f.lower(x)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (lambda x: jaxcoll.all_gather(x, "x", schedule=ring_all_gather(3)), "3 ranks.*4"),
        (lambda x: jaxcoll.all_reduce(x, "x", schedule=ring_all_gather(4)), "all_gather"),
        (
            lambda x: jaxcoll.all_gather(x, "x", schedule=ring_all_gather(4), algorithm="ring"),
            "not both",
        ),
        (
            lambda x: jaxcoll.broadcast(
                x, "x", 1, schedule=build(ScheduleSpec("broadcast", 4, root=2))
            ),
            "root is 2.*1",
        ),
        (
            lambda x: jaxcoll.ppermute(
                x,
                "x",
                [(0, 1)],
                schedule=build(ScheduleSpec("permute", 4, permutation=((1, 0),))),
            ),
            "permutation",
        ),
    ],
    ids=["ranks", "collective", "algorithm too", "root", "permutation"],
)
def test_a_schedule_for_something_else_is_refused(body, match):
    f, x = traced(body)
    with pytest.raises(ValueError, match=match):
        f.lower(x)


def test_a_world_size_that_an_algorithm_cannot_serve_names_those_it_can():
    # Every algorithm serves every group there can be: ask for one that there cannot.
    with pytest.raises(jaxcoll.WorldSizeError, match=r"all_reduce.*world_size"):
        select.choose("all_reduce", "ring", 0)


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "all_to_all"])
def test_gpus_of_several_hosts_send_what_leaves_a_host_once(collective):
    def auto(**places):
        return select.choose(
            collective, "auto", 8, byte_count=1 << 20, processes=8, on_gpu=True, **places
        )

    assert auto(hosts=2, ranks_per_node=4) == ("hierarchical", (2, 4))
    assert auto(hosts=8, ranks_per_node=1).algorithm.startswith("direct")
    assert auto(hosts=2, ranks_per_node=0).algorithm.startswith("direct")  # uneven hosts
    assert auto(hosts=1, ranks_per_node=4).algorithm.startswith("direct")  # they share memory
