"""Runs before JAX is imported: every test sees eight CPU devices, no accelerator and no table of
`jaxcoll tune`."""

import gc
import os
import tempfile

import pytest
from support import warm_python, xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAXCOLL_TUNING"] = "off"  # whoever runs them may have tuned this machine
os.environ["XLA_FLAGS"] = xla_flags.of_tests()
# `jaxcoll inspect` connects to all jobs of a user. In a folder of its own a test process meets
# neither the user's jobs nor those of other test processes. Not pytest's: a socket's path is short.
_runtime_dir = tempfile.TemporaryDirectory(prefix="jaxcoll-tests-", dir="/tmp")
os.environ["XDG_RUNTIME_DIR"] = _runtime_dir.name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds", type=int, default=0, help="random cases of each test that draws them, from 0 on"
    )
    parser.addoption(
        "--exhaustive", action="store_true", help="also the tests that mostly repeat others' ground"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--exhaustive"):
        os.environ["XLA_FLAGS"] = xla_flags.optimizing(os.environ["XLA_FLAGS"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A worker that is done takes tests from one that is not, unless --dist says otherwise.

    The tests between processes mostly wait. In xdist's own order one worker is left with the last
    of them, which takes minutes.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A case for each of N seeds: `seeds(usual, exhaustive=N)`, or the N of --seeds."""
    if (marker := metafunc.definition.get_closest_marker("seeds")) is None:
        return
    option = metafunc.config.getoption
    usual = marker.kwargs["exhaustive"] if option("--exhaustive") else marker.args[0]
    metafunc.parametrize("seed", range(option("--seeds") or usual))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Thousands of items and all of JAX live on: the collector need not look at them each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """No process outlives the tests, and what was frozen is collected when the interpreter ends."""
    warm_python.close()
    gc.unfreeze()
    _runtime_dir.cleanup()
