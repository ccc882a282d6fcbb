"""The reduction kernels of every instruction set against a NumPy model."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcoll._native import native

ISAS = native.kernel_isas()
DTYPES = native.dtype_names()
CASES = [(dtype, op) for dtype in DTYPES for op in native.reduce_ops(dtype)]
FLOAT8 = [dtype for dtype in DTYPES if dtype.startswith("float8")]
SMALL_FLOATS = [*FLOAT8, "float16", "bfloat16"]

# A vector is 16 to 64 bytes and a step of the loop 2 to 4 of them: sizes around all of these.
SIZES = [0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 256, 257, 513, 1000]


def numpy_dtype(name: str) -> np.dtype:
    """Returns the NumPy dtype called `name`, from ml_dtypes where NumPy has none."""
    return np.dtype(getattr(ml_dtypes, name, name))


def raw(array: np.ndarray) -> np.ndarray:
    """Returns the bytes of `array`, of one dimension, as a view."""
    return array.view(np.uint8)


def fold_floats(op: str, sources: list[np.ndarray]) -> np.ndarray:
    """Combines floats in their own precision; min and max as IEEE 754-2019 has them."""
    result = sources[0]
    for source in sources[1:]:
        if op == "sum":
            result = result + source
        elif op == "prod":
            result = result * source
        else:
            take_result = np.signbit(result) if op == "min" else np.signbit(source)
            of_equals = np.where(take_result, result, source)  # tells -0 from +0
            ordered = (np.minimum if op == "min" else np.maximum)(result, source)
            result = np.where(result == source, of_equals, ordered)
    return result


def multiply_complex(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns (a + bi)(c + di) by the plain formula."""
    result = np.empty_like(x)
    result.real = x.real * y.real - x.imag * y.imag
    result.imag = x.real * y.imag + x.imag * y.real
    return result


