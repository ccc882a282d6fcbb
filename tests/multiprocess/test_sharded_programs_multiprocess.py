"""Training programs of flax, equinox, optax and orbax, unmodified, in several processes: jaxcoll
against XLA's own collectives over gloo."""

import pytest
from processes import run
from support.sharded_programs import PROGRAMS

from jaxcoll._jax import compat

pytestmark = pytest.mark.skipif(bool(compat.hook_trouble()), reason=compat.hook_trouble() or "-")

SCRIPT = """
import jaxcoll
from jaxcoll._jax import hook
from support.sharded_programs import PROGRAMS

mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 2), ("dp", "tp"))
expected = PROGRAMS["{name}"](mesh)
jaxcoll.install()
trained = PROGRAMS["{name}"](mesh)
assert any(report.served for report in hook.reports())
assert not [left for report in hook.reports() for left in report.left]
for ours, theirs in zip(trained, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
"""
QUICK = {("nnx_mlp", 2), ("accumulation", 2), ("explicit_axes", 4)}


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        pytest.param(
            *(name, processes), marks=[] if (name, processes) in QUICK else pytest.mark.exhaustive
        )
        for name in PROGRAMS
        for processes in (2, 4)
    ],
)
def test_a_sharded_program_trains_as_over_gloo(name: str, processes: int) -> None:
    run(SCRIPT.format(name=name), processes=processes, devices=4 // processes)
