"""What XLA inserts into programs for GPUs becomes calls of ours, as its compiler for GPUs tells."""

import json

import pytest
from compile_only import needs_compiler, run, thunks

from jaxcoll._jax import compat

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(bool(compat.hook_trouble()), reason=compat.hook_trouble()),
]

HOOKED = """
import json
import re
import jax.numpy as jnp
from jaxcoll._hlo import dictionary, proto
from jaxcoll._jax import compat, hook
jaxcoll.install()
if jax.__version_info__ < (0, 11):  # finds the plugin by a client, which takes a GPU
    import plugin_transform
    plugin_transform.register(hook._transform)
    compat._gpu_hook = ""
mesh = Mesh(np.array(devices).reshape(2, 2), ("dp", "tp"))

def array(shape, *spec, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

def jitted(f, *spec):
    return jax.jit(f, out_shardings=NamedSharding(mesh, P(*spec)))

def module(program):
    made = program.runtime_executable().hlo_modules()[0]
    return proto.Module.FromString(made.as_serialized_hlo_module_proto())

def instructions(program):
    return [i for c in module(program).computations for i in c.instructions]

def calls(program):
    return [i for i in instructions(program) if i.custom_call_target == "jaxcoll_collective"]
"""

ALIKE = """
inserted = compiled(jitted(lambda a, b: a @ b), array((64, 32), None, "dp"),
                    array((32, 16), "dp", None))
called = compiled(jax.jit(jax.shard_map(lambda x: jaxcoll.psum(x, "dp"), mesh=mesh, in_specs=P(),
                                        out_specs=P(), check_vma=False)), array((64, 16)))
def integers(config, name):  # JAX's own are an array or a tensor, as JAX's version will have it
    found = re.search(name + r" = (?:array<i64:? ?|dense<\\[?)([-0-9, ]*)", config)
    return [int(number) for number in found[1].split(",") if number.strip()]

TEXTS = ("collective", "algorithm", "reduce_op", "schedule", "tuning", "program", "signature")
for program in (inserted, called):
    (call,) = calls(program)
    config = call.backend_config.decode()
    print("CALL", dictionary.text(config, "label"))
    print("AS", json.dumps({
        "names": sorted(set(re.findall(r"(\\w+) = ", config))),
        "texts": [dictionary.text(config, name) for name in TEXTS],
        "integers": [dictionary.integer(config, name)
                     for name in ("group_size", "root", "channels", "separate_blocks")],
        "arrays": [integers(config, name)
                   for name in ("groups", "device_ids", "permutation", "dims")],
        "version": call.custom_call_api_version,
        "effects": call.custom_call_has_side_effect,
        "constrained": call.constrain_layout,
        "shape": str(call.shape),
        "operands": [str(shape) for shape in call.operand_shapes_with_layout],
    }))
print(jaxcoll.install_report(inserted))
"""


def test_what_xla_inserts_becomes_the_call_that_jaxcoll_lowers_to():
    output = run(HOOKED + ALIKE, topology="1x1x4")
    lines = output.splitlines()
    inserted, called = (line for line in lines if line.startswith("CALL "))
    assert "(2 ranks), all-reduce that XLA inserted for " in inserted
    assert inserted.startswith(called)
    inserted, called = (json.loads(line[3:]) for line in lines if line.startswith("AS "))
    assert inserted == called
    assert "1 served, 0 left to XLA" in output


EVERY = """
def step(w1, w2, x):
    return ((jnp.tanh(x @ w1) @ w2) ** 2).mean()

weights = array((256, 256), "dp", "tp"), array((256, 256), "tp", "dp")
programs = {
    "training step": compiled(
        jax.jit(jax.grad(step, argnums=(0, 1)), out_shardings=tuple(w.sharding for w in weights)),
        *weights, array((64, 256), "dp", None)),
    "gather of rows": compiled(jitted(lambda a: a + 1), array((32, 8), "dp", None)),
    "gather of columns": compiled(jitted(lambda a: a + 1), array((32, 8), None, "dp")),
    "exchange": compiled(jitted(lambda a: a + 1, None, "dp"), array((32, 8), "dp", None)),
    "exchange of columns": compiled(
        jitted(lambda a: a + 1, None, None, "tp"), array((4, 8, 16), None, "tp", None)),
    "shift": compiled(jitted(lambda a: jnp.roll(a, 4, 0), "dp"), array((32, 8), "dp", None)),
    "maximum": compiled(jitted(lambda a: a.max(0)), array((32, 8), ("dp", "tp"), None)),
    "integers": compiled(jitted(lambda a: a.sum(0)), array((32, 8), "tp", None, dtype=np.int32)),
    "bfloat16": compiled(
        jitted(lambda a: a.sum(0)), array((32, 8), "tp", None, dtype=jnp.bfloat16)),
    "loop": compiled(
        jitted(lambda a, b: lax.fori_loop(0, 4, lambda i, v: jnp.tanh(v @ b), a), None, "tp"),
        array((16, 64), None, "tp"), array((64, 64), "tp", None)),
}
for name, program in programs.items():
    report = jaxcoll.install_report(program)
    print("PROGRAM", json.dumps([
        name, sorted(call.collective for call in report.served),
        [[left.origin, left.reason] for left in report.left],
        sorted({call.changes for call in report.served} - {""})]))
    for call in calls(program):
        config = call.backend_config.decode()
        assert "separate_blocks = 0 : i64" in config, config  # GPUs take one array
        assert 'tuning = ""' in config, config  # tables are of CPUs
    assert not any(i.custom_call_target == "jaxcoll_nothing" for i in instructions(program))
"""


