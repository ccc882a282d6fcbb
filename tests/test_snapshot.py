"""Snapshots as text, which anybody may have written."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from support.made_up_jobs import COUNT, process, waits

from jaxcoll._cli import inspect
from jaxcoll._errors import SnapshotError
from jaxcoll._job.snapshot import Failed, HalfMade, parse
from jaxcoll._job.verdict import judge


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cut off"),
        (process(0).to_json()[:200], "cut off"),
        ("[]", "not a snapshot"),
        ('{"format": "1"}', "not a snapshot"),
        ('{"format": 2, "version": "0.9.0"}', r"format is 2 \(jaxcoll 0.9.0\), .* reads 1"),
        ('{"format": 1}', "lacks a field"),
        (process(0).to_json().replace('"pid": 800', '"pid": "x"'), "its field pid is wrong"),
        (process(0).to_json().replace('"threads": [{', '"threads": [7, {'), "thread in it is none"),
    ],
)
def test_a_text_that_is_no_snapshot_is_refused(text: str, words: str) -> None:
    with pytest.raises(SnapshotError, match=words):
        parse(text)


def changed(field: str, value: object) -> str:
    """A snapshot with one field changed, which "pending.0.since_s" may lead to."""
    call = waits(waits_for=[1], moved_s=1.0)
    failed = Failed("c1", "cause", 1.0, (call,))
    half = HalfMade("a call", 1.0, ("rank 0",), ("rank 1",))
    data = json.loads(process(0, call, failed=(failed,), half_made=(half,)).to_json())
    at, *rest = data, *field.split(".")
    for step in rest[:-1]:
        at = at[int(step) if isinstance(at, list) else step]
    last: Any = rest[-1]
    at[int(last) if isinstance(at, list) else last] = value
    return json.dumps(data)


def numbers_of(data: object, path: str = "") -> Iterator[str]:
    """The paths of all numbers in a snapshot."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            yield from numbers_of(value, f"{path}.{key}".strip("."))
    elif isinstance(data, int | float):
        yield path


@pytest.mark.parametrize(
    "value", ["x", None, [], {}, 1e300, -1e300, 1 << 80, math.nan, math.inf, -(1 << 70)]
)
def test_no_number_of_a_snapshot_can_be_anything_else(value: object) -> None:
    optional = ("moved_s", "number")
    for path in numbers_of(json.loads(changed("pid", 1))):
        if value is None and path.endswith(optional):
            continue
        with pytest.raises(SnapshotError):
            parse(changed(path, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("processes", value) for value in (0, -1, 1 << 40, 1 << 63)),
        *(("process", value) for value in (-1, COUNT)),
        *(("peers.0.process", value) for value in (-1, COUNT)),
        *(("pending.0.waits_for", [value]) for value in (-1, COUNT)),
        *(("failed.0.pending.0.processes", value) for value in ([], [COUNT] * COUNT)),
        *(("pending", value) for value in ("x", {}, [[]], [None], 7)),
        *(("pending.0.parts", value) for value in ([], {"x": 1}, None)),
        *(("threads.0.main", value) for value in (1, "true")),
        *(("threads.0.name", value) for value in (1, None, [])),
        *(("format", value) for value in (True, 1.0)),
    ],
)
def test_a_snapshot_that_no_process_can_have_is_refused(field: str, value: object) -> None:
    parse(changed("pid", 1))
    with pytest.raises(SnapshotError):
        parse(changed(field, value))


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, '{"format": 1, "peers": ' + "[" * 100_000, '{"a":' * 100_000),
        *('{"format": ' + "9" * 5000 + "}", b"\xff\xfe", b"\x00" * 10, "null", "1"),
    ],
    ids=lambda text: str(text[:24]),
)
def test_text_that_json_cannot_read_is_refused(text: str | bytes) -> None:
    with pytest.raises(SnapshotError):
        parse(text)


def test_texts_of_a_snapshot_are_printable() -> None:
    """Also those that are compared: they are equal still."""
    nasty = "a\x1b[2J\u202e\udc80\nb"
    call = dataclasses.replace(
        waits(waits_for=[1]), key=nasty, parts={nasty: nasty}, description=nasty, line=nasty
    )
    told = dataclasses.replace(process(0, call, command=nasty, host=nasty), job=nasty)
    read = parse(told.to_json())
    shown = r"a\x1b[2J\u202e\udc80 b"
    assert (read.job, read.host, read.command) == (shown, shown, shown)
    (one,) = read.pending
    assert (one.key, one.parts, one.description, one.line) == (shown, {shown: shown}, shown, shown)
    assert read.next_numbers[one.key] == call.number + 1
    assert parse(read.to_json()) == read


SEEDS = 600
VALUES = [
    *(0, 1, -1, 3, 4, 1 << 20, 1 << 63, 1 << 80, 0.0, -1.5, 1e12, 1e300, math.nan),
    *("", "x", "left", "down", "new", "\x1b[2J", "\udc80", f"(pid {'9' * 5000} on b)", "waits in "),
    *(None, True, [], {}, [0], [3, 3, 3], ["x"], {"x": 1}, {"x": "y"}, [[]]),
]


def places_in(data: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a JSON value that can be changed: what they are in, and the key."""
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from places_in(data[key])


def test_every_snapshot_that_parses_can_be_judged_and_shown() -> None:
    """Snapshots that a few random changes have gone through, beside a good one."""
    parsed = 0
    for seed in range(SEEDS):
        draw = random.Random(seed)
        snapshots = []
        for i in range(2):
            data = json.loads(changed("process", i))
            for _ in range(draw.choice([1, 2, 4])):
                at, key = draw.choice(list(places_in(data)))
                at[key] = copy.deepcopy(draw.choice(VALUES))
            try:
                snapshots.append(parse(json.dumps(data)))
            except SnapshotError:
                continue
        parsed += len(snapshots)
        for those in (snapshots, [*snapshots, process(2, waits(waits_for=[0, 1]))]):
            try:
                verdict = judge(those)
                look = inspect._Look("job", those, verdict)
                text, read = inspect._text([look]), json.loads(inspect._json([look]))
            except Exception as error:
                raise AssertionError(f"seed {seed}") from error
            assert text.replace("\n", "").isprintable(), f"seed {seed}"
            assert read[0]["kind"] == verdict.kind
    assert parsed > SEEDS / 8
