"""The compiler's hook: what XLA's partitioner inserts, through jaxcoll.

JAX (from 0.10.2 on) hands a callback every module, after partitioning and layout. Whether a module
is for us stands in the module itself, as a frontend attribute that is set where its compilation is
asked for: the callback may run in any thread, and JAX's persistent cache, whose keys are digests of
modules, tells programs compiled with jaxcoll from those without, and from those of another version
or of other settings.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxcoll
from jaxcoll import _environment
from jaxcoll._errors import JaxcollError
from jaxcoll._hlo import fingerprint, proto, serve
from jaxcoll._hlo import module as _module
from jaxcoll._hlo.groups import NotServed
from jaxcoll._hlo.report import ProgramReport, of_module
from jaxcoll._jax import compat
from jaxcoll._job import communicator, presence
from jaxcoll._native import native
from jaxcoll.tune import select, table

_log = logging.getLogger("jaxcoll")

ATTRIBUTE = "jaxcoll"  # of a module that is to be served: a JSON object, see _marking
_IN_ORDER = "order"  # JAXCOLL_MATCH=order, as in program.py


class _Place(NamedTuple):
    process: int
    host: int


_lock = threading.Lock()
_registered = False
_places: dict[int, _Place] = {}  # of the devices of all programs, by id; guarded by _lock


class Served(NamedTuple):
    """What has become of the collectives of a module that XLA has compiled in this process."""

    module: str  # its name, "jit_step"
    served: tuple[serve.Request, ...]
    left: tuple[serve.Left, ...]


_reports: list[Served] = []  # guarded by _lock
_REPORTS_AT_MOST = 1000


def register(is_on: Callable[[], bool]) -> str:
    """Registers the hook, once per process; returns why there is none, "" if there is one.

    Args:
      is_on: whether what this thread compiles now is to be served.
    """
    global _registered
    with _lock:
        if not _registered:
            if trouble := compat.hook_trouble():
                return trouble
            compat.before_compilation(lambda module, devices: _mark(module, devices, is_on))
            compat.register_module_transformation("jaxcoll", _transform)
            _registered = True
    return ""


OPCODES = tuple(serve.OPCODES)
trouble = compat.hook_trouble


def report(compiled: Any) -> ProgramReport:
    """What has become of a compiled program's collectives. Raises: TypeError."""
    if not isinstance(compiled, jax.stages.Compiled):
        raise TypeError(
            f"a compiled program is wanted, jax.jit(f).lower(...).compile(), not {type(compiled)}"
        )
    executable: Any = compiled.runtime_executable()
    (module,) = executable.hlo_modules()
    return of_module(module.as_serialized_hlo_module_proto())


def reports() -> list[Served]:
    """What has become of the modules that this process has compiled, in their order."""
    with _lock:
        return list(_reports)


# --- where a compilation is asked for -----------------------------------------------------------


def _mark(module: Any, devices: Sequence[Any], is_on: Callable[[], bool]) -> None:
    """Marks a module that is to be served, and makes this process ready to run it.

    It may come from the persistent cache, where it has been served already, so the engine is
    started here.
    """
    if not is_on() or len(devices) < 2 or any(d.platform != "cpu" for d in devices):
        return
    processes = {device.process_index for device in devices}
    with _lock:
        for device in devices:
            _places[device.id] = _Place(device.process_index, getattr(device, "slice_index", 0))
    _environment.values()  # a program may have changed them since the import
    if len(processes) > 1:
        presence.start_engine()
        communicator.agree_on_tuning()
        native.comm_end_build()
    compat.set_frontend_attribute(module, ATTRIBUTE, _marking(module))


def _marking(module: Any) -> str:
    """All that what becomes of a module depends on, beside the module."""
    meshes = compat.meshes_of(module)
    return json.dumps(
        {
            "version": jaxcoll.__version__,
            "tuning": table.digest(),
            "match": _environment.values()["JAXCOLL_MATCH"],
            "meshes": [[list(mesh.items()), ids] for mesh, ids in meshes],
        },
        separators=(",", ":"),
    )


# --- the callback -------------------------------------------------------------------------------

_MARK = f"{ATTRIBUTE}".encode()
# All opcodes of collectives have one of these in them.
_SIGNS = (b"all-", b"collective-", b"reduce-scatter")


def _transform(serialized: bytes) -> bytes | None:
    """The module with its collectives served; None where there is nothing to serve.

    Raises nothing: a module that cannot be read is left to XLA.
    """
    if _MARK not in serialized or not any(sign in serialized for sign in _SIGNS):
        return None
    try:
        return _transformed(serialized)
    except Exception as error:
        _log.warning(
            "jaxcoll.install(): the collectives of a program are left to XLA, for its module could "
            "not be rewritten: %s: %s",
            type(error).__name__,
            error,
        )
        return None


