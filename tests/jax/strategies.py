"""Hypothesis strategies: meshes, the axes of a collective, dtypes, shapes.

Meshes are drawn as plain tuples, so that a failing example prints as something one can type.
"""

import ml_dtypes
import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st

# Every example compiles a program per implementation; compilation is what these tests cost. The
# examples are derandomised: a run is reproducible, and a failure prints its example. They are small
# as drawn, so a failure is not shrunk: that would compile a hundred programs more.
_common = settings(
    deadline=None,
    derandomize=True,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),
)
few = settings(_common, max_examples=8)
several = settings(_common, max_examples=16)

MESH_SHAPES = ((8,), (2, 4), (4, 2), (2, 2, 2), (3,), (5,), (7,), (2, 3), (1, 4), (2, 1, 3), (1,))

FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
INTEGERS = (
    *(np.int8, np.int16, np.int32, np.int64),
    *(np.uint8, np.uint16, np.uint32, np.uint64),
)
COMPLEX = (np.complex64, np.complex128)
FLOAT8 = tuple(
    getattr(ml_dtypes, name)
    for name in (
        *("float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e4m3b11fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
)
ALL_DTYPES = (*FLOATS, *INTEGERS, *COMPLEX, *FLOAT8, np.bool_)

dtypes = st.sampled_from(ALL_DTYPES).map(np.dtype)
differentiable = st.sampled_from((np.float32, np.float64, np.complex64)).map(np.dtype)
block_shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
device_orders = st.permutations(range(8)).map(tuple)
seeds = st.integers(0, 2**16)


@st.composite
def meshes(draw, shapes=MESH_SHAPES, least_size=1):
    """(shape, device order): a mesh of all or some of the devices, permuted."""
    shape = draw(st.sampled_from([s for s in shapes if np.prod(s) >= least_size]))
    return shape, draw(device_orders)


@st.composite
def meshes_and_axes(draw, shapes=MESH_SHAPES, least_size=1, in_mesh_order=False):
    """(shape, device order, axes of the collective): one axis or several in any order."""
    shape, order = draw(meshes(shapes, least_size))
    names = "xyz"[: len(shape)]
    axes = draw(
        st.lists(st.sampled_from(names), min_size=1, max_size=len(names), unique=True).map(tuple)
    )
    if in_mesh_order:
        axes = tuple(sorted(axes))
    return shape, order, axes


def axis_name(axes):
    """One axis by its name, several as a tuple: both spellings get used."""
    return axes[0] if len(axes) == 1 else axes


def world_size(shape, axes):
    return int(np.prod([shape["xyz".index(axis)] for axis in axes]))


def exact_bound(dtype):
    """Largest magnitude whose sum over eight ranks stays exact: float8 holds few integers."""
    return 1 if np.dtype(dtype) in [np.dtype(d) for d in FLOAT8] else 4


@st.composite
def partitions(draw, size):
    """axis_index_groups of equal size that cover range(size)."""
    group_size = draw(st.sampled_from([g for g in range(1, size + 1) if size % g == 0]))
    indices = draw(st.permutations(range(size)))
    return [list(indices[i : i + group_size]) for i in range(0, size, group_size)]


@st.composite
def partial_permutations(draw, size):
    """(source, destination) pairs in which no source and no destination appears twice."""
    count = draw(st.integers(0, size))
    sources = draw(st.permutations(range(size)))[:count]
    destinations = draw(st.permutations(range(size)))[:count]
    return list(zip(sources, destinations, strict=True))
