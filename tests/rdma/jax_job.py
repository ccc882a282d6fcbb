"""Run by `jaxcoll launch -n 2` with JAXCOLL_TRANSPORT=rdma.

all_reduce inside jit, exact, of staged and of registered arrays; what `jaxcoll info` says; then
benchmarks.transport. In one job, since emulated processes take long to import JAX.
"""

import io

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcoll
from benchmarks import transport
from jaxcoll import debug, info

jax.distributed.initialize()
mesh = Mesh(np.array(jax.devices()), "x")
count = mesh.size
step = jax.jit(
    jax.shard_map(
        lambda x: jaxcoll.all_reduce(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P("x")
    )
)
for elements in (1, 1000, 300_000):
    rows = np.arange(count * elements, dtype=np.float32).reshape(count, elements) % 1024
    x = jax.make_array_from_callback(rows.shape, NamedSharding(mesh, P("x")), rows.__getitem__)
    for shard in step(x).addressable_shards:
        assert np.asarray(shard.data).tobytes() == rows.sum(0, keepdims=True).tobytes(), elements
    print("exact", elements, flush=True)
recorder = io.StringIO()
debug.dump(recorder)
assert "rdma to process" in recorder.getvalue(), recorder.getvalue()
report = " ".join(info.report().split())
assert "rdma processes of several hosts, over rxe0:1 (RoCE, GID 1: " in report, report
assert transport.main(["-e", "64K", "-f", "16", "-n", "20"]) == 0
lent = ["--transports", "rdma", "--source", "lent"]
assert transport.main(["-b", "64K", "-e", "64K", "-n", "20", *lent]) == 0
