"""Programs without a collective in them, whose arrays are sharded: XLA's own against jaxcoll's.

    python -m benchmarks.compare --style gspmd

runs this for one process of 8 devices and for jobs of several processes. In each, a step is
compiled twice, with and without `jaxcoll.install()`, and both are called alternately. Between
processes XLA's collectives go over gloo.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcoll
from benchmarks import measure

MIB = 1 << 20
Step = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """A step and its arguments on a mesh.

    Attributes:
      make: mesh -> the step, what jax.jit takes beside it, its arguments.
      floors: by (processes, devices of each): the ratio asked for, None where it is only reported.
    """

    name: str
    axes: tuple[str, ...]
    make: Callable[[Mesh], tuple[Step, dict[str, Any], tuple[Any, ...]]]
    floors: dict[tuple[int, int], float | None]


def placed(mesh: Mesh, value: np.ndarray, *spec: Any) -> jax.Array:
    """An array that is sharded over all processes, of which each has its part."""
    sharding = NamedSharding(mesh, P(*spec))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _random(*shape: int) -> np.ndarray:
    return np.random.RandomState(sum(shape)).randn(*shape).astype(np.float32) / np.float32(16)


def mlp(mesh: Mesh, layers: int = 8) -> tuple[Step, dict[str, Any], tuple[Any, ...]]:
    """256 wide: batch over dp, every other matrix over tp by columns, else by rows."""
    specs = [(None, "tp") if i % 2 == 0 else ("tp", None) for i in range(layers)]
    weights = [placed(mesh, _random(256, 256) + i, *spec) for i, spec in enumerate(specs)]
    batch = placed(mesh, _random(64, 256), "dp", None)

    def loss(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return jnp.mean(x**2)

    def step(weights: list[jax.Array], x: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(weights, x)
        return value, [w - 0.01 * g for w, g in zip(weights, gradients, strict=True)]

    return step, {}, (weights, batch)


def _leaves(mesh: Mesh) -> tuple[Step, dict[str, Any], tuple[Any, ...]]:
    """Data-parallel: the sums of 100 gradients, 10 MiB in all."""
    count = 10 * MIB // 4 // 100
    leaves = [placed(mesh, _random(mesh.size, count) + i, "dp", None) for i in range(100)]

    def step(leaves: list[jax.Array]) -> list[jax.Array]:
        return [jnp.sum(leaf, axis=0) for leaf in leaves]

    return step, {"out_shardings": NamedSharding(mesh, P())}, (leaves,)


def _fsdp(mesh: Mesh) -> tuple[Step, dict[str, Any], tuple[Any, ...]]:
    """8 layers of 1 MiB, each sharded over all devices: gathered forward, scattered backward."""
    weights = [placed(mesh, _random(512, 512) + i, "dp", None) for i in range(8)]
    batch = placed(mesh, _random(8 * mesh.size, 512), "dp", None)
    gathered = NamedSharding(mesh, P())
    own = NamedSharding(mesh, P("dp", None))

    def loss(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        for weight in weights:
            x = jnp.tanh(x @ jax.lax.with_sharding_constraint(weight, gathered))
            x = jax.lax.with_sharding_constraint(x, own)
        return jnp.mean(x**2)

    def step(weights: list[jax.Array], x: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(weights, x)
        return value, [w - 0.01 * g for w, g in zip(weights, gradients, strict=True)]

    shardings = (NamedSharding(mesh, P()), [own] * 8)
    return step, {"out_shardings": shardings}, (weights, batch)


def _reshard(mesh: Mesh) -> tuple[Step, dict[str, Any], tuple[Any, ...]]:
    """16 MiB, rows -> columns."""
    array = placed(mesh, _random(2048, 2048), "dp", None)
    sharding = NamedSharding(mesh, P(None, "dp"))
    return lambda x: x, {"out_shardings": sharding}, (array,)


WORKS = (
    Work("MLP step, 8 x 256, dp and tp", ("dp", "tp"), mlp, {(2, 2): 3, (1, 8): 1}),
    Work(
        "data-parallel, 100 leaves, 10 MiB",
        ("dp",),
        _leaves,
        {(2, 1): 10, (4, 1): 10, (1, 8): 1.5},
    ),
    Work("FSDP step, 8 x 1 MiB", ("dp",), _fsdp, {(2, 1): 2.5, (4, 1): 2.5, (1, 8): 1}),
    Work("reshard 16 MiB, rows to columns", ("dp",), _reshard, {(2, 1): 2, (1, 8): 1}),
)
LAYOUTS = ((1, 8), (2, 1), (2, 2), (4, 1))


def measure_work(work: Work, budget_s: float) -> dict[str, Any]:
    """Times a step with and without jaxcoll, in this process or job."""
    count = jax.device_count()
    shape = {axis: count if len(work.axes) == 1 else 2 for axis in work.axes}
    if len(work.axes) == 2:
        shape[work.axes[1]] = count // 2
    mesh = measure.make_mesh(shape)
    step, options, arguments = work.make(mesh)
    compiled = {}
    for side in ("xla", "jaxcoll"):
        with jaxcoll.installed() if side == "jaxcoll" else contextlib.nullcontext():
            compiled[side] = jax.jit(step, **options).lower(*arguments).compile()
    report = jaxcoll.install_report(compiled["jaxcoll"])
    results = {side: jax.tree.leaves(call(*arguments)) for side, call in compiled.items()}
    here = all(
        np.allclose(np.asarray(a.data), np.asarray(b.data), rtol=1e-3, atol=1e-5)
        for x, y in zip(results["xla"], results["jaxcoll"], strict=True)
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )
    del results
    right = bool(multihost_utils.process_allgather(np.array(here)).all())
    calls = {side: functools.partial(call, *arguments) for side, call in compiled.items()}
    times = measure.measure(calls, budget_s=budget_s)
    return {
        "work": work.name,
        "processes": jax.process_count(),
        "devices": count,
        "floor": work.floors[jax.process_count(), count // jax.process_count()],
        "right": right,
        "served": len(report.served),
        "left": len(report.left),
        "xla": {"median_s": times["xla"].median_s, "p95_s": times["xla"].p95_s},
        "jaxcoll": {"median_s": times["jaxcoll"].median_s, "p95_s": times["jaxcoll"].p95_s},
        "calls": len(times["xla"].calls_s),
        "ratio": times["xla"].median_s / times["jaxcoll"].median_s,
    }


LATE_S = 0.2


def measure_late(rounds: int) -> dict[str, Any]:
    """Seconds of the first process's step where the second comes LATE_S late, beside as much work
    that needs nothing of it."""
    mesh = measure.make_mesh({"dp": jax.device_count()})
    vector = placed(mesh, _random(mesh.size, 1024), "dp", None)
    matrix = placed(mesh, _random(mesh.size, 256, 256), "dp", None, None)

    def make(times: int) -> Step:
        def step(x: jax.Array, m: jax.Array) -> Any:
            work = jax.lax.fori_loop(0, times, lambda _, c: jnp.tanh(c @ m), m)
            return jnp.sum(x, axis=0), work

        shardings = (NamedSharding(mesh, P()), NamedSharding(mesh, P("dp", None, None)))
        return jax.jit(step, out_shardings=shardings).lower(vector, matrix).compile()

    def call(step: Step, late_s: float) -> float:
        multihost_utils.sync_global_devices("round")
        if jax.process_index() == 1:
            time.sleep(late_s)
        begun = time.perf_counter()
        jax.block_until_ready(step(vector, matrix))
        return time.perf_counter() - begun

    trial = make(100)
    once_s = min(call(trial, 0.0) for _ in range(4))
    times = int(multihost_utils.broadcast_one_to_all(np.int32(100 * LATE_S / once_s)))
    result: dict[str, Any] = {"work": "peer 200 ms late beside 200 ms of work", "processes": 2}
    result |= {"devices": 2, "floor": None, "most_s": 1.2 * LATE_S, "right": True}
    answers = {}
    for side in ("xla", "jaxcoll"):
        with jaxcoll.installed() if side == "jaxcoll" else contextlib.nullcontext():
            step = make(times)
        answers[side] = [
            np.asarray(shard.data)
            for array in step(vector, matrix)
            for shard in array.addressable_shards
        ]
        spent = [call(step, LATE_S) for _ in range(rounds)]
        result[side] = {"median_s": statistics.median(spent), "p95_s": max(spent)}
        result[f"{side}_alone_s"] = statistics.median(call(step, 0.0) for _ in range(rounds))
    here = all(map(np.allclose, answers["xla"], answers["jaxcoll"]))
    result["right"] = bool(multihost_utils.process_allgather(np.array(here)).all())
    result["ratio"] = result["xla"]["median_s"] / result["jaxcoll"]["median_s"]
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measures all steps of this layout; rank 0 prints a line of JSON for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gspmd", description=__doc__)
    parser.add_argument("--devices", type=int, required=True, help="of the whole job")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each step")
    options = parser.parse_args(argv)
    measure.make_mesh({"all": options.devices})
    layout = (jax.process_count(), options.devices // jax.process_count())
    for work in WORKS:
        if layout in work.floors:
            result = measure_work(work, options.budget)
            if jax.process_index() == 0:
                print(json.dumps(result), flush=True)
    if layout == (2, 1):
        result = measure_late(5)
        if jax.process_index() == 0:
            print(json.dumps(result), flush=True)
    return 0


def verdict(result: dict[str, Any]) -> str:
    """The text of the last column."""
    if not result["right"]:
        return "WRONG"
    if "most_s" in result:
        return "PASS" if result["jaxcoll"]["median_s"] <= result["most_s"] else "ABOVE"
    if result["floor"] is None:
        return "-"
    return "PASS" if result["ratio"] >= result["floor"] else "BELOW"


def compare(budget_s: float) -> list[dict[str, Any]]:
    """Measures all layouts and prints a line for each step."""
    print(f"{'layout':8} {'work':40} {'xla ms':>9} {'ours ms':>9} {'ratio':>7} {'asked':>7}")
    results = []
    for layout in LAYOUTS:
        for result in run(layout, budget_s):
            asked = f"{result['floor'] or 0:g}"
            if "most_s" in result:
                asked = f"{result['most_s'] * 1e3:.0f} ms"
            xla, ours = (result[side]["median_s"] * 1e3 for side in ("xla", "jaxcoll"))
            print(
                f"{layout[0]} x {layout[1]:<4} {result['work']:40} {xla:9.2f} {ours:9.2f} "
                f"{result['ratio']:7.2f} {asked:>7}  {verdict(result)}",
                flush=True,
            )
            results.append(result)
    return results


def run(layout: tuple[int, int], budget_s: float) -> list[dict[str, Any]]:
    """Runs this module as a job of so many processes with so many devices each."""
    processes, devices = layout
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["jaxcoll", "launch", "-n", str(processes)]
        command += ["--devices-per-process", str(devices), "-m"]
    command += ["benchmarks.gspmd", f"--devices={processes * devices}", f"--budget={budget_s}"]
    begun = time.monotonic()
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=240 + 20 * budget_s,
        check=False,
    )
    lines = [line.removeprefix("[0] ") for line in done.stdout.splitlines()]
    results = [json.loads(line) for line in lines if line.startswith('{"work"')]
    if done.returncode or not results:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    print(f"# {processes} x {devices} devices: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return results


if __name__ == "__main__":
    sys.exit(main())