def model(op: str, sources: list[np.ndarray]) -> np.ndarray:
    """Returns what the kernels promise: ((s0 op s1) op s2) ..., small floats rounded once."""
    dtype = sources[0].dtype
    if len(sources) == 1:
        return sources[0].copy()
    with np.errstate(all="ignore"):
        if dtype.name in SMALL_FLOATS:
            return fold_floats(op, [s.astype(np.float32) for s in sources]).astype(dtype)
        if dtype.kind == "f":
            return fold_floats(op, sources)
        combine = {
            "sum": np.add,
            "prod": multiply_complex if dtype.kind == "c" else np.multiply,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[op]
        result = sources[0]
        for source in sources[1:]:
            result = combine(result, source)
        return result


def assert_same_numbers(actual: np.ndarray, expected: np.ndarray) -> None:
    """Asserts that both are bitwise equal, except that every NaN equals every other."""
    if actual.dtype.kind == "c":  # by components
        actual, expected = (a.view(a.real.dtype) for a in (actual, expected))
    if actual.dtype.kind not in "iub":
        with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
            nan = np.isnan(expected)
            np.testing.assert_array_equal(np.isnan(actual), nan)
        actual, expected = actual[~nan], expected[~nan]
    np.testing.assert_array_equal(raw(actual), raw(expected))


def random_array(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Returns `size` elements of which half are any bit pattern and half small integers."""
    dtype = numpy_dtype(name)
    if name == "bool":
        return rng.integers(0, 2, size).astype(bool)
    patterns = rng.integers(0, 256, size * dtype.itemsize, dtype=np.uint8).view(dtype)
    integers = rng.integers(-8, 9, size).astype(dtype)
    return np.where(rng.integers(0, 2, size).astype(bool), patterns, integers)


def aligned_bytes(size: int, offset: int) -> np.ndarray:
    """Returns `size` bytes that start `offset` bytes behind a 64-byte boundary."""
    block = np.full(size + 128, 0xA5, np.uint8)
    start = -block.ctypes.data % 64 + offset
    return block[start : start + size]


def reduced(op: str, sources: list[np.ndarray], isa: str) -> np.ndarray:
    """Returns the kernel's reduction of `sources` in a new array."""
    destination = np.empty_like(sources[0])
    name = sources[0].dtype.name
    native.kernel_reduce([raw(destination)], [raw(s) for s in sources], name, op, isa=isa)
    return destination


@pytest.mark.parametrize(("dtype", "op"), CASES)
def test_every_size_matches_the_model_on_every_isa(dtype: str, op: str) -> None:
    rng = np.random.default_rng(0)
    for size in SIZES:
        for source_count in (2, 3, 8):
            sources = [random_array(rng, dtype, size) for _ in range(source_count)]
            results = [reduced(op, sources, isa) for isa in ISAS]
            assert_same_numbers(results[0], model(op, sources))
            for result in results[1:]:  # bitwise, NaNs included
                np.testing.assert_array_equal(raw(result), raw(results[0]))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_layout_matches_the_model(isa: str, data: st.DataObject) -> None:
    dtype, op = data.draw(st.sampled_from(CASES))
    size = data.draw(st.integers(0, 700))
    source_count = data.draw(st.integers(1, 20))
    destination_count = data.draw(st.integers(1, 9))
    in_place = data.draw(st.sets(st.integers(0, min(source_count, destination_count) - 1)))
    streaming = data.draw(st.booleans())
    alike = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    byte_count = size * numpy_dtype(dtype).itemsize

    # Destinations that are aligned alike can be streamed to; others begin anywhere.
    offset = int(rng.integers(0, 64))
    offsets = [offset if alike else int(rng.integers(0, 64)) for _ in range(destination_count)]
    blocks = [aligned_bytes(byte_count + 1, offset) for offset in offsets]
    destinations = [block[:-1] for block in blocks]
    sources = [aligned_bytes(byte_count, int(rng.integers(0, 64))) for _ in range(source_count)]
    for source in sources:
        source[:] = raw(random_array(rng, dtype, size))
    expected = model(op, [s.copy().view(numpy_dtype(dtype)) for s in sources])
    for i in in_place:
        destinations[-1 - i][:] = sources[i]
        sources[i] = destinations[-1 - i]

    native.kernel_reduce(destinations, sources, dtype, op, streaming, isa)
    for block in blocks:
        assert block[-1] == 0xA5, "wrote past the end"
        assert_same_numbers(block[:-1].copy().view(numpy_dtype(dtype)), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "op"), [case for case in CASES if case[0] in FLOAT8])
def test_every_pair_of_float8_matches_the_model(dtype: str, op: str, isa: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    pairs = [np.repeat(codes, 256), np.tile(codes, 256)]
    sources = [codes.view(numpy_dtype(dtype)) for codes in pairs]
    assert_same_numbers(reduced(op, sources, isa), model(op, sources))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_float_survives_the_conversions(dtype: str, isa: str) -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(numpy_dtype(dtype))
    assert_same_numbers(reduced("max", [numbers, numbers], isa), numbers)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["sum", "prod"])
@pytest.mark.parametrize("dtype", SMALL_FLOATS)
def test_rounding_matches_the_model_near_every_number(dtype: str, op: str, isa: str) -> None:
    codes = np.arange(2**16, dtype=np.uint16)
    if numpy_dtype(dtype).itemsize == 1:
        codes = codes.astype(np.uint8)
    rng = np.random.default_rng(0)
    for source_count in (2, 3, 4):
        sources = [rng.permutation(codes).view(numpy_dtype(dtype)) for _ in range(source_count)]
        assert_same_numbers(reduced(op, sources, isa), model(op, sources))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_a_number_and_half_its_last_place_round_to_even(dtype: str, isa: str) -> None:
    kind = numpy_dtype(dtype)
    largest = int(np.array(ml_dtypes.finfo(kind).max, kind).view(np.uint16))
    codes = np.arange(largest + 1, dtype=np.uint16)
    numbers = codes.view(kind)
    gaps = np.diff(numbers.astype(np.float32))
    for fraction in (0.25, 0.5, 0.75):
        sources = [numbers[:-1], (gaps * np.float32(fraction)).astype(kind)]
        assert_same_numbers(reduced("sum", sources, isa), model("sum", sources))
        negated = [-source for source in sources]
        assert_same_numbers(reduced("sum", negated, isa), model("sum", negated))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_accumulate_in_float32(dtype: str, isa: str) -> None:
    """1 + 2^-12 + ... 16 times: every single addition in 16 bits would round to 1."""
    kind = numpy_dtype(dtype)
    sources = [np.full(100, 1, kind), *[np.full(100, 2.0**-10, kind)] * 16]
    expected = np.full(100, 1 + 16 * 2.0**-10, kind)
    np.testing.assert_array_equal(reduced("sum", sources, isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("op", "zero"), [("min", -0.0), ("max", 0.0)])
def test_zeros_of_both_signs_are_ordered(dtype: str, op: str, zero: float, isa: str) -> None:
    zeros = [np.full(9, z, numpy_dtype(dtype)) for z in (0.0, -0.0)]
    for sources in (zeros, zeros[::-1]):
        np.testing.assert_array_equal(np.signbit(reduced(op, sources, isa)), np.signbit(zero))


@pytest.mark.parametrize("wanted", ISAS)
def test_environment_lowers_the_isa(wanted: str) -> None:
    assert isa_of_a_new_process(wanted) == (wanted, "")


def test_unknown_isa_is_refused_on_import() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        isa_of_a_new_process("mmx")
    assert "JAXCOLL_ISA='mmx' cannot be used; it takes: portable, avx2" in failure.value.stderr


def isa_of_a_new_process(wanted: str) -> tuple[str, str]:
    """Returns the ISA that a process with JAXCOLL_ISA=`wanted` picks, and what it says."""
    command = "from jaxcoll._native import native; print(native.kernel_isa())"
    process = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "JAXCOLL_ISA": wanted},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.strip(), process.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float7", "sum"), "unknown dtype 'float7'"),
        (("float32", "xor"), "'xor' is not a reduce op of float32"),
        (("float32", "mean"), "'mean' is not a reduce op of float32"),
        (("float64", "sum"), "not a whole number of float64"),
        (("float32", "sum", False, "mmx"), "'mmx' does not run here"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[object, ...], message: str) -> None:
    block = np.zeros(12, np.uint8)
    with pytest.raises(ValueError, match=message):
        native.kernel_reduce([block], [block, block], *arguments)


def test_unequal_sizes_are_refused() -> None:
    small, large = np.zeros(4, np.uint8), np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="sources differ"):
        native.kernel_reduce([small], [small, large], "float32", "sum")
    with pytest.raises(ValueError, match="destinations and sources differ"):
        native.kernel_reduce([small], [large], "float32", "sum")


def test_arrays_that_would_have_to_be_converted_are_refused() -> None:
    block = np.zeros(4, np.uint8)
    with pytest.raises(TypeError):
        native.kernel_reduce([np.zeros(4, np.float32)], [block, block], "uint8", "sum")