def _transformed(serialized: bytes) -> bytes | None:
    module = proto.Module.FromString(serialized)
    marking = _module.attributes(module).get(ATTRIBUTE)
    if marking is None:
        return None
    decider = _Decider(serialized, module, json.loads(marking))
    served, left = serve.serve(module, decider.decide)
    if served or left:
        with _lock:
            _reports.append(Served(module.name, tuple(served), tuple(left)))
            del _reports[:-_REPORTS_AT_MOST]
    return module.SerializeToString() if served else None


class _Decider:
    """The attributes of a module's calls."""

    def __init__(self, serialized: bytes, module: Any, marking: dict[str, Any]) -> None:
        self._serialized = serialized
        self._meshes = [_Mesh(dict(axes), ids) for axes, ids in marking["meshes"]]
        self._ordinals = itertools.count()
        assignment = module.device_assignment
        columns = [list(c.replica_device_ids) for c in assignment.computation_devices]
        self._ids = np.array(columns, np.int64).T.reshape(-1).tolist()
        with _lock:
            places = [_places.get(device) for device in self._ids]
        self._places = [place for place in places if place is not None]
        self._program: str | None = None

    def decide(self, request: serve.Request) -> dict[str, Any]:
        """Raises: NotServed."""
        if len(self._places) < len(self._ids):
            raise NotServed("the program is for devices that this process does not know")
        processes = [place.process for place in self._places]
        hosts = [place.host for place in self._places]
        several = len(set(processes)) > 1
        axes, label = self._axes(request)
        try:
            choice = select.choose(
                request.collective,
                "auto",
                request.groups.shape[1],
                byte_count=request.byte_count,
                ranks_per_node=communicator.ranks_per_node(request.groups, processes, hosts),
                processes=communicator.places_per_group(request.groups, processes),
                hosts=communicator.places_per_group(request.groups, hosts),
                axes=axes,
                on_gpu=False,
                table=table.active(),
            )
        except JaxcollError as error:
            raise NotServed(str(error)) from error
        return {
            "collective": request.collective,
            "algorithm": choice.algorithm,
            "reduce_op": request.reduce_op,
            "groups": request.groups,
            "group_size": request.groups.shape[1],
            "device_ids": self._ids,
            "root": 0,
            "permutation": request.permutation,
            "dims": choice.dims,
            "channels": 1,
            "schedule": "",
            "tuning": table.digest(),
            "program": self._fingerprint() if several else "",
            # Instructions are in the same order on all processes.
            "signature": f"{request.signature} #{next(self._ordinals)}" if several else "",
            "label": label,
        }

    def _fingerprint(self) -> str:
        """That of the module as XLA has made it. The engine keeps the lines, to tell differences."""
        if self._program is None:
            if _environment.values()["JAXCOLL_MATCH"] == _IN_ORDER:
                self._program = _IN_ORDER
            else:
                module = proto.Module.FromString(self._serialized)  # before anything was served
                lines = fingerprint.lines(module)
                self._program = "hlo:" + fingerprint.digest(lines, str(self._ids))
                if native.comm_wants_listing(self._program):
                    native.comm_add_listing(self._program, module.name, lines)
        return self._program

    def _axes(self, request: serve.Request) -> tuple[tuple[int, ...], str]:
        """The sizes of the mesh axes that are a group, () if it is none; words for it."""
        ranks = request.groups.shape[1]
        sizes: tuple[int, ...] = ()
        label = f"{ranks} devices"
        for mesh in self._meshes:
            if (axes := mesh.axes_of(request.groups)) is not None:
                sizes = tuple(mesh.shape[axis] for axis in axes)
                label = communicator.label(axes, mesh.shape, ranks)
                break
        place = f" for {request.source}" if request.source else ""
        return sizes, f"{label}, {request.origin} that XLA inserted{place}"


class _Mesh:
    """A mesh of the program, as far as it is known when its module has been partitioned."""

    def __init__(self, shape: dict[str, int], ids: Sequence[int]) -> None:
        self.shape = shape
        self._by_groups: dict[frozenset[frozenset[int]], tuple[str, ...]] = {}
        order = np.array(ids, np.int64) if ids else None
        names = [name for name, size in shape.items() if size > 1]
        for count in range(1, len(names) + 1):
            for axes in itertools.combinations(names, count):
                groups = communicator.logical_groups(shape, axes)
                groups = groups if order is None else order[groups]
                self._by_groups.setdefault(frozenset(map(frozenset, groups.tolist())), axes)

    def axes_of(self, groups: np.ndarray) -> tuple[str, ...] | None:
        return self._by_groups.get(frozenset(map(frozenset, groups.tolist())))
