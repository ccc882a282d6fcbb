"""Behaviour of a build with GPU kernels where there is no GPU, and errors of one without them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ranks_on_one_gpu import Call, reason_without_gpu

import jaxcoll
from jaxcoll import info, schedule
from jaxcoll._job import membership
from jaxcoll._native import native
from jaxcoll.tune import select

built = pytest.mark.skipif(not native.cuda_built, reason="this build has no GPU kernels")


def lowered_for_gpu(body, *shape):
    mesh = Mesh(np.array(jax.devices("cpu")[:4]), ("x",))
    f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False))
    x = jax.ShapeDtypeStruct(shape, np.float32)
    return f.trace(x).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.skipif(native.cuda_built, reason="this build has GPU kernels")
def test_a_build_without_gpu_kernels_says_so():
    with pytest.raises(jaxcoll.UnsupportedError, match="JAXCOLL_CUDA"):
        lowered_for_gpu(lambda x: jaxcoll.psum(x, "x"), 8)
    assert "cuda     none in this build" in info.report()


@built
@pytest.mark.skipif(not reason_without_gpu(), reason="there is a GPU")
def test_a_machine_without_gpu_says_so():
    with pytest.raises(jaxcoll.UnsupportedError, match="no GPU"):
        lowered_for_gpu(lambda x: jaxcoll.psum(x, "x"), 8)
    assert "no GPU can be used" in info.report()
    with pytest.raises(RuntimeError, match="driver"):
        Call("all_reduce", 2).make()


@built
def test_the_same_target_serves_cpus_and_gpus(monkeypatch):
    monkeypatch.setattr(membership, "start_gpus", lambda mesh: None)
    text = lowered_for_gpu(lambda x: jaxcoll.psum(x, "x"), 8)
    assert "stablehlo.custom_call @jaxcoll_collective(" in text
    assert 'algorithm = "direct"' in text
    # Ranks are known to the host, without which it could not pick a workspace.
    assert "device_ids = array<i64: 0, 1, 2, 3>" in text
    large = lowered_for_gpu(lambda x: jaxcoll.psum(x, "x"), 4 << 20)
    assert 'algorithm = "direct2"' in large


@built
@pytest.mark.parametrize("algorithm", ["ring", "double_tree", "hierarchical[2x2]"])
def test_every_algorithm_is_lowered_for_gpus(monkeypatch, algorithm):
    monkeypatch.setattr(membership, "start_gpus", lambda mesh: None)
    text = lowered_for_gpu(lambda x: jaxcoll.all_reduce(x, "x", algorithm=algorithm), 8)
    assert f'algorithm = "{algorithm.partition("[")[0]}"' in text


@built
def test_schedules_written_in_python_are_lowered_for_gpus(monkeypatch):
    monkeypatch.setattr(membership, "start_gpus", lambda mesh: None)
    ring = schedule.build(schedule.ScheduleSpec("all_reduce", 4, "ring"))
    text = lowered_for_gpu(lambda x: jaxcoll.all_reduce(x, "x", schedule=ring), 8)
    assert 'algorithm = "custom"' in text


@built
def test_a_nested_shard_map_learns_its_devices_from_its_program(monkeypatch):
    monkeypatch.setattr(membership, "start_gpus", lambda mesh: None)
    mesh = Mesh(np.array(jax.devices("cpu")[:4])[[2, 0, 3, 1]].reshape(2, 2), ("x", "y"))

    def inner(v):
        return jaxcoll.psum(v, "y")

    def outer(v):
        return jax.shard_map(inner, in_specs=P("y"), out_specs=P(), axis_names={"y"})(v)

    f = jax.jit(
        jax.shard_map(outer, mesh=mesh, in_specs=P("x"), out_specs=P("x"), axis_names={"x"})
    )
    x = jax.ShapeDtypeStruct((8,), np.float32, sharding=NamedSharding(mesh, P("x")))
    text = f.trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "device_ids = array<i64: 2, 0, 3, 1>" in text


@built
@pytest.mark.filterwarnings("ignore::DeprecationWarning:flatbuffers")
def test_exported_programs_learn_their_devices_where_they_are_called(monkeypatch):
    started = []
    monkeypatch.setattr(membership, "start_gpus", lambda mesh=None: started.append(mesh))
    devices = np.array(jax.devices("cpu")[:4])
    mesh = Mesh(devices, ("x",))
    f = jax.jit(
        jax.shard_map(lambda v: jaxcoll.psum(v, "x"), mesh=mesh, in_specs=P("x"), out_specs=P())
    )
    x = jax.ShapeDtypeStruct((8,), np.float32, sharding=NamedSharding(mesh, P("x")))
    exported = export.export(f, platforms=["cuda"], disabled_checks=jaxcoll.export_checks())(x)
    assert "device_ids = dense<> : tensor<0xi64>" in exported.mlir_module()
    assert not started
    elsewhere = NamedSharding(Mesh(devices[[3, 1, 0, 2]], ("x",)), P("x"))
    x = jax.ShapeDtypeStruct((8,), np.float32, sharding=elsewhere)
    called = jax.jit(exported.call).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "device_ids = array<i64: 3, 1, 0, 2>" in called
    assert len(started) == 1


def test_a_mesh_of_cpus_and_gpus_is_refused():
    def device(i, platform):
        return SimpleNamespace(id=i, platform=platform)

    mesh = SimpleNamespace(devices=np.array([device(0, "cpu"), device(1, "gpu")], dtype=object))
    with pytest.raises(jaxcoll.UnsupportedError, match=r"mixes .* \(cpu\) and .* \(gpu\)"):
        membership.check_platforms(mesh)


def test_a_driver_that_is_too_old_is_named_with_what_to_do():
    here = {"driver": False, "devices": 0, "runtime_version": 13000}
    old = {**here, "driver_version": 12040, "problem": "insufficient driver"}
    problem = membership.driver_problem(old)
    for word in ("CUDA up to 12.4", "for CUDA 13.0", "update the driver", "insufficient driver"):
        assert word in problem
    none = membership.driver_problem({**here, "driver_version": 0, "problem": "no driver"})
    assert "no NVIDIA driver" in none
    assert membership.driver_problem({**old, "driver": True, "devices": 1}) == ""


@pytest.mark.parametrize(
    ("environment", "is_pool"),
    [
        ({}, True),
        ({"XLA_PYTHON_CLIENT_ALLOCATOR": "BFC"}, True),
        ({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, False),
        ({"XLA_CLIENT_ALLOCATOR": "cuda_async"}, False),
    ],
)
def test_only_memory_of_a_pool_is_offered_to_other_processes(monkeypatch, environment, is_pool):
    for name in ("XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_CLIENT_ALLOCATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert membership._arrays_are_in_a_pool() is is_pool


def test_auto_takes_two_shots_for_large_all_reduces_on_gpus():
    def chosen(collective, byte_count):
        return select.choose(collective, "auto", 8, byte_count=byte_count, on_gpu=True).algorithm

    assert chosen("all_reduce", 8 << 10) == "direct"
    assert chosen("all_reduce", 64 << 20) == "direct2"
    assert chosen("all_gather", 64 << 20) == "direct"
