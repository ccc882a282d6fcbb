"""The decision of CMake whether GPU kernels are built, and for which GPUs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# pip brings Ninja to a build, so that a machine on which jaxcoll was built may have neither.
GENERATORS = {"ninja": "Ninja", "make": "Unix Makefiles"}
BUILD_PROGRAM = next(filter(shutil.which, GENERATORS), None)


def configured(tmp_path: Path, nvidia_smi: str, *options: str) -> str:
    """The words of CMake where nvidia-smi prints so much; empty: it fails."""
    assert BUILD_PROGRAM is not None
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{nvidia_smi}'\ntest '{nvidia_smi}'\n")
    (tools / "nvidia-smi").chmod(0o755)
    done = subprocess.run(
        [
            *("cmake", "-S", ROOT, "-B", tmp_path / "build", "-G", GENERATORS[BUILD_PROGRAM]),
            *("-DJAXCOLL_BUILD_PYTHON=OFF", *options),
        ],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or BUILD_PROGRAM is None,
    reason="there is no cmake, or neither ninja nor make",
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")


@needs_cmake
@pytest.mark.parametrize("answer", ["", "Failed to initialize NVML", "7.5\\n"])
def test_without_a_gpu_that_the_kernels_serve_none_are_built(tmp_path: Path, answer: str) -> None:
    assert "built without GPU kernels" in configured(tmp_path, answer)


@needs_cmake
def test_a_gpu_without_a_compiler_is_no_error(tmp_path: Path) -> None:
    words = configured(tmp_path, "9.0\\n", "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    assert "Built without GPU kernels, for no working nvcc was found" in words


@needs_cmake
@needs_nvcc
@pytest.mark.parametrize(
    ("answer", "architectures"),
    [
        ("9.0\\n9.0\\n", "90-real"),
        ("7.5\\n9.0\\n8.0\\n", "90-real;80-real"),
        ("99.9\\n", "80-real;90-real;100"),  # newer than the compiler: it takes the PTX
    ],
)
def test_kernels_are_built_for_the_gpus_of_the_machine(
    tmp_path: Path, answer: str, architectures: str
) -> None:
    assert f" for {architectures}\n" in configured(tmp_path, answer)
