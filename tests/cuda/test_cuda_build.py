"""What a build with GPU kernels does where there is no GPU, and what one without them says."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ranks_on_one_gpu import Call, reason_without_gpu

import jaxcoll
from jaxcoll import _communicator, _select, info
from jaxcoll._native import native

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
    monkeypatch.setattr(_communicator, "start_gpus", lambda mesh: None)
    text = lowered_for_gpu(lambda x: jaxcoll.psum(x, "x"), 8)
    assert "stablehlo.custom_call @jaxcoll_collective(" in text
    assert 'algorithm = "direct"' in text
    # Ranks are known to the host, without which it could not pick a workspace.
    assert "device_ids = array<i64: 0, 1, 2, 3>" in text
    large = lowered_for_gpu(lambda x: jaxcoll.psum(x, "x"), 4 << 20)
    assert 'algorithm = "direct2"' in large


@built
def test_algorithms_without_gpu_kernels_are_refused_while_tracing(monkeypatch):
    monkeypatch.setattr(_communicator, "start_gpus", lambda mesh: None)
    with pytest.raises(jaxcoll.UnknownAlgorithmError, match="on GPUs all_reduce has no"):
        lowered_for_gpu(lambda x: jaxcoll.all_reduce(x, "x", algorithm="ring"), 8)


def test_auto_takes_two_shots_for_large_all_reduces_on_gpus():
    def chosen(collective, byte_count):
        return _select.choose(collective, "auto", 8, byte_count=byte_count, on_gpu=True).algorithm

    assert chosen("all_reduce", 8 << 10) == "direct"
    assert chosen("all_reduce", 64 << 20) == "direct2"
    assert chosen("all_gather", 64 << 20) == "direct"
