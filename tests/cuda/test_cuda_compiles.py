"""XLA's compiler for GPUs compiles our calls, and captures them into graphs."""

import re

from compile_only import needs_compiler, run, thunks

pytestmark = needs_compiler

COMPILE = """
from jaxcoll import schedule
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
text = compiled(f, x).as_text()
print("CALLS", text.count('custom_call_target="jaxcoll_collective"'))
"""


def test_xla_compiles_calls_and_captures_them(tmp_path):
    flags = (
        f"--xla_gpu_graph_min_graph_size=1 --xla_dump_to={tmp_path} "
        "--xla_gpu_enable_command_buffer=+CUSTOM_CALL,+FUSION"
    )
    output = run(COMPILE, flags=flags)
    assert "CALLS 7" in output, output
    # Every call is in a graph: its line is indented below that of a command buffer.
    lines = thunks(tmp_path, "jit_body")
    calls = [i for i, line in enumerate(lines) if "kCustomCall " in line]
    assert len(calls) == 7, lines
    for i in calls:
        indent = re.match(" *", lines[i]).end()
        above = next(j for j in range(i, -1, -1) if re.match(" *", lines[j]).end() < indent)
        assert "kCommandBuffer" in lines[above], lines
