"""The XLA_FLAGS that tests run with, in pytest's process and in those it starts."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path

DEVICES = 8
_DEVICE_COUNT = "--xla_force_host_platform_device_count"
# Most of the tests' time is XLA's, which compiles thousands of small programs that run once. What
# these turn off makes the code beside our custom calls faster and halves the time that takes. They
# change neither what JAX lowers nor what our calls are handed.
_COMPILE_QUICKLY = {
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    "--xla_cpu_use_fusion_emitters": "false",
}


def of_tests() -> str:
    """What stands in XLA_FLAGS, with eight devices unless it says how many; without any, those that
    compile quickly."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not flags:
        flags = " ".join(f"{name}={_COMPILE_QUICKLY[name]}" for name in _known(_COMPILE_QUICKLY))
    return flags if _DEVICE_COUNT in flags else f"{flags} {_DEVICE_COUNT}={DEVICES}".strip()


def optimizing(flags: str) -> str:
    """`flags` without those that compile quickly."""
    return " ".join(f for f in flags.split() if f.split("=")[0] not in _COMPILE_QUICKLY)


def with_devices(count: int) -> str:
    """The flags of this process with another number of devices."""
    return re.sub(rf"{_DEVICE_COUNT}=\d+", f"{_DEVICE_COUNT}={count}", of_tests())


def _known(names: Iterable[str]) -> list[str]:
    """Those that this jaxlib has: XLA ends a process over one that it does not know."""
    jaxlib = importlib.util.find_spec("jaxlib")
    assert jaxlib is not None
    assert jaxlib.origin is not None
    known = set()
    for library in Path(jaxlib.origin).parent.glob("*.so"):
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            known |= {name for name in names if text.find(f"{name[2:]}\0".encode()) >= 0}
    return [name for name in names if name in known]
