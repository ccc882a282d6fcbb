"""Docstrings name the errors that are really raised, and every error they name can be provoked."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxcoll
from jaxcoll import schedule as schedules
from jaxcoll.schedule import Schedule, ScheduleSpec
from jaxcoll.tune import table

HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]
# Raised where no program of one process on CPUs can: see `test_failures.py` and others.
ELSEWHERE = {"TuningError": "test_tables.py", "JaxRuntimeError": "multiprocess/test_failures.py"}
# The built-in errors, and ours: what a section "Raises" may name.
NAMES = re.compile(r"\b(?:jax\.errors\.)?([A-Z]\w*Error)\b")


def section(name: str) -> str:
    """The text of a docstring behind "Raises:"."""
    _, found, text = (getattr(jaxcoll, name).__doc__ or "").partition("Raises:")
    return text if found else ""


def documented(name: str) -> set[str]:
    """Names of the types that a function's docstring mentions, with those of another one that it
    refers to, but for those of its parameters that it lacks."""
    text = section(name)
    found = set(NAMES.findall(text))
    if other := re.search(r"as `(\w+)`", text):
        found |= documented(other[1]) - {
            error
            for words, errors in {
                "ops": {"UnknownReduceOpError", "UnsupportedDtypeError"},
                "groups": {"AxisIndexGroupsError"},
                "schedules": {"ScheduleError"},
            }.items()
            for error in errors
            if re.search(rf"but\s+for[^;]*\b{words}\b", text)
        }
    return found


# --- what provokes each of them -----------------------------------------------------------------


def call(name: str, *arguments: Any, shape: tuple[int, ...] = (8, 8), **options: Any) -> None:
    """One call of a collective over the axis "i", of eight devices, traced and lowered."""
    function = getattr(jaxcoll, name)
    axis = options.pop("axis_name", "i")
    leaf = options.pop("leaf", None)
    lowered_for = options.pop("platforms", ("cpu",))

    def body(x: jax.Array) -> Any:
        if name == "ragged_all_to_all":
            return function(x[0], *arguments, axis_name=axis, **options)
        return function(x if leaf is None else leaf, axis, *arguments, **options)

    mesh, spec = Mesh(np.array(jax.devices()[:8]), "i"), PartitionSpec()
    mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    traced = jax.jit(mapped).trace(np.ones(shape, np.float32))
    traced.lower(lowering_platforms=lowered_for)


# The arguments that the functions take beside the operand and the axis.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "all_to_all": (1, 0),
    "ppermute": ([(0, 1)],),
    "pshuffle": (list(range(8)),),
    "pswapaxes": (1,),
    "pbroadcast": (0,),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "reduce_scatter": {"scatter_dimension": 1},
    "psum_scatter": {"scatter_dimension": 1},
}
COLLECTIVES = [
    *("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "ragged_all_to_all", "ppermute"),
    *("broadcast", "psum", "pmean", "pmax", "pmin", "psum_scatter", "pshuffle", "pswapaxes"),
    "pbroadcast",
]
SCHEDULE_NAMES = {"ppermute": "permute"}


def arguments_of(name: str) -> tuple[Any, ...]:
    if name == "ragged_all_to_all":
        rows = jnp.zeros(8, jnp.int32)
        return (jnp.zeros(8), rows, rows, rows, rows)
    return ARGUMENTS.get(name, ())


def provocations(name: str) -> list[tuple[str, Callable[[], None]]]:
    """(type that is expected, call) for one collective."""
    import inspect

    takes = set(inspect.signature(getattr(jaxcoll, name)).parameters)
    given, fixed = arguments_of(name), OPTIONS.get(name, {})

    def provoke(*arguments: Any, **options: Any) -> Callable[[], None]:
        return lambda: call(name, *(arguments or given), **(fixed | options))

    found = [
        ("NameError", provoke(axis_name="nowhere")),
        ("ValueError", provoke(axis_name=("i", "i"))),
        ("UnsupportedError", provoke(platforms=("tpu",))),
    ]
    if name != "ragged_all_to_all":
        found.append(("TypeError", provoke(leaf="text")))
    if "axis_index_groups" in takes:
        found.append(("AxisIndexGroupsError", provoke(axis_index_groups=[[0, 1], [2]])))
        found.append(("TypeError", provoke(axis_index_groups=5)))
    if "algorithm" in takes:
        found.append(("UnknownAlgorithmError", provoke(algorithm="rign")))
        found.append(("TypeError", provoke(algorithm=5)))
    if name == "all_reduce":
        found.append(("WorldSizeError", provoke(algorithm="swing[3x5]")))
        found.append(("ValueError", provoke(axis_name=(7, "i"))))
        found.append(("ValueError", provoke(axis_name=(0, "i"), axis_index_groups=HALVES)))
    if "schedule" in takes:
        collective: Any = SCHEDULE_NAMES.get(name, name)
        pairs = ((0, 1),) if name == "ppermute" else ()
        found += [
            ("ScheduleError", provoke(schedule=empty(collective, 8, pairs))),
            ("WorldSizeError", provoke(schedule=empty(collective, 4, pairs))),
            ("ValueError", provoke(schedule=empty("reduce", 8))),
            ("ValueError", provoke(schedule=empty(collective, 8, pairs), algorithm="ring")),
            ("TypeError", provoke(schedule=5)),
        ]
    if "op" in takes:
        found.append(("UnknownReduceOpError", provoke(op="median")))
        found.append(("UnsupportedDtypeError", provoke(op="xor")))
    if name in ("pmax", "pmin"):
        complex_leaf = jnp.ones(8, jnp.complex64)
        found.append(("UnsupportedDtypeError", provoke(leaf=complex_leaf)))
    if "scatter_dimension" in takes:
        found.append(("ValueError", provoke(shape=(8, 3))))
        found.append(("ValueError", provoke(scatter_dimension=9)))
    if "to" in takes:
        found.append(("ValueError", provoke(to="everyone")))
        found.append(("NotImplementedError", provoke(to="invarying", axis_index_groups=HALVES)))
    found += {
        "all_to_all": [
            ("ValueError", provoke(5, 0)),
            ("ValueError", provoke(1, 0, shape=(8, 3))),
        ],
        "pswapaxes": [("ValueError", provoke(shape=(8, 3)))],
        "all_gather": [("ValueError", provoke(axis=9))],
        "ragged_all_to_all": [("ValueError", provoke(*given[:1], *(jnp.zeros(8),) * 4))],
        "broadcast": [("ValueError", provoke(8)), ("TypeError", provoke(1.5))],
        "pbroadcast": [("ValueError", provoke(8)), ("TypeError", provoke(1.5))],
        "ppermute": [
            ("PermutationError", provoke([(0, 1), (0, 2)])),
            ("PermutationError", provoke([(0, 99)])),
            ("TypeError", provoke(5)),
        ],
        "pshuffle": [("PermutationError", provoke([0] * 8))],
    }.get(name, [])
    return found


def empty(collective: Any, world_size: int, pairs: tuple[tuple[int, int], ...] = ()) -> Schedule:
    """A schedule in which nobody does anything."""
    return Schedule.from_ops(collective, world_size, [], permutation=pairs)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_collective_raises_what_its_docstring_names(name: str):
    for error, provoke in provocations(name):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is looked at
            provoke()
        assert type(caught.value).__name__ == error, caught.value
        assert error in documented(name), f"{name} raises {error}: {caught.value}"


@pytest.mark.parametrize("name", COLLECTIVES)
def test_errors_that_a_docstring_names_can_be_provoked(name: str):
    provoked = {error for error, _ in provocations(name)}
    own = set(NAMES.findall(section(name)))
    assert own <= provoked | set(ELSEWHERE)
    if name in ("all_reduce", "all_gather"):  # others refer to theirs
        assert documented(name) <= provoked | set(ELSEWHERE)


def test_every_public_function_is_looked_at():
    functions = {
        name
        for name in jaxcoll.__all__
        if callable(getattr(jaxcoll, name)) and not isinstance(getattr(jaxcoll, name), type)
    }
    others = {"export_checks", "install", "install_report", "installed", "uninstall", "verify"}
    starts = {name for name in functions if name.endswith("_start")}  # they raise the same
    assert {name.removesuffix("_start") for name in starts} <= set(COLLECTIVES)
    assert functions - starts == set(COLLECTIVES) | others


@pytest.mark.parametrize("enter", ["install", "installed"])
def test_install_raises_for_a_table_that_cannot_be_used(
    enter: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    assert "TuningError" in section(enter)
    (tmp_path / "table.json").write_text("[" * 10_000)
    monkeypatch.setenv("JAXCOLL_TUNING", str(tmp_path / "table.json"))
    table.active.cache_clear()
    try:
        with pytest.raises(jaxcoll.TuningError, match=r"nested more than"):
            getattr(jaxcoll, enter)().__enter__()
        with pytest.raises(jaxcoll.TuningError, match=r"nested more than"):
            call("all_reduce")
    finally:
        monkeypatch.undo()
        table.active.cache_clear()
        jaxcoll.uninstall()


def test_installed_raises_in_a_function_that_is_traced():
    def body(x: jax.Array) -> jax.Array:
        with jaxcoll.installed():
            return x

    with pytest.raises(RuntimeError, match="no effect"):
        jax.jit(body)(1.0)


# --- the hierarchy ------------------------------------------------------------------------------


def test_every_error_of_ours_is_a_jaxcoll_error():
    for name in jaxcoll.__all__:
        value = getattr(jaxcoll, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, jaxcoll.JaxcollError)
            assert value.__doc__


def test_errors_keep_the_built_in_type_of_their_kind():
    assert issubclass(jaxcoll.ScheduleError, ValueError)
    assert issubclass(jaxcoll.TopologyError, ValueError)
    assert issubclass(jaxcoll.CutError, jaxcoll.TopologyError)
    assert issubclass(jaxcoll.SimulationError, RuntimeError)
    assert issubclass(jaxcoll.MscclError, ValueError)
    assert issubclass(jaxcoll.SettingError, ValueError)
    assert issubclass(jaxcoll.FileError, OSError)


def test_one_except_clause_catches_what_the_other_modules_raise():
    from jaxcoll import simulate, topology, verify
    from jaxcoll.interop import msccl

    ring = ScheduleSpec("all_reduce", 4, "ring")
    provoked: list[tuple[type[Exception], Callable[[], object]]] = [
        (jaxcoll.ScheduleError, lambda: verify(empty("all_reduce", 4))),
        (jaxcoll.MscclError, lambda: msccl.parse("<algo")),
        (jaxcoll.TopologyError, lambda: topology.parse("moebius:8")),
        (jaxcoll.TopologyError, lambda: topology.from_yaml("/nowhere.yaml")),
        (jaxcoll.CutError, lambda: simulate.run(ring, topology.switch(4), 1024, failures=["s0"])),
    ]
    for error, provoke in provoked:
        with pytest.raises(jaxcoll.JaxcollError) as caught:
            provoke()
        assert type(caught.value) is error


# --- debug --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 32, 10**6, signal.SIGKILL, "USR1"])
def test_a_number_of_no_signal_is_refused_and_leaves_nothing_behind(number: Any):
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with pytest.raises(ValueError, match="is not a signal that can be caught"):
        jaxcoll.debug.dump_on_signal(number)
    assert signal.set_wakeup_fd(before) == before


def test_signals_are_taken_in_the_main_thread_only():
    raised: list[Exception] = []

    def take() -> None:
        try:
            jaxcoll.debug.dump_on_signal()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


# --- schedules ----------------------------------------------------------------------------------


def test_a_schedule_error_survives_pickling():
    """Otherwise a pool of processes would wait forever for a result that is this error."""
    import copy
    import pickle

    error = jaxcoll.ScheduleError("race", "two writers", rank=1, op=2, step=3, chunk="output[0]")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(again) == str(error)
        assert (again.kind, again.rank, again.op, again.step, again.chunk) == (
            *("race", 1, 2, 3, "output[0]"),
        )


@pytest.mark.parametrize(
    "provoke",
    [
        lambda: schedules.algorithms("all_sing"),
        lambda: schedules.parse_algorithm("swing[4y4]"),
        lambda: schedules.build(ScheduleSpec("all_reduce", 3, "recursive_singing")),
        lambda: Schedule.from_ops("all_sing", 4, []),  # type: ignore[arg-type]
        lambda: Schedule.parse("nonsense", "all_reduce"),
    ],
)
def test_functions_that_document_a_value_error_raise_one(provoke: Callable[[], object]):
    with pytest.raises(ValueError, match=r".") as caught:
        provoke()
    assert type(caught.value) is ValueError
