"""The file by which "auto" picks: what it may say, where it is looked for, what it decides."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import row, text, write

from jaxcoll import TuningError, verify
from jaxcoll import schedule as schedules
from jaxcoll._native import native
from jaxcoll.tune import select
from jaxcoll.tune import table as _tuning

TUNED = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast")


# --- the file -----------------------------------------------------------------------------------


def test_a_table_survives_its_file():
    table = _tuning.parse(text(row([100, "ring"], [None, "direct"]), row([None, "bruck"], **A2A)))
    again = _tuning.parse(_tuning.to_json(table))
    assert again.picks == table.picks
    assert again.digest == table.digest


A2A = {"collective": "all_to_all", "layout": "host"}


def test_the_digest_is_of_what_decides_and_of_nothing_else():
    one = _tuning.parse(text(row([None, "ring"]), row([None, "bruck"], **A2A), date="today"))
    same = _tuning.parse(text(row([None, "bruck"], **A2A), row([None, "ring"]), date="then"))
    other = _tuning.parse(text(row([None, "ring"]), row([None, "direct"], **A2A), date="today"))
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is not JSON"),
        ('{"format": 1, "picks": [', "it is not JSON"),
        ("[]", "no table of `jaxcoll tune`"),
        ("{}", "no table of `jaxcoll tune`"),
        ('{"format": 2, "picks": []}', "its format is 2, this version reads 1"),
        ('{"format": 1}', "it has no picks"),
        (text(7), "entry 0 of its picks: it is no object"),
        (text({"layout": "host"}), "entry 0 of its picks: no 'collective'"),
        (text(row([None, "ring"], layout="moon")), "layout 'moon'; there are process, host"),
        (text(row([None, "ring"], collective="all_sing")), "all_sing"),
        (text(row([None, "ring"]), row([None, "song"])), "entry 1 .* no algorithm 'song'; there"),
        (text(row([None, "ring"], world_size=0)), "world_size and ranks_per_node are"),
        (text(row([None, "ring"], world_size=True)), "world_size and ranks_per_node are"),
        (text(row([None, "ring"], ranks_per_node="2")), "world_size and ranks_per_node are"),
        (text(row()), "it has no algorithms"),
        (text(row([5])), r"\[5\] is no pair"),
        (text(row([5, "ring"])), "the last algorithm, and only that, has null"),
        (text(row([None, "ring"], [None, "direct"])), "the last algorithm, and only that"),
        (text(row([9, "ring"], [5, "direct"], [None, "ring"])), "its bytes do not ascend"),
        (text(row([1.5, "ring"], [None, "direct"])), "its bytes do not ascend"),
        (text(row([None, "ring"]), row([None, "direct"])), "it has two entries for"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused_with_the_reason(
    content: str, why: str, tmp_path: Path
):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(TuningError, match=why) as caught:
        _tuning.load({"JAXCOLL_TUNING": str(path)})
    assert str(path) in str(caught.value)
    assert "JAXCOLL_TUNING=off" in str(caught.value)


HUGE = int("9" * 4000)
HOSTILE = [
    *("[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 100_000, '{"format": 1, "format": 1}'),
    *(text(date=[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]), '{"format": NaN}', '{"format": -Infinity}'),
    *('{"format": 1, "picks": [], "x": NaN}', '{"format": true, "picks": []}'),
    *('{"format": 1.0, "picks": []}', '{"format": ' + "9" * 5000 + "}", '{"format": [[]]}'),
    *(text(row([None, "ring"], collective=["all_reduce"])), "\x00", "\ufeff{}", "null", '"text"'),
    *(text(row([None, "ring"], collective={})), text(row([None, "ring"], layout=[]))),
    *(text(row([None, "ring"], collective="\ud800")), text(row([None, "\ud800\x1b[31m\n"]))),
    *(text(row([None, "ring"], world_size=HUGE)), text(row([HUGE, "ring"], [None, "ring"]))),
    *(
        text(row([None, ["ring"]])),
        text(row([None, None])),
        text(row([-1, "ring"], [None, "ring"])),
    ),
    *(text(row([None, "x" * 100_000])), text("x" * 100_000), text([])),
    *('{"format": 1, "picks": {"a": 1}}', '{"format": 1, "picks": [{"layout": "host"}, NaN]}'),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_file_is_refused_in_one_line(content: str, tmp_path: Path):
    path = tmp_path / "table.json"
    path.write_text(content, "utf-8")
    with pytest.raises(TuningError) as caught:
        _tuning.load({"JAXCOLL_TUNING": str(path)})
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 1000
    assert str(path) in line
    assert "JAXCOLL_TUNING=off" in line


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)


@given(st.sampled_from(["format", "picks", "machine", "date", *row()]), json_values)
def test_any_value_in_any_place_is_taken_or_refused_in_one_line(place: str, value: Any):
    content: dict[str, Any] = {"format": 1, "picks": [row([9, "ring"], [None, "direct"])]}
    (content["picks"][0] if place in row() else content)[place] = value
    try:
        table = _tuning.parse(json.dumps(content), "a file")
    except TuningError as error:
        refused = str(error)
    else:
        refused = ""
    assert refused == "" or refused.isprintable()
    if refused:
        return
    for picks in table.picks:
        table.find(picks.layout, picks.collective, 2, picks.ranks_per_node, 100)
    assert _tuning.parse(_tuning.to_json(table)).digest == table.digest
    assert isinstance(_tuning._trouble(table), str)


def test_many_entries_are_looked_through_at_once(tmp_path: Path):
    """Not each beside each other: that would take hours."""
    rows = [row([None, "ring"], world_size=2 + size) for size in range(20_000)]
    path = write(tmp_path / "table.json", *rows, rows[0])
    with pytest.raises(TuningError, match="it has two entries for"):
        _tuning.load({"JAXCOLL_TUNING": str(path)})


@pytest.mark.parametrize("what", ["folder", "fifo", "device", "loop", "large", "binary", "locked"])
@pytest.mark.parametrize("named", [True, False])
def test_a_file_that_cannot_be_read_is_told_and_never_waited_for(
    what: str, named: bool, tmp_path: Path
):
    path = tmp_path / "jaxcoll" / "tuning.json"
    path.parent.mkdir()
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to(path)
    elif what == "large":
        with path.open("wb") as file:
            file.truncate(1 << 30)
    elif what == "binary":
        path.write_bytes(b'{"format": "\xff"}')
    else:
        path.write_text("{}")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user reads everything")
    if named:
        with pytest.raises(TuningError) as caught:
            _tuning.load({"JAXCOLL_TUNING": str(path)})
        line = str(caught.value)
    else:
        with pytest.warns(UserWarning, match="the shipped rules are used") as warned:
            assert _tuning.load({"XDG_CACHE_HOME": str(tmp_path)}) is None
        line = str(warned[0].message)
    assert f"the tuning table {path} cannot be read: " in line
    assert line.isprintable()


# --- where it is --------------------------------------------------------------------------------


def test_a_table_in_the_default_place_is_found(tmp_path: Path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert _tuning.load(environment) is None
    path = _tuning.default_path(environment)
    path.parent.mkdir()
    write(path, row([None, "ring"]))
    found = _tuning.load(environment)
    assert found is not None
    assert found.path == str(path) == str(tmp_path / "jaxcoll" / "tuning.json")
    assert _tuning.load({**environment, "JAXCOLL_TUNING": "off"}) is None
    assert _tuning.default_path({"HOME": "/home/me"}) == Path("/home/me/.cache/jaxcoll/tuning.json")


def test_a_table_that_is_named_must_be_there(tmp_path: Path):
    with pytest.raises(TuningError, match="there is no such file; `jaxcoll tune --output"):
        _tuning.load({"JAXCOLL_TUNING": str(tmp_path / "absent.json")})
    with pytest.raises(TuningError, match="cannot be read"):
        _tuning.load({"JAXCOLL_TUNING": str(tmp_path)})  # a folder


def test_a_table_that_nobody_named_is_left_alone_if_it_is_broken(tmp_path: Path):
    path = _tuning.default_path({"XDG_CACHE_HOME": str(tmp_path)})
    path.parent.mkdir()
    path.write_text("{")
    with pytest.warns(UserWarning, match="it is not JSON.*the shipped rules are used"):
        assert _tuning.load({"XDG_CACHE_HOME": str(tmp_path)}) is None
    path.write_bytes(b"\xff\xfe")
    with pytest.warns(UserWarning, match="cannot be read.*the shipped rules are used"):
        assert _tuning.load({"XDG_CACHE_HOME": str(tmp_path)}) is None


def test_a_table_of_a_larger_machine_is_used_only_if_it_is_named(tmp_path: Path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    path = _tuning.default_path(environment)
    path.parent.mkdir()
    write(path, row([None, "ring"]), machine={"cores": _tuning.cores() + 1})
    with pytest.warns(UserWarning, match="it was measured on .* cores.*the shipped rules are"):
        assert _tuning.load(environment) is None
    with pytest.warns(UserWarning, match="it is used all the same"):
        assert _tuning.load({"JAXCOLL_TUNING": str(path)}) is not None
    write(path, row([None, "ring"]), machine={"cores": _tuning.cores()})
    assert _tuning.load(environment) is not None


# --- what it decides ----------------------------------------------------------------------------


def chosen(table: _tuning.Table | None, collective: str, world_size: int, **options: Any) -> str:
    return select.choose(collective, "auto", world_size, table=table, **options).algorithm


def test_the_entry_of_the_next_smaller_number_of_ranks_counts():
    table = _tuning.parse(
        text(
            row([64, "ring"], [None, "direct2"], world_size=4),
            row([None, "halving_doubling"], world_size=16),
        )
    )
    assert [chosen(table, "all_reduce", p, byte_count=64) for p in (2, 4, 9, 16, 40)] == [
        *("ring", "ring", "ring"),
        *("halving_doubling", "halving_doubling"),
    ]
    assert chosen(table, "all_reduce", 4, byte_count=65) == "direct2"


def test_a_table_decides_only_what_it_speaks_of():
    table = _tuning.parse(text(row([None, "ring"], layout="host")))
    assert chosen(table, "all_reduce", 4, processes=4) == "ring"
    for other in ({"processes": 1}, {"processes": 4, "hosts": 2}):
        assert chosen(table, "all_reduce", 4, **other) == chosen(None, "all_reduce", 4, **other)
    near = {"processes": 2, "ranks_per_node": 2}
    assert chosen(table, "all_reduce", 4, **near) == "hierarchical"
    assert chosen(table, "all_gather", 4, processes=4) == "direct"
    assert chosen(table, "ragged_all_to_all", 4, processes=4) == "direct"


def test_algorithms_that_cannot_run_so_many_ranks_are_not_picked():
    """A message of so many chunks does not fit the slots of the engine."""
    table = _tuning.parse(text(row([None, "halving_doubling"], layout="host")))
    small = {"byte_count": 64}
    assert chosen(table, "all_reduce", 64, processes=64, **small) == "halving_doubling"
    assert chosen(table, "all_reduce", 16384, processes=16384, **small) == "recursive_doubling"


def test_gpus_have_rules_of_their_own():
    table = _tuning.parse(text(*(row([None, "ring"], layout=x) for x in _tuning.LAYOUTS)))
    for nbytes in (1, 1 << 30):
        options = {"byte_count": nbytes, "on_gpu": True}
        assert chosen(table, "all_reduce", 8, **options) == chosen(None, "all_reduce", 8, **options)


def test_sizes_between_two_that_were_looked_at_go_to_the_nearer_one():
    steps = _tuning.steps_of([10, 1000, 100_000], ["ring", "ring", "direct"])
    assert steps == ((10_000, "ring"), (None, "direct"))
    assert _tuning.steps_of([8], ["ring"]) == ((None, "ring"),)


@st.composite
def tables(draw: st.DrawFn) -> _tuning.Table:
    """Any table at all."""
    rows = {}
    for _ in range(draw(st.integers(1, 6))):
        collective = draw(st.sampled_from(TUNED))
        name = st.sampled_from(schedules.algorithms(collective))
        limits = sorted(draw(st.sets(st.integers(0, 1 << 20), max_size=3)))
        made = row(
            *([limit, draw(name)] for limit in limits),
            [None, draw(name)],
            layout=draw(st.sampled_from(_tuning.LAYOUTS)),
            collective=collective,
            world_size=draw(st.integers(1, 20)),
            ranks_per_node=draw(st.integers(1, 4)),
        )
        key = tuple(made[k] for k in ("layout", "collective", "world_size", "ranks_per_node"))
        rows[key] = made
    return _tuning.parse(text(*rows.values()))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_a_table_says_the_pick_is_a_schedule_that_is_proved_right(data: st.DataObject):
    table = data.draw(tables())
    collective = data.draw(st.sampled_from(TUNED))
    each, nodes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    world_size = each * nodes
    layout = data.draw(st.sampled_from(_tuning.LAYOUTS))
    choice = select.choose(
        collective,
        "auto",
        world_size,
        byte_count=data.draw(st.integers(0, 1 << 21)),
        ranks_per_node=data.draw(st.sampled_from([0, 1, each])),
        processes=1 if layout == "process" else world_size,
        hosts=nodes if layout == "hosts" else 1,
        axes=data.draw(st.sampled_from([(), (world_size,), (nodes, each)])),
        table=table,
    )
    spec = schedules.ScheduleSpec(
        cast(schedules.Collective, collective), world_size, choice.algorithm, dims=choice.dims
    )
    verify(schedules.build(spec))
    if layout != "process":  # it fits the engine's slots
        native.engine_slices(
            collective, choice.algorithm, world_size, list(choice.dims), "", "float32", 1000
        )


def test_json_of_a_table_is_for_people_too():
    table = _tuning.parse(text(row([None, "ring"]), machine={"cores": 2}))
    assert json.loads(_tuning.to_json(table))["machine"] == {"cores": 2}


@pytest.mark.parametrize("pick", ["ring", "direct2"])
def test_a_choice_among_thousands_of_processes_builds_nothing_in_python(
    pick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing asks for each call; a ring of 4096 ranks has 16380 ops a rank."""
    monkeypatch.delattr(native, "build_schedule")
    table = _tuning.parse(text(row([None, pick], world_size=4096, layout="host")))
    choice = select.choose(
        "all_reduce", "auto", 4096, byte_count=1 << 20, processes=4096, table=table
    )
    assert choice.algorithm == pick
