"""JAXCOLL_KEEP_MEMORY: arrays of the next step need no fresh pages."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcoll._jax import memory

ROOT = Path(__file__).parents[2]

# Prints the pages that 30 steps touched for the first time, in units of an array's pages. Before
# that the heap grows to the arrays that are alive at once.
STEPS = """
import resource
import jax, jaxcoll

step = jax.jit(lambda x: x + 1)
x = jax.numpy.ones(1 << 22)  # 16 MiB
for i in range(60):
    if i == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() / x.nbytes)
"""


def fresh_arrays(setting: str) -> float:
    """Each step takes one array, so without the setting this is 30."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAXCOLL_KEEP_MEMORY": setting}
    environment.pop("GLIBC_TUNABLES", None)  # it would win
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, text=True, capture_output=True, check=True
    )
    return float(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize("setting", ["1", "all"])
def test_freed_memory_serves_the_next_step(setting: str) -> None:
    assert fresh_arrays(setting) < 10


def test_a_c_library_without_mallopt_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with pytest.warns(UserWarning, match="JAXCOLL_KEEP_MEMORY has no effect"):
        memory.keep("1")
    memory.keep("0")
