"""Every option of ``jaxcoll simulate`` and of the kinds of networks, with values that cannot be.

The options are those that the parser and the kinds have: a new one is tested, or fails the test
that says which kinds of options there are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from jaxcoll._cli import simulate
from jaxcoll.sim import arguments
from jaxcoll.sim.arguments import (
    Algorithm,
    Argument,
    Choice,
    Collect,
    ListOf,
    Number,
    Pairs,
    Placement,
    ScheduleFile,
    Sizes,
    Text,
    TimedChange,
)
from jaxcoll.sim.options import options_of
from jaxcoll.topology import KINDS, TopologyError, from_yaml, parse

NOT_A_NUMBER = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e999",
    "1_000",
    "\u0663",
    " ",
    "0x10",
    "one",
    "1,",
    "",
)
OPTIONS: dict[str, argparse.Action] = {
    action.option_strings[-1]: action
    for action in simulate.parser()._actions
    if action.option_strings and action.nargs != 0
}
FILES = {
    name
    for name, action in OPTIONS.items()
    if getattr(action.type, "__module__", "") == "jaxcoll._files"
}


def number_of(kind: Argument) -> Number | None:
    """The numbers that values of an option hold, if they hold any."""
    match kind:
        case Number():
            return kind
        case ListOf():
            return number_of(kind.item)
        case Pairs():
            return kind.number
        case TimedChange():
            return Number(0)
        case Sizes():
            return Number(1, arguments.MOST_BYTES)
        case Text() | Choice() | Algorithm() | Placement() | ScheduleFile():
            return None
    raise AssertionError(f"say what numbers {kind!r} holds")


def with_number(kind: Argument, number: str) -> str:
    """A value of an option with this number in it."""
    if isinstance(kind, Pairs):
        return f"1={number}"
    return f"0s:h0={number}" if isinstance(kind, TimedChange) else number


def type_of(name: str) -> Argument:
    kind = OPTIONS[name].type
    assert isinstance(kind, Argument)
    return kind


TYPED = [name for name in OPTIONS if name not in FILES]
NUMERIC = [name for name in TYPED if number_of(type_of(name))]
LISTS = [name for name in TYPED if isinstance(OPTIONS[name].type, ListOf)]


def refused(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """The one line, of bounded length, with which a command line is refused."""
    network = [] if given[0].startswith("--topology=") else ["--topology=switch:2"]
    with pytest.raises(SystemExit) as error:
        simulate.main([*network, *given])
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("jaxcoll simulate: error: ")
    assert captured.err.count("error: ") == 1
    assert len(last) < 500
    assert last.isprintable()
    return last


def test_every_option_is_of_a_kind_that_has_a_range() -> None:
    assert {"--json", "--html", "--trace"} == FILES
    assert {"--seeds", "--reduce-rate", "--slow", "--change", "--bytes"} <= set(NUMERIC)
    for name, action in OPTIONS.items():
        assert name in FILES or isinstance(action.type, Argument), name
        assert not isinstance(action, argparse._AppendAction), f"{name}: use Collect"


@pytest.mark.parametrize("value", ["", "x" * 5000])
@pytest.mark.parametrize("name", TYPED)
def test_no_option_takes_nothing_or_a_text_without_end(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"argument {name}: " in refused(capsys, f"{name}={value}")


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, "1" * 5000])
@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_are_decimal_finite_and_not_negative(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = with_number(type_of(name), value)
    assert f"argument {name}: " in refused(capsys, f"{name}={given}")


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_are_in_their_ranges(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = type_of(name)
    number = number_of(kind)
    assert number
    low = f"{number.low:.0f}" if float(number.low).is_integer() else repr(number.low)
    if number.above:
        assert f"must be above {low}" in refused(capsys, f"{name}={with_number(kind, low)}")
    else:
        kind(with_number(kind, low))
    if number.high < float("inf"):
        beyond = f"{2 * number.high:.0f}"
        told = refused(capsys, f"{name}={with_number(kind, beyond)}")
        assert "must be at least" in told
        assert "and at most" in told


@pytest.mark.parametrize("name", LISTS)
def test_lists_have_no_gaps_and_nothing_twice(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = type_of(name)
    assert isinstance(kind, ListOf)
    item = kind.item
    one = item.choices[0] if isinstance(item, Choice) else "1" if number_of(item) else "ring"
    kind(one)
    for given in (",", ",,", f"{one},", f",{one}", f"{one},,{one}"):
        assert "values with a comma between them" in refused(capsys, f"{name}={given}")
    assert f"{one!r} is given twice" in refused(capsys, f"{name}={one},{one}")


def test_pairs_name_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'1' is given twice" in refused(capsys, "--slow=1=2,1=3")
    assert "'switches' is given twice" in refused(capsys, "--prices=switches=2,switches=3")
    assert "write RANK=FACTOR: 'a' is not a whole number" in refused(capsys, "--slow=a=2")


def test_options_that_may_be_repeated_differ_each_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    repeated = {name for name, action in OPTIONS.items() if isinstance(action, Collect)}
    values = {"--topology": "switch:2", "--down": "h0", "--change": "0s:h0"}
    assert repeated == {*values, "--schedule"}
    for name, value in values.items():
        assert "is given twice" in refused(capsys, f"{name}={value}", f"{name}={value}")
    assert "--fail-at needs --fail" in refused(capsys, "--fail-at=1us")
    file = tmp_path / "out"
    assert "name the same file" in refused(capsys, f"--json={file}", f"--html={file}")


def test_sizes_are_each_simulated_once() -> None:
    assert Sizes()("4:16:2,8,1K") == [4, 8, 16, 1024]


# --- networks -------------------------------------------------------------------------------------

KIND_OPTIONS = [(kind, name) for kind in KINDS for name in options_of(kind)]


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, "1" * 5000])
@pytest.mark.parametrize(("kind", "name"), KIND_OPTIONS)
def test_options_of_networks_are_numbers(kind: str, name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(TopologyError) as error:
        parse(f"{kind}:4,{name}={value}")
    file = tmp_path / "network.yaml"
    file.write_text(f"kind: {kind}\nsize: 4\n{name}: {value}\n")
    with pytest.raises(TopologyError) as of_file:
        from_yaml(file)
    for told in (str(error.value), str(of_file.value).removeprefix(str(file))):
        assert told.isprintable()
        assert len(told) < 400


@pytest.mark.parametrize(
    ("kind", "name"), [option for option in KIND_OPTIONS if "latency" not in option[1]]
)
def test_only_latencies_of_networks_may_be_zero(kind: str, name: str) -> None:
    with pytest.raises(TopologyError):
        parse(f"{kind}:4,{name}=0")


@pytest.mark.parametrize(("kind", "name"), KIND_OPTIONS)
def test_no_option_of_a_network_has_two_values(kind: str, name: str, tmp_path: Path) -> None:
    parameter = options_of(kind)[name]
    for first, second in {(name, name), (name, parameter.name), (parameter.name, name)}:
        told = f"has the option {second} twice"
        with pytest.raises(TopologyError, match=told):
            parse(f"{kind}:4,{first}=2,{second}=2")
        if first != second:
            file = tmp_path / "network.yaml"
            file.write_text(f"kind: {kind}\nsize: 4\n{first}: 2\n{second}: 2\n")
            with pytest.raises(TopologyError, match=f"line 4: .*{told}"):
                from_yaml(file)
