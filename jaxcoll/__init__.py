"""Collective communication for JAX: verified schedules behind XLA custom calls.

    >>> import jax, jaxcoll
    >>> mesh = jax.make_mesh((8,), ("i",))
    >>> f = jax.shard_map(lambda x: jaxcoll.psum(x, "i"), mesh=mesh,
    ...                   in_specs=jax.P("i"), out_specs=jax.P())

The functions have the signatures and values of their namesakes in `jax.lax`.
"""

from jaxcoll import debug
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
    TopologyError,
    TuningError,
    UnknownAlgorithmError,
    UnknownReduceOpError,
    UnsupportedDtypeError,
    UnsupportedError,
    WorldSizeError,
)
from jaxcoll._jax import startup as startup
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
from jaxcoll._job import presence
from jaxcoll.schedule import verify

__version__ = "0.1.0"
presence.announce()

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
    "TopologyError",
    "TuningError",
    "UnknownAlgorithmError",
    "UnknownReduceOpError",
    "UnsupportedDtypeError",
    "UnsupportedError",
    "WorldSizeError",
    "__version__",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "broadcast",
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
    "pshuffle",
    "psum",
    "psum_scatter",
    "pswapaxes",
    "ragged_all_to_all",
    "reduce_scatter",
    "uninstall",
    "verify",
]
