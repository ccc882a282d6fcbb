"""Under install() nothing that lax serves fails: what jaxcoll cannot lower is left to lax.

Nothing of the attempt is left behind whatever the reason, the reason is listed, and a call that lax
refuses too is refused in lax's words. Faults of the job's set-up are raised.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lax_oracle import (
    INSTALLED,
    LAX,
    TARGET,
    XLA_COLLECTIVES,
    make_mesh,
    per_device,
    small_integers,
)

import jaxcoll
from jaxcoll._jax import install, lowering


@pytest.fixture
def x():
    return small_integers((8, 8))


@pytest.fixture(autouse=True)
def _nothing_noted_before(monkeypatch):
    monkeypatch.setattr(install, "_noted", {})


def fell_back():
    return {
        entry.primitive: entry.fell_back for entry in jaxcoll.install_report() if entry.fell_back
    }


def program(c):
    """Several collectives whose operands share functions of the module, as jnp's are."""

    def body(x):
        gathered = c.all_gather(jnp.roll(x, 1), "x", axis=1)
        exchanged = c.all_to_all(jnp.roll(x, 1), "x", 0, 0, tiled=True)
        return c.psum(jnp.roll(exchanged, 1), "x") + gathered.sum(1) + c.ppermute(x, "x", [(0, 1)])

    return per_device(make_mesh((8,)), body)


def text_and_values(implementation, x):
    with implementation.context():
        lowered = jax.jit(program(implementation.namespace)).lower(x)
    return lowered.as_text(), np.asarray(lowered.compile()(x))


class SomethingUnforeseen(Exception):
    pass


def fails_at(monkeypatch, after, kind=SomethingUnforeseen):
    """Every lowering of a call emits its operation and what is around it, and then fails."""
    emit = lowering._emit
    calls = []

    def failing(*arguments):
        calls.append(1)
        results = emit(*arguments)
        if len(calls) > after:
            raise kind("no way")
        return results

    monkeypatch.setattr(lowering, "_emit", failing)


@pytest.mark.parametrize("after", range(4))
def test_a_lowering_that_fails_half_way_leaves_the_call_to_lax(monkeypatch, caplog, x, after):
    """From the `after`th on; those before stay served."""
    _, expected = text_and_values(LAX, x)
    fails_at(monkeypatch, after)
    with caplog.at_level(logging.WARNING, "jaxcoll"):
        text, actual = text_and_values(INSTALLED, x)
    np.testing.assert_array_equal(actual, expected)
    assert text.count(f"@{TARGET}(") == after
    assert sum(text.count(f'"{name}"') for name in XLA_COLLECTIVES) == 4 - after
    reasons = fell_back()
    assert len(reasons) == 4 - after
    assert set(reasons.values()) == {("SomethingUnforeseen: no way",)}
    assert len(caplog.records) == 4 - after
    assert "left to XLA: SomethingUnforeseen: no way" in caplog.records[0].getMessage()


def test_a_failed_attempt_leaves_nothing_in_the_program(monkeypatch, x):
    """To the letter, but for the numbers that functions of one name are told apart by."""

    def without_numbers(text):
        return sorted(line.strip() for line in text.replace("_0", "").splitlines())

    expected, _ = text_and_values(LAX, x)
    fails_at(monkeypatch, 0)
    text, _ = text_and_values(INSTALLED, x)
    assert without_numbers(text) == without_numbers(expected)


def test_a_failure_inside_of_a_function_of_the_module_leaves_no_half_of_it(monkeypatch, x):
    """An inner jit becomes a function of the module, which JAX finishes at its end."""
    _, expected = text_and_values(LAX, x)
    psum = install.api.psum
    inner = jax.jit(lambda x: psum(jnp.cumsum(jnp.roll(x, 1)), "x"))
    monkeypatch.setattr(install.api, "psum", lambda x, axes, axis_index_groups: inner(x))
    fails_at(monkeypatch, 0)
    text, actual = text_and_values(INSTALLED, x)
    np.testing.assert_array_equal(actual, expected)
    assert TARGET not in text
    assert "cumsum" not in text


def test_functions_that_a_failed_attempt_has_lowered_are_lowered_again(monkeypatch, x):
    """JAX remembers what it has lowered, here a function that the program calls once more."""
    weights = np.arange(8, dtype=np.float32)
    shared = jax.jit(lambda w: jnp.cumsum(w) + 1)
    psum = install.api.psum

    def body(x):
        return jax.lax.psum(x, "x") + shared(weights)

    function = per_device(make_mesh((8,)), body)
    expected = np.asarray(jax.jit(function)(x))
    monkeypatch.setattr(
        install.api, "psum", lambda x, axes, axis_index_groups: psum(x * shared(weights), axes)
    )
    fails_at(monkeypatch, 0)
    with jaxcoll.installed():
        lowered = jax.jit(function).lower(x)
    np.testing.assert_array_equal(lowered.compile()(x), expected)
    assert fell_back()


def test_each_reason_is_listed_once_and_not_without_end(monkeypatch, x):
    fails_at(monkeypatch, 0)
    for _ in range(2):
        text_and_values(INSTALLED, x)
    assert {name: len(reasons) for name, reasons in fell_back().items()} == {
        name: 1 for name in fell_back()
    }
    for number in range(100):
        install._note("psum", SomethingUnforeseen(f"number {number}"))
    assert len(fell_back()["psum"]) == install._NOTED_AT_MOST


def test_calls_that_jaxcoll_refuses_are_listed_and_not_logged(caplog, x):
    complex_max = jax.jit(per_device(make_mesh((8,)), lambda x: jax.lax.pmax(x, "x")))
    with jaxcoll.installed(), caplog.at_level(logging.WARNING, "jaxcoll"):
        assert TARGET not in complex_max.lower(x.astype(np.complex64)).as_text()
    (reason,) = fell_back()["pmax"]
    assert "not defined for complex64" in reason
    assert not caplog.records


@pytest.mark.parametrize("kind", [jaxcoll.TuningError, OSError, MemoryError])
def test_faults_of_the_job_are_raised(monkeypatch, x, kind):
    """One process alone must not leave a call to XLA."""
    fails_at(monkeypatch, 0, kind)
    with pytest.raises(kind, match="no way"):
        text_and_values(INSTALLED, x)
    assert not fell_back()


@pytest.mark.parametrize(
    ("perm", "error"),
    [
        ([(0, 8)], IndexError),
        ([(8, 0)], IndexError),
        ([(0, -9)], IndexError),
        ([(0, 1), (8, 1)], ValueError),
        ([(0, 1), (0, 2)], ValueError),
        ([(1, 0), (0, 8)], ValueError),
        ([(0.5, 1)], TypeError),
    ],
)
def test_a_permutation_that_lax_refuses_is_refused_by_lax(x, perm, error):
    function = jax.jit(per_device(make_mesh((8,)), lambda x: jax.lax.ppermute(x, "x", perm)))
    with pytest.raises(error) as without:
        function.lower(x)
    with jaxcoll.installed(), pytest.raises(error) as inside:
        function.lower(x)
    assert str(inside.value) == str(without.value)
    assert not fell_back()


def test_negative_indices_of_a_permutation_are_served_as_lax_reads_them(x):
    perm = [(-1, 0), (0, -1), (-8 + 2, 3)]
    function = per_device(make_mesh((8,)), lambda x: jax.lax.ppermute(x, "x", perm))
    expected = np.asarray(jax.jit(function)(x))
    with jaxcoll.installed():
        lowered = jax.jit(function).lower(x)
        assert TARGET in lowered.as_text()
    np.testing.assert_array_equal(lowered.compile()(x), expected)
