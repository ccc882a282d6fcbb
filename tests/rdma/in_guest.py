"""The steps that run inside the guest, one after the other: python in_guest.py RESULTS BINARY.

Each leaves NAME.log and NAME.status in RESULTS; test_rdma.py looks at them. One boot serves all:
emulated, it takes longer than most of the steps.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_LAUNCH = (sys.executable, "-m", "jaxcoll", "launch")

# Name -> the command, what is added to the environment, and the most it may take in seconds.
# BINARY stands for the C++ tests.
STEPS = {
    "links": (("BINARY", "--gtest_filter=*Link*Test.*/rdma"), {}, 400),
    "rails": (("BINARY", "--gtest_filter=*RdmaTest.*/rdma"), {}, 400),
    "collectives": (("BINARY", "--gtest_filter=*CollectivesTest*_rdma-*_fake_rdma"), {}, 400),
    "jax": (
        (*_LAUNCH, "-n", "2", str(HERE / "jax_job.py")),
        {
            "JAXCOLL_TRANSPORT": "rdma",
            "JAXCOLL_IB_REGISTER_BYTES": "65536",
            "JAXCOLL_LOG": "info",
            "JAX_PLATFORMS": "cpu",
        },
        600,
    ),
}


def main(results: Path, binary: str, names: list[str]) -> None:
    """Runs the steps; a step that hangs is ended."""
    for name in names or STEPS:
        command, added, limit_s = STEPS[name]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **added, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        start = time.monotonic()
        with (results / f"{name}.log").open("w") as log:
            try:
                status = subprocess.run(
                    [binary if word == "BINARY" else word for word in command],
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    env=environment,
                    timeout=limit_s,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
        took_s = time.monotonic() - start
        (results / f"{name}.status").write_text(f"{status} after {took_s:.1f} s")
        print(f"{name}: {status} after {took_s:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
