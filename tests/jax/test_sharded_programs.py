"""Training programs of flax, equinox, optax and orbax, unmodified: with jaxcoll as without it."""

import jax
import numpy as np
import pytest
from support.sharded_programs import PROGRAMS

import jaxcoll
from jaxcoll._jax import compat, hook

pytestmark = pytest.mark.skipif(bool(compat.hook_trouble()), reason=compat.hook_trouble() or "-")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_sharded_program_trains_as_without_jaxcoll(name: str) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("dp", "tp"))
    expected = PROGRAMS[name](mesh)
    reports = len(hook.reports())
    with jaxcoll.installed():
        trained = PROGRAMS[name](mesh)
    new = hook.reports()[reports:]
    assert sum(report.served for report in new) > 0
    assert not [left for report in new for left in report.left]
    for ours, theirs in zip(trained, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
