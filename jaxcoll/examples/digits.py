"""Trains a small network on handwritten digits, on a mesh: with JAX's collectives, and with
jaxcoll's.

    python -m jaxcoll.examples.digits --mesh dp=4,tp=2
    python -m jaxcoll.examples.digits --mesh dp=4,tp=2 --style gspmd
    jaxcoll launch -n 4 --devices-per-process 2 -m jaxcoll.examples.digits --mesh dp=4,tp=2

The third command does the same in four processes of two devices each, which could be on several
hosts; the code specific to several processes is in `join`, `place`, `everywhere` and `tell`.

The images (1797 of 8x8 pixels) come with scikit-learn. The batch is split over `dp` and the hidden
layer over `tp`. With `--style shard_map` a training step is one jitted `shard_map` with two
collectives in it:

    forward   the partial products of the split hidden layer are summed over `tp`
    backward  the gradients, a tree of four arrays, are summed over `dp` in one call

With `--style gspmd` it is the step of one device: XLA's partitioner inserts the collectives
according to the shardings, and `jaxcoll.installed()` serves them.

Exit code 0 if both runs classify at least 95 % of the unseen images, 1 if not, 2 for a bad option.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcoll

HIDDEN, BATCH, LEARNING_RATE, MOMENTUM = 128, 96, 0.1, 0.9
WANTED_ACCURACY = 0.95

Params = dict[str, Any]
# How the parameters lie on the mesh: the first layer is split by columns, the second by rows, so
# that one sum over `tp` is all the network needs.
SPECS = {"w1": P(None, "tp"), "b1": P("tp"), "w2": P("tp", None), "b2": P()}


def network_loss(
    params: Params, images: jax.Array, labels: jax.Array, summed: Callable[..., Any]
) -> jax.Array:
    """The mean loss of the images; `summed` completes what a split hidden layer gives."""
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    logits = summed(hidden @ params["w2"]) + params["b2"]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -picked.mean()


def update(params: Params, velocity: Params, gradients: Params) -> tuple[Params, Params]:
    """Gradient descent with momentum."""
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    return jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity), velocity


def step_of_shard_map(mesh: Mesh, psum: Callable[..., Any]) -> Callable[..., Any]:
    """One training step on `mesh`; `psum` is jax.lax.psum or jaxcoll.psum, nothing else differs."""
    dp = mesh.shape["dp"]

    def step(
        params: Params, velocity: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[Params, Params, Any]:
        # Telling JAX that each dp group has its own copy gives each its own gradient; without this
        # JAX would sum them itself, with a collective of its choice.
        own = jax.tree.map(lambda p: jax.lax.pcast(p, "dp", to="varying"), params)
        loss, gradients = jax.value_and_grad(network_loss)(
            own, images, labels, lambda x: psum(x, "tp")
        )
        gradients, loss = psum((gradients, loss), "dp")
        params, velocity = update(params, velocity, jax.tree.map(lambda g: g / dp, gradients))
        return params, velocity, loss / dp

    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(SPECS, SPECS, P("dp"), P("dp")),
            out_specs=(SPECS, SPECS, P()),
        )
    )


def step_of_gspmd(mesh: Mesh) -> Callable[..., Any]:
    """One training step, written for one device, whose arrays lie on `mesh`."""

    def step(
        params: Params, velocity: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[Params, Params, Any]:
        loss, gradients = jax.value_and_grad(network_loss)(params, images, labels, lambda x: x)
        return *update(params, velocity, gradients), loss

    places = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    return jax.jit(step, out_shardings=(places, places, NamedSharding(mesh, P())))


class Digits(NamedTuple):
    """Images as float32[n, 64] from 0 to 1 and labels as int32[n], for training and for testing."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The training images in an order that depends on nothing but the epoch."""
        order = np.random.default_rng(epoch).permutation(len(self.train_images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield self.train_images[chosen], self.train_labels[chosen]


def load_digits() -> Digits:
    """Four fifths of scikit-learn's digits for training, one fifth for testing, shuffled once."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise SystemExit("digits: needs scikit-learn: pip install 'jaxcoll[examples]'") from None
    images, labels = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = np.split(order, [len(order) * 4 // 5])
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    return Digits(images[train], labels[train], images[test], labels[test])


def initial_params() -> Params:
    """Zero biases and normally distributed weights, equal in every run."""
    rng = np.random.default_rng(1)
    return {
        "w1": rng.normal(0, (2 / 64) ** 0.5, (64, HIDDEN)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": rng.normal(0, (2 / HIDDEN) ** 0.5, (HIDDEN, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


class Result(NamedTuple):
    """The results of one training run."""

    params: Params
    losses: list[float]  # mean of each epoch
    accuracy: float  # on the test images
    step_s: float  # median


def train(name: str, step: Callable[..., Any], mesh: Mesh, data: Digits, epochs: int) -> Result:
    """Trains from the same start with the same batches, so runs differ in their `step` alone."""
    params = place(initial_params(), mesh, SPECS)
    velocity = jax.tree.map(jnp.zeros_like, params)
    losses, times_s = [], []
    for epoch in range(epochs):
        total: list[float] = []
        for batch in data.batches(epoch):
            images, labels = place(batch, mesh, (P("dp"), P("dp")))
            start = time.perf_counter()
            params, velocity, loss = jax.block_until_ready(step(params, velocity, images, labels))
            times_s.append(time.perf_counter() - start)
            total.append(float(loss))
        losses.append(statistics.fmean(total))
        show_progress(f"{name:8} loss {losses[-1]:.4f}", epoch + 1, epochs)
    final = everywhere(params, mesh)
    hidden = np.maximum(data.test_images @ final["w1"] + final["b1"], 0)
    guesses = (hidden @ final["w2"] + final["b2"]).argmax(1)
    accuracy = float((guesses == data.test_labels).mean())
    return Result(final, losses, accuracy, statistics.median(times_s[1:]))  # the first compiles


def join() -> None:
    """Joins the other processes, where a launcher has started this one as one of several."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize()


def place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """NumPy arrays, equal in every process, as arrays on the mesh; each process fills its part."""
    return jax.tree.map(
        lambda x, spec: jax.make_array_from_callback(
            x.shape, NamedSharding(mesh, spec), lambda index: x[index]
        ),
        tree,
        specs,
    )


def everywhere(params: Params, mesh: Mesh) -> Params:
    """The parameters as NumPy arrays, in every process."""
    return jax.device_get(jax.jit(lambda p: p, out_shardings=NamedSharding(mesh, P()))(params))


def tell(text: str, **how: Any) -> None:
    """Prints once, in whatever number of processes."""
    if jax.process_index() == 0:
        print(text, **how)


def show_progress(text: str, epoch: int, epochs: int) -> None:
    """One line rewritten in place on a terminal, one every fifth epoch elsewhere."""
    line = f"epoch {epoch:3}/{epochs}  {text}"
    if sys.stderr.isatty():
        tell(f"\r{line}", end="\n" if epoch == epochs else "", file=sys.stderr, flush=True)
    elif epoch == epochs or epoch % 5 == 0:
        tell(line, file=sys.stderr, flush=True)


def curve(losses: list[float]) -> str:
    """A loss curve in one line of text, on a logarithmic scale: full is 3 or more, empty 0.01."""
    levels = " ▁▂▃▄▅▆▇█"
    scaled = np.log(np.clip(losses, 1e-2, 3) / 1e-2) / np.log(3 / 1e-2)
    return "".join(levels[round(float(s) * (len(levels) - 1))] for s in scaled)


def is_number(text: str) -> bool:
    """Whether a text is a number from 1 to 999999 in ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 6 and int(text) > 0


def parse_mesh(text: str) -> dict[str, int]:
    """'dp=4,tp=2' as a dict; an axis that is left out has size 1."""
    shape = {"dp": 1, "tp": 1}
    for item in text.split(","):
        axis, _, size = item.partition("=")
        if axis not in shape or not is_number(size):
            raise argparse.ArgumentTypeError(
                f"{item!r}: write the mesh as dp=N,tp=M with sizes from 1"
            )
        shape[axis] = int(size)
    for axis, unit, count in (("dp", "the batch", BATCH), ("tp", "the hidden layer", HIDDEN)):
        if count % shape[axis]:
            raise argparse.ArgumentTypeError(f"{axis} must divide {unit} of {count}")
    return shape


def parse_epochs(text: str) -> int:
    """A number of epochs."""
    if not is_number(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 999999")
    return int(text)


def npz_path(text: str) -> Path:
    """A file's path with the suffix that numpy.savez would add."""
    return Path(text if text.endswith(".npz") else f"{text}.npz")


def can_write(path: Path) -> bool:
    """Whether a file can be written, be it there or not."""
    return not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)


def make_mesh(shape: dict[str, int]) -> Mesh:
    """A mesh of as many CPU devices as it takes; those of all processes if there are several."""
    count = shape["dp"] * shape["tp"]
    if not jax.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # JAX has started: it has the devices it has
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    processes = jax.process_count()
    if processes > 1 and len(devices) != count:
        raise SystemExit(
            f"digits: the mesh needs {count} devices and the {processes} processes have "
            f"{len(devices)} in all; see --devices-per-process of jaxcoll launch"
        )
    if len(devices) < count:
        raise SystemExit(
            f"digits: the mesh needs {count} devices and JAX has {len(devices)}; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return Mesh(np.array(devices[:count]).reshape(tuple(shape.values())), tuple(shape))


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m jaxcoll.examples.digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--mesh",
        type=parse_mesh,
        default="dp=4,tp=2",
        metavar="dp=N,tp=M",
        help="devices for data and for tensor parallelism (default: dp=4,tp=2)",
    )
    parser.add_argument(
        "--style",
        choices=("shard_map", "gspmd"),
        default="shard_map",
        help="the program has its collectives in it, or XLA inserts them (default: shard_map)",
    )
    parser.add_argument("--epochs", type=parse_epochs, default=20, help="default: 20")
    parser.add_argument(
        "--save",
        type=npz_path,
        metavar="FILE",
        help="write the parameters that jaxcoll's run ends with, as FILE.npz",
    )
    arguments = parser.parse_args(argv)

    join()
    data, mesh = load_digits(), make_mesh(arguments.mesh)
    saves = arguments.save is not None and jax.process_index() == 0
    if saves and not can_write(arguments.save):
        parser.error(f"--save: {arguments.save} cannot be written")
    steps: dict[str, tuple[Callable[..., Any], contextlib.AbstractContextManager[None]]]
    if arguments.style == "shard_map":
        steps = {
            name: (step_of_shard_map(mesh, psum), contextlib.nullcontext())
            for name, psum in (("lax", jax.lax.psum), ("jaxcoll", jaxcoll.psum))
        }
    else:
        steps = {
            name: (step_of_gspmd(mesh), setting)
            for name, setting in (
                ("xla", contextlib.nullcontext()),
                ("jaxcoll", jaxcoll.installed()),
            )
        }
    runs = {}
    for name, (step, setting) in steps.items():
        with setting:
            runs[name] = train(name, step, mesh, data, arguments.epochs)
    peer, ours = runs.values()
    difference = max(
        float(np.abs(values - peer.params[key]).max()) for key, values in ours.params.items()
    )
    if saves:
        np.savez(arguments.save, **ours.params)
    where = f"{dict(mesh.shape)}"
    if jax.process_count() > 1:
        where += f" in {jax.process_count()} processes"
    tell(f"\nloss per epoch on {where}, {len(data.train_images)} images, first to last")
    for name, run in runs.items():
        tell(f"  {name:8} {run.losses[0]:.4f} |{curve(run.losses)}| {run.losses[-1]:.4f}")
    tell(f"test accuracy on {len(data.test_images)} unseen images")
    for name, run in runs.items():
        tell(f"  {name:8} {run.accuracy:.1%}")
    tell(f"largest parameter difference  {difference:.2e}")
    tell("time per step, median")
    for name, run in runs.items():
        tell(f"  {name:8} {run.step_s * 1e3:.3f} ms")
    if min(run.accuracy for run in runs.values()) < WANTED_ACCURACY:
        tell(f"digits: below the {WANTED_ACCURACY:.0%} wanted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