def test_every_collective_that_xla_inserts_is_served():
    output = run(HOOKED + EVERY, topology="1x1x4")
    programs = {}
    for line in output.splitlines():
        if line.startswith("PROGRAM "):
            name, *fate = json.loads(line.removeprefix("PROGRAM "))
            programs[name] = fate
    for name, (served, left, _) in programs.items():
        assert served, name
        assert not left, name
    kinds = {kind for served, _, _ in programs.values() for kind in served}
    assert kinds >= {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "permute"}
    # XLA makes no reduce-scatter of a call, so jaxcoll does before.
    assert programs["training step"][2] == ["an all-reduce of which each device keeps a slice"]


STREAM = """
def body(v, w):
    total = lax.psum(v, "dp")
    product = jnp.tanh(w @ w)
    largest = lax.pmax(v, "dp")
    more = jnp.tanh(product @ w)
    return (total + largest) @ jnp.tanh(more @ w)

f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P("dp"), P("dp")), out_specs=P("dp"),
                          check_vma=False))
compiled(f, array((512, 256), "dp"), array((512, 256), "dp"))
"""


@pytest.mark.parametrize("on", ["0", "1"])
def test_calls_go_on_a_stream_of_their_own_where_that_is_asked_for(tmp_path, on):
    run(HOOKED + STREAM, "1x1x4", f"--xla_dump_to={tmp_path}", JAXCOLL_CUDA_STREAM=on)
    lines = thunks(tmp_path, "jit_body")
    calls = [i for i, line in enumerate(lines) if "kCustomCall " in line]
    assert len(calls) == 2, lines
    starts = [i for i, line in enumerate(lines) if "kAsyncStart " in line]
    dones = [i for i, line in enumerate(lines) if "kAsyncDone " in line]
    if on == "0":
        assert not starts, lines
        return
    assert len(starts) == len(dones) == 2, lines
    assert all("computation_stream[1]" in lines[i] for i in starts), lines
    # One after the other, and each awaited before what uses it. JAX 0.10.2 prints a start behind
    # what it starts.
    first, second = (sorted(pair) for pair in zip(starts, calls, strict=True))
    assert first[1] < dones[0] < second[0] < second[1] < dones[1] < len(lines) - 1, lines
    if compat.jax.__version_info__ >= (0, 11):  # which schedules independent work in between
        between = [line for line in lines[second[1] : dones[1]] if "kCustomKernel" in line]
        assert len(between) >= 3, lines


STARTED = """
jaxcoll.uninstall()

def body(v, w):
    started = jaxcoll.all_reduce_start(v, "dp")
    return jnp.tanh(w @ w) + started.done()

f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P("dp"), P("dp")), out_specs=P("dp"),
                          check_vma=False))
text = compiled(f, array((512, 256), "dp"), array((512, 256), "dp")).as_text()
print("STARTS", text.count(" call-start("), "DONES", text.count(" call-done("))
"""


@pytest.mark.parametrize("on", ["0", "1"])
def test_what_a_program_starts_goes_on_the_stream_without_install(on):
    output = run(HOOKED + STARTED, "1x1x4", JAXCOLL_CUDA_STREAM=on)
    assert f"STARTS {on} DONES {on}" in output, output


LEFT = """
import logging
logging.basicConfig()
compat._gpu_hook = "there is no hook"
for rows in (32, 64):
    program = compiled(jitted(lambda a: a + 1), array((rows, 8), "dp", None))
    assert not calls(program)
for treatment in jaxcoll.install_report():
    print("REPORT", treatment.primitive, treatment.fell_back)
"""


def test_without_a_hook_programs_are_left_to_xla_and_that_is_said_once():
    output = run(HOOKED + LEFT, topology="1x1x4")
    said = "what XLA inserts is left to XLA on GPUs: there is no hook"
    assert output.count(said) == 1, output
    assert "REPORT all-gather ('on GPUs: there is no hook',)" in output
