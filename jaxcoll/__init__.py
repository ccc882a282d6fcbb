"""Collective communication for JAX: verified schedules behind XLA custom calls.

    >>> import jax, jaxcoll
    >>> mesh = jax.make_mesh((8,), ("i",))
    >>> f = jax.shard_map(lambda x: jaxcoll.psum(x, "i"), mesh=mesh,
    ...                   in_specs=jax.P("i"), out_specs=jax.P())

The functions have the signatures and values of their namesakes in `jax.lax`.

The import sets the process up at once (`_jax/startup.py`), before JAX starts its back ends, no
matter what is used of jaxcoll later. There is one exception: the process of a command (``jaxcoll
COMMAND`` or ``python -m jaxcoll COMMAND``; `_environment.is_command` knows how it was started) runs
no program of the user's, and most commands need no JAX. There, what takes JAX is imported, and the
process set up, when it is first asked for, as ``jaxcoll info`` does. Public modules that the
collectives do not need (`simulate`, `topology`, ...) are loaded at their first use everywhere.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxcoll import _environment
from jaxcoll._errors import (
    AxisIndexGroupsError,
    CutError,
    FileError,
    JaxcollError,
    LinkError,
    MscclError,
    PermutationError,
    RanksError,
    ScheduleError,
    SettingError,
    SetupError,
    SimulationError,
    SnapshotError,
    TopologyError,
    TuningError,
    UnknownAlgorithmError,
    UnknownReduceOpError,
    UnsupportedDtypeError,
    UnsupportedError,
    WorldSizeError,
)

__version__ = "0.1.0"

if TYPE_CHECKING or not _environment.is_command():
    from jaxcoll import debug
    from jaxcoll._jax.api import (
        all_gather,
        all_reduce,
        all_to_all,
        broadcast,
        pbroadcast,
        pmax,
        pmean,
        pmin,
        ppermute,
        pshuffle,
        psum,
        psum_scatter,
        pswapaxes,
        ragged_all_to_all,
        reduce_scatter,
    )
    from jaxcoll._jax.install import install, install_report, installed, uninstall
    from jaxcoll._jax.lowering import export_checks
    from jaxcoll._jax.starting import (
        Started,
        all_gather_start,
        all_reduce_start,
        all_to_all_start,
        broadcast_start,
        ppermute_start,
        psum_scatter_start,
        psum_start,
        reduce_scatter_start,
    )
    from jaxcoll.schedule import verify

if TYPE_CHECKING:
    from jaxcoll import info as info
    from jaxcoll import interop as interop
    from jaxcoll import schedule as schedule
    from jaxcoll import simulate as simulate
    from jaxcoll import topology as topology
    from jaxcoll import tune as tune
else:
    _MODULES = {"debug", "info", "interop", "schedule", "simulate", "topology", "tune"}
    # The modules of those names of __all__ that a command has not imported.
    _HOMES = ("schedule", "_jax.api", "_jax.install", "_jax.lowering", "_jax.starting")

    def __getattr__(name: str) -> Any:
        """Public modules at their first use and, in a command, everything that takes JAX."""
        if name in _MODULES:
            return importlib.import_module(f"jaxcoll.{name}")
        if name in __all__:
            for home in _HOMES:
                found = vars(importlib.import_module(f"jaxcoll.{home}"))
                if name in found:
                    return found[name]
        raise AttributeError(f"module 'jaxcoll' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})


__all__ = [
    "AxisIndexGroupsError",
    "CutError",
    "FileError",
    "JaxcollError",
    "LinkError",
    "MscclError",
    "PermutationError",
    "RanksError",
    "ScheduleError",
    "SettingError",
    "SetupError",
    "SimulationError",
    "SnapshotError",
    "Started",
    "TopologyError",
    "TuningError",
    "UnknownAlgorithmError",
    "UnknownReduceOpError",
    "UnsupportedDtypeError",
    "UnsupportedError",
    "WorldSizeError",
    "__version__",
    "all_gather",
    "all_gather_start",
    "all_reduce",
    "all_reduce_start",
    "all_to_all",
    "all_to_all_start",
    "broadcast",
    "broadcast_start",
    "debug",
    "export_checks",
    "install",
    "install_report",
    "installed",
    "pbroadcast",
    "pmax",
    "pmean",
    "pmin",
    "ppermute",
    "ppermute_start",
    "pshuffle",
    "psum",
    "psum_scatter",
    "psum_scatter_start",
    "psum_start",
    "pswapaxes",
    "ragged_all_to_all",
    "reduce_scatter",
    "reduce_scatter_start",
    "uninstall",
    "verify",
]
