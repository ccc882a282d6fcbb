"""The rdma transport over real verbs, in a guest with soft-RoCE (guest.py); minutes, so by option.

    pytest --exhaustive tests/rdma

It needs the C++ tests: JAXCOLL_CPP_TESTS names the binary, else the newest one under build/ is
taken.
"""

import os
import sys
from pathlib import Path

import guest
import in_guest
import pytest

pytestmark = pytest.mark.exhaustive

BOOT_S = 120
TIMEOUT_S = 1600


def cpp_tests() -> Path | None:
    """The binary of tests/cpp; None if it has not been built."""
    if named := os.environ.get("JAXCOLL_CPP_TESTS"):
        return Path(named).resolve()
    built = in_guest.ROOT.glob("build/**/tests/cpp/jaxcoll_tests")
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the guest has left the result of each step."""
    if reason := guest.why_not():
        pytest.skip(reason)
    binary = cpp_tests()
    if binary is None:
        pytest.skip("no C++ tests here: cmake -DJAXCOLL_BUILD_TESTS=ON, or set JAXCOLL_CPP_TESTS")
    folder = tmp_path_factory.mktemp("rdma")
    script = str(in_guest.HERE / "in_guest.py")
    status, output = guest.run(
        [sys.executable, script, str(folder), str(binary)],
        writable=[folder],
        timeout_s=TIMEOUT_S,
    )
    print(output)
    assert status == 0, output
    return folder


@pytest.mark.parametrize("step", in_guest.STEPS)
def test_in_the_guest(step: str, results: Path) -> None:
    log = (results / f"{step}.log").read_text(errors="replace")
    status = (results / f"{step}.status").read_text()
    print(log)
    assert status.split()[0] == "0", f"{status}\n{log[-5000:]}"
    if step in ("links", "rails", "collectives"):
        # A device was there and was used.
        assert "[  PASSED  ]" in log
        assert "no RDMA" not in log
    if step == "jax":
        assert log.count("exact 300000") == 2
        assert log.count("# rdma: rdma, rails rxe0:1 (") == 2
        assert "buffers of calls are copied" not in log
        assert "emulated: the RDMA device is software; these times are no measure" in log
