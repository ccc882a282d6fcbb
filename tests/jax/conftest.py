"""Fixtures of the tests that run JAX."""

import jax
import pytest


@pytest.fixture
def x64():
    """64-bit dtypes for one test; without it JAX narrows them before jaxcoll sees them."""
    with jax.enable_x64(True):
        yield
