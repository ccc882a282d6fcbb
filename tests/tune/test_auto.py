"""The text that "auto" puts into programs, with and without a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from tables import row, write

import jaxcoll
from jaxcoll import TuningError
from jaxcoll.tune import table


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Makes this process read a table of these rows, as a new one would; its digest."""

    def read_anew() -> None:
        jax.clear_caches()
        table.active.cache_clear()

    def use(*rows: Any) -> str:
        path = write(tmp_path / "table.json", *rows)
        monkeypatch.setenv("JAXCOLL_TUNING", str(path))
        read_anew()
        return table.parse(path.read_text()).digest

    yield use
    monkeypatch.undo()
    read_anew()


def calls(algorithm: str = "auto", size: int = 64) -> tuple[Callable[..., Any], np.ndarray]:
    mesh = Mesh(np.array(jax.devices()[:4]), "x")
    x = np.arange(4 * size, dtype=np.float32).reshape(4, size)
    body = lambda x: jaxcoll.all_reduce(x, "x", algorithm=algorithm)  # noqa: E731
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P())), x


def attributes(text: str) -> list[tuple[str, str]]:
    """(algorithm, tuning) of each call."""
    return [
        (re.search(r'algorithm = "(\w*)"', line)[1], re.search(r'tuning = "(\w*)"', line)[1])  # type: ignore[index]
        for line in text.splitlines()
        if "jaxcoll_collective" in line
    ]


def test_the_table_picks_and_its_digest_stands_in_the_program(use: Callable[..., str]):
    digest = use(row([256, "recursive_doubling"], [None, "ring"], world_size=4))
    for size, algorithm in ((64, "recursive_doubling"), (65, "ring")):
        f, x = calls(size=size)
        assert attributes(f.lower(x).as_text()) == [(algorithm, digest)]
        np.testing.assert_array_equal(f(x)[0], x.sum(0))


def test_without_a_table_the_program_says_so():
    f, x = calls()
    assert attributes(f.lower(x).as_text()) == [("direct", "shipped")]


def test_an_algorithm_that_is_named_has_nothing_to_do_with_tables(use: Callable[..., str]):
    use(row([None, "ring"], world_size=4))
    f, x = calls("halving_doubling")
    assert attributes(f.lower(x).as_text()) == [("halving_doubling", "")]


def test_a_table_is_read_once(use: Callable[..., str], tmp_path: Path):
    digest = use(row([None, "ring"], world_size=4))
    f, x = calls()
    assert attributes(f.lower(x).as_text()) == [("ring", digest)]
    write(tmp_path / "table.json", row([None, "direct2"], world_size=4))
    jax.clear_caches()
    g, x = calls()
    assert attributes(g.lower(x).as_text()) == [("ring", digest)]


def test_an_exported_program_keeps_what_was_picked(use: Callable[..., str], tmp_path: Path):
    digest = use(row([None, "ring"], world_size=4))
    f, x = calls()
    exported = jax.export.export(f, disabled_checks=jaxcoll.export_checks())(x)
    use(row([None, "direct2"], world_size=4))
    again = jax.export.deserialize(bytearray(exported.serialize()))
    called = jax.jit(again.call)
    mesh = Mesh(np.array(jax.devices()[:4]), "x")
    placed = jax.device_put(x, jax.NamedSharding(mesh, P("x")))
    assert attributes(called.lower(placed).as_text()) == [("ring", digest)]
    np.testing.assert_array_equal(called(placed)[0], x.sum(0))


def test_a_table_that_cannot_be_used_is_told_where_auto_is_traced(
    use: Callable[..., str], tmp_path: Path
):
    use(row([None, "ring"], world_size=4))
    (tmp_path / "table.json").write_text("{")
    table.active.cache_clear()
    f, x = calls("ring")
    f(x)
    g, x = calls()
    with pytest.raises(TuningError, match="it is not JSON"):
        g(x)
