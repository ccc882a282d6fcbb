"""Collectives that are started here and used there.

A start is the collective itself: its call never blocks XLA, and what is traced between start and
`done` runs beside it as far as it does not need the result. The pair adds an order: the
call goes before everything that becomes ready with it (`_hlo/overlap.py`). So whatever works for a
collective works for its start: differentiation, vmap, scan, any pytree.

An error is raised where the result is used, and nothing is left behind if `done` is never called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import jax

from jaxcoll._jax import api, hook

_P = ParamSpec("_P")
_T = TypeVar("_T")


@jax.tree_util.register_pytree_node_class
class Started(Generic[_T]):
    """A collective under way. A pytree, so that it can cross the borders of jitted functions."""

    def __init__(self, value: _T) -> None:
        self._value = value

    def done(self) -> _T:
        """The collective's result, as the function of the same name without `_start` returns it."""
        return self._value

    def tree_flatten(self) -> tuple[tuple[_T], None]:
        return (self._value,), None

    @classmethod
    def tree_unflatten(cls, _: None, values: tuple[_T]) -> Started[_T]:
        return cls(*values)


def _starting(function: Callable[_P, _T]) -> Callable[_P, Started[_T]]:
    @functools.wraps(function)
    def start(*args: _P.args, **named: _P.kwargs) -> Started[_T]:
        hook.want_overlap()
        return Started(function(*args, **named))

    name = function.__name__
    start.__name__ = start.__qualname__ = f"{name}_start"
    start.__module__ = __name__
    start.__annotations__ = {**function.__annotations__, "return": Started}
    signature = inspect.signature(function)
    vars(start)["__signature__"] = signature.replace(return_annotation=Started)
    start.__doc__ = f"""Starts `{name}`; `.done()` returns its result.

    On CPUs, from JAX 0.10.2 on, computation between the two runs beside it, if there is enough:
    the work of moving about 1 MiB. On GPUs XLA decides, with JAXCOLL_CUDA_STREAM=1. Takes what
    `jaxcoll.{name}` takes, and raises what it raises; errors of other devices come with the result.
    `jax.grad`, `jax.vmap` and `jax.lax.scan` work as for `{name}`.

    Example:
      started = jaxcoll.{name}_start(...)
      y = compute(x)  # meanwhile
      z = started.done()
    """
    return start


all_gather_start = _starting(api.all_gather)
all_reduce_start = _starting(api.all_reduce)
all_to_all_start = _starting(api.all_to_all)
broadcast_start = _starting(api.broadcast)
ppermute_start = _starting(api.ppermute)
psum_scatter_start = _starting(api.psum_scatter)
psum_start = _starting(api.psum)
reduce_scatter_start = _starting(api.reduce_scatter)
