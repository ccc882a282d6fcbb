"""XLA's compiler for GPUs compiles our calls, and captures them into graphs. That needs no GPU,
only the plugin: pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt, of the version of JAX."""

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jaxcoll._native import native

pytestmark = pytest.mark.skipif(
    not native.cuda_built
    or not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="this build has no GPU kernels, or JAX has no plugin for CUDA",
)

H100 = """
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

COMPILE = """
import os
import jax, numpy as np
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxcoll
from jaxcoll import schedule
from jaxcoll._job import membership as _membership
_membership.start_gpus = lambda mesh=None: None  # there are none
devices = topologies.get_topology_desc(
    "", platform="cuda", target_config=os.environ["TEST_TARGET"], topology="1x1x2").devices
n = len(devices)
mesh = Mesh(np.array(devices), ("x",))
ring = schedule.build(schedule.ScheduleSpec("all_reduce", n, "ring"))

def body(v):
    v = jaxcoll.psum(v, "x") + jaxcoll.psum(v * 2, "x")
    v = jaxcoll.all_reduce(v, "x", schedule=ring)
    v = jaxcoll.all_to_all(jaxcoll.all_gather(v, "x"), "x", 0, 0)
    v = jaxcoll.reduce_scatter(v.reshape(-1), "x", tiled=True)
    step = lambda c, _: (jaxcoll.ppermute(c, "x", [(0, 1), (1, 0)]) * 2, c.sum())
    return lax.scan(step, v, None, length=5)[0]

f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False))
x = jax.ShapeDtypeStruct((n * 1024,), np.float32, sharding=NamedSharding(mesh, P("x")))
text = f.trace(x).lower(lowering_platforms=("cuda",)).compile().as_text()
print("CALLS", text.count('custom_call_target="jaxcoll_collective"'))
"""


def test_xla_compiles_calls_and_captures_them(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILE)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TEST_TARGET": H100,
            "XLA_FLAGS": f"--xla_gpu_graph_min_graph_size=1 --xla_dump_to={tmp_path} "
            "--xla_gpu_enable_command_buffer=+CUSTOM_CALL,+FUSION",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "CALLS 7" in done.stdout, done.stdout
    (dump,) = Path(tmp_path).glob("*thunk_sequence_after_thunk_passes.txt")
    # Every call is in a graph: its line is indented below that of a command buffer.
    lines = dump.read_text().splitlines()
    calls = [i for i, line in enumerate(lines) if "kCustomCall " in line]
    assert len(calls) == 7, dump.read_text()
    for i in calls:
        indent = re.match(" *", lines[i]).end()
        above = next(j for j in range(i, -1, -1) if re.match(" *", lines[j]).end() < indent)
        assert "kCommandBuffer" in lines[above], dump.read_text()
