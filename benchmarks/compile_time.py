"""The share of compile time that jaxcoll's callback takes in the compiler's hook.

    python -m benchmarks.compare --style gspmd

runs this in a process of its own, with 8 devices: training steps of several depths, and a program
in which XLA inserts no collective. Each is compiled several times, without a cache. Time in the
callback is part of compile time; tracing and lowering are not.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxcoll
from benchmarks import gspmd, measure
from jaxcoll._hlo import proto
from jaxcoll._jax import compat

MOST_SHARE = 0.02
Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a step and its arguments


def _training_step(layers: int, mesh: Mesh) -> Program:
    step, _, arguments = gspmd.mlp(mesh, layers)
    return step, arguments


def _one_model_each(layers: int, mesh: Mesh) -> Program:
    """Each device trains a model of its own."""
    weights = gspmd.placed(mesh, np.ones((8, layers, 64, 64), np.float32), ("dp", "tp"))
    batch = gspmd.placed(mesh, np.ones((8, 16, 64), np.float32), ("dp", "tp"))

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        for layer in range(layers):
            x = jnp.tanh(x @ weights[layer])
        return jnp.mean(x**2)

    return jax.vmap(jax.value_and_grad(loss)), (weights, batch)


PROGRAMS: dict[str, tuple[Callable[[Mesh], Program], bool]] = {  # and whether it has collectives
    "compile, MLP step of 1 layer": (functools.partial(_training_step, 1), True),
    "compile, MLP step of 11 layers": (functools.partial(_training_step, 11), True),
    "compile, MLP step of 41 layers": (functools.partial(_training_step, 41), True),
    "compile, MLP step of 138 layers": (functools.partial(_training_step, 138), True),
    "compile, one model on each device": (functools.partial(_one_model_each, 24), False),
}


class _Watch:
    """The modules that jaxcoll's callback gets, and the seconds that it takes for each."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, float]] = []

    def install(self) -> None:
        """As jaxcoll.install(), before which nothing may have registered the callback."""
        register = compat.register_module_transformation

        def watched(name: str, transform: Callable[[bytes], bytes | None]) -> None:
            def timed(serialized: bytes) -> bytes | None:
                begun = time.perf_counter()
                changed = transform(serialized)
                self.calls.append((serialized, time.perf_counter() - begun))
                return changed

            register(name, timed)

        with mock.patch.object(compat, "register_module_transformation", watched):
            jaxcoll.install()


def measure_program(name: str, mesh: Mesh, watch: _Watch, compiles: int) -> dict[str, Any]:
    """Compiles a program several times."""
    make, has_collectives = PROGRAMS[name]
    step, arguments = make(mesh)
    compile_s, callback_s = [], []
    for _ in range(compiles):
        lowered = jax.jit(functools.partial(step)).lower(*arguments)
        watch.calls.clear()
        begun = time.perf_counter()
        compiled = lowered.compile()
        compile_s.append(time.perf_counter() - begun)
        ((serialized, seconds),) = watch.calls
        callback_s.append(seconds)
    report = jaxcoll.install_report(compiled)
    computations = proto.Module.FromString(serialized).computations
    return {
        "work": name,
        "processes": 1,
        "devices": mesh.size,
        "right": not report.left and bool(report.served) == has_collectives,
        "instructions": sum(len(computation.instructions) for computation in computations),
        "served": len(report.served),
        "left": len(report.left),
        "compile": _median_and_most(compile_s),
        "callback": _median_and_most(callback_s),
        "compiles": compiles,
        # The share is taken for each compilation: load on the machine slows both of its times.
        "share": statistics.median(
            callback / whole for callback, whole in zip(callback_s, compile_s, strict=True)
        ),
        "most_share": MOST_SHARE,
    }


def _median_and_most(seconds: Sequence[float]) -> dict[str, float]:
    return {"median_s": statistics.median(seconds), "most_s": max(seconds)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures all programs; prints a line of JSON for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_time", description=__doc__)
    parser.add_argument("--compiles", type=int, default=5, help="of each program")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = measure.make_mesh({"dp": 2, "tp": 4})
    watch = _Watch()
    watch.install()
    for name in PROGRAMS:
        print(json.dumps(measure_program(name, mesh, watch, options.compiles)), flush=True)
    return 0


def verdict(result: dict[str, Any]) -> str:
    """The text of the last column."""
    if not result["right"]:
        return "WRONG"
    return "PASS" if result["share"] <= result["most_share"] else "ABOVE"


def compare(compiles: int) -> list[dict[str, Any]]:
    """Measures all programs in a process of their own and prints a line for each."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_time", f"--compiles={compiles}"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120 + 120 * compiles,
    )
    print(
        f"{'1 x 8':8} {'work':40} {'instr.':>7} {'served':>6} {'compile ms':>10} {'callback':>9} "
        f"{'share':>7} {'at most':>7}"
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for result in results:
        whole, ours = (result[part]["median_s"] * 1e3 for part in ("compile", "callback"))
        print(
            f"{'':8} {result['work']:40} {result['instructions']:7} {result['served']:6} "
            f"{whole:10.1f} {ours:9.3f} {result['share']:7.2%} {result['most_share']:7.0%}  "
            f"{verdict(result)}",
            flush=True,
        )
    return results


if __name__ == "__main__":
    sys.exit(main())
