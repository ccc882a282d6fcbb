"""Programs that XLA's compiler for GPUs compiles, in a process of their own.

That needs no GPU, only the plugin: pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt, of the
version of JAX.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jaxcoll._native import native

needs_compiler = pytest.mark.skipif(
    not native.cuda_built
    or not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="this build has no GPU kernels, or JAX has no plugin for CUDA",
)

_H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  cuda_compute_capability { major: 9 }
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_DEVICES = """
import os
import jax, numpy as np
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxcoll
from jaxcoll._job import membership
membership.start_gpus = lambda mesh=None: None  # there are none
devices = topologies.get_topology_desc(
    "", platform="cuda", target_config=os.environ["TEST_TARGET"],
    topology=os.environ["TEST_TOPOLOGY"]).devices

def compiled(f, *arguments):
    return f.trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
"""


def run(program: str, topology: str = "1x1x2", flags: str = "", **variables: str) -> str:
    """The output of a program that finds `devices` and `compiled(f, *arguments)`."""
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _DEVICES + textwrap.dedent(program)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), folder]),
            "TEST_TARGET": _H100,
            "TEST_TOPOLOGY": topology,
            "XLA_FLAGS": flags,
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def thunks(folder: Path, program: str) -> list[str]:
    """What XLA will do when a program runs, one line each, from what it was told to dump."""
    (dump,) = folder.glob(f"*{program}*thunk_sequence_after_thunk_passes.txt")
    return dump.read_text().splitlines()
