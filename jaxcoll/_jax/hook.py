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
from jaxcoll._errors import ABOUT_THE_JOB, JaxcollError, SetupError
from jaxcoll._hlo import dictionary, fingerprint, merge, overlap, proto, report, serve, simplify
from jaxcoll._hlo import module as _module
from jaxcoll._hlo.costs import Costs
from jaxcoll._hlo.groups import Devices, NotServed
from jaxcoll._jax import compat, job_log
from jaxcoll._job import membership, presence
from jaxcoll._native import native
from jaxcoll.tune import select, table

_log = logging.getLogger("jaxcoll")

ATTRIBUTE = "jaxcoll_marking"  # of a module that is to be served: a JSON object, see _marking
_IN_ORDER = "order"  # JAXCOLL_MATCH=order, as in program.py


class _Place(NamedTuple):
    process: int
    host: int


_lock = threading.Lock()
_registered = False
_overlap_wanted = False
_is_on: Callable[[], bool] = bool  # never; see register
_places: dict[int, _Place] = {}  # of the devices of all programs, by id; guarded by _lock


class Served(NamedTuple):
    """The fate of the collectives of a module that XLA has compiled in this process."""

    module: str  # its name, "jit_step"
    served: int
    left: tuple[serve.Left, ...]


_reports: list[Served] = []  # guarded by _lock
_REPORTS_AT_MOST = 1000


def register(is_on: Callable[[], bool]) -> str:
    """Registers the hook; returns why there is none, "" if there is one.

    Args:
      is_on: whether what this thread compiles now is to be served.
    """
    global _is_on
    _is_on = is_on
    return _register()


def want_overlap() -> None:
    """Has jaxcoll's own calls go on beside other work in all programs compiled from now on."""
    global _overlap_wanted
    if not _overlap_wanted:
        _overlap_wanted = not _register()


def _register() -> str:
    """Registers the hook, once per process."""
    global _registered
    with _lock:
        if not _registered:
            if trouble := compat.hook_trouble():
                return trouble
            compat.before_compilation(_mark)
            compat.register_module_transformation("jaxcoll", _transform)
            _registered = True
    return ""


OPCODES = tuple(serve.OPCODES)
trouble = compat.hook_trouble


def report_of(compiled: Any) -> report.ProgramReport:
    """The fate of a compiled program's collectives. Raises: TypeError."""
    if not isinstance(compiled, jax.stages.Compiled):
        raise TypeError(
            f"a compiled program is wanted, jax.jit(f).lower(...).compile(), not {type(compiled)}"
        )
    executable: Any = compiled.runtime_executable()
    module = executable.hlo_modules()[0]  # JAX makes programs of one
    return report.of_module(module.as_serialized_hlo_module_proto())


def reports() -> list[Served]:
    """The fate of the modules that this process has compiled, in their order."""
    with _lock:
        return list(_reports)


# --- where a compilation is asked for -----------------------------------------------------------


def _mark(module: Any, devices: Sequence[Any]) -> None:
    """Marks a module that is to be served, and makes this process ready to run it.

    It may come from the persistent cache, where it has been served already, so the engine is
    started here.
    """
    serves = _is_on()
    if len(devices) < 2 or any(d.platform != "cpu" for d in devices):
        return
    if not serves:
        overlaps = _overlap_wanted and compat.has_custom_call(module, serve.TARGET)
        # A lowered program may have been compiled before, under another setting.
        compat.set_frontend_attribute(module, ATTRIBUTE, "{}" if overlaps else None)
        return
    processes = {device.process_index for device in devices}
    with _lock:
        for device in devices:
            _places[device.id] = _Place(device.process_index, getattr(device, "slice_index", 0))
    _environment.values()  # a program may have changed them since the import
    native.log_process(jax.process_index(), jax.process_count())
    job_log.devices()
    if len(processes) > 1:
        presence.start_engine()
        membership.agree_on_tuning()
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
            "merge_bytes": _merge_bytes(),
            "meshes": [[list(mesh.items()), ids] for mesh, ids in meshes],
        },
        separators=(",", ":"),
    )


_MERGE_BYTES = 4 << 20


def _merge_bytes() -> int:
    value = _environment.values()["JAXCOLL_MERGE_BYTES"]
    return _MERGE_BYTES if value is None else int(value)


# --- the callback -------------------------------------------------------------------------------

_MARK = ATTRIBUTE.encode()
# All opcodes of collectives have one of these in them.
_SIGNS = (b"all-", b"collective-", b"reduce-scatter", serve.TARGET.encode())


def _transform(serialized: bytes) -> bytes | None:
    """The module with its collectives served; None where there is nothing to serve.

    Raises nothing, for XLA would go on without a word: a module that cannot be read is left to it.
    If that may be so in this process alone, the other processes are told, who would wait for it.
    """
    if _MARK not in serialized or not any(sign in serialized for sign in _SIGNS):
        return None
    try:
        return _transformed(serialized)
    except Exception as error:
        reason = (
            "jaxcoll.install(): the collectives of a program are left to XLA, for its module could "
            f"not be rewritten: {type(error).__name__}: {error}"
        )
        _log.warning("%s", reason)
        if isinstance(error, ABOUT_THE_JOB) and jax.process_count() > 1:
            presence.refuse(f"process {jax.process_index()}: {reason}")
        return None


def _transformed(serialized: bytes) -> bytes | None:
    module = proto.Module.FromString(serialized)
    marking = _module.attributes(module).get(ATTRIBUTE)
    if marking is None:
        return None
    marking = json.loads(marking)
    if not marking:
        return module.SerializeToString() if overlap.overlap(module, Costs(module)) else None
    decider = _Decider(serialized, module, marking)
    simplify.simplify(module, decider.decide, decider.may_scatter)
    served, left = serve.serve(module, decider.decide)
    if served or left:
        with _lock:
            _reports.append(Served(module.name, len(served), tuple(left)))
            del _reports[:-_REPORTS_AT_MOST]
    _module.forward_tuples(module)
    costs = Costs(module)
    if most_bytes := marking["merge_bytes"]:
        merge.merge(module, costs, most_bytes, decider.rechoose)
        _module.forward_tuples(module)
    overlap.overlap(module, costs)
    changed: bytes = module.SerializeToString()
    if _log.isEnabledFor(logging.INFO):
        for line in str(report.of_module(changed)).splitlines():
            _log.info("%s", line)
    return changed


# Each element is added up from rank 0 to the last, in one place.
_IN_RANK_ORDER = {"direct", "direct2"}


class _Decider:
    """The attributes of a module's calls."""

    def __init__(self, serialized: bytes, module: Any, marking: dict[str, Any]) -> None:
        self._serialized = serialized
        self._meshes = [_Mesh(dict(axes), ids) for axes, ids in marking["meshes"]]
        self._ordinals = itertools.count()
        self._merge_bytes = marking["merge_bytes"]
        self._match = marking["match"]
        try:
            self._ids = Devices(module).ids
        except NotServed:
            self._ids = []  # then nothing asks: none of its collectives is served
        with _lock:
            places = [_places.get(device) for device in self._ids]
        self._places = [place for place in places if place is not None]
        self._several = len({place.process for place in self._places}) > 1
        self._program: str | None = None
        self._choices: dict[Any, select.Choice] = {}
        self._known_axes: dict[Any, tuple[tuple[int, ...], str]] = {}

    def decide(self, request: serve.Request) -> dict[str, Any]:
        """Raises: NotServed."""
        axes, label = self._axes(request.groups)
        job_log.communicator(label, request.groups, self._ids, on_gpu=False)
        place = f" for {request.source}" if request.source else ""
        choice = self._choice(request.collective, request.groups, request.byte_count, axes)
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
            "separate_blocks": 0,
            "schedule": "",
            "tuning": table.digest(),
            "program": self._fingerprint() if self._several else "",
            # Instructions are in the same order on all processes.
            "signature": f"{request.signature} #{next(self._ordinals)}" if self._several else "",
            "label": f"{label}, {request.origin} that XLA inserted{place}",
        }

    def may_scatter(self, groups: np.ndarray, whole: int, rest: int, parts: list[int]) -> bool:
        """Whether an all_reduce of `whole` bytes adds in the order of what it would become."""
        axes, _ = self._axes(groups)
        calls = [("all_reduce", whole), *(("reduce_scatter", part) for part in parts)]
        calls += [("all_reduce", rest)] if rest else []
        try:
            choices = {self._choice(name, groups, size, axes).algorithm for name, size in calls}
        except NotServed:
            return False
        return choices <= _IN_RANK_ORDER

    def rechoose(self, config: str, byte_count: int) -> str | None:
        """A call's attributes with the algorithm for more bytes, if that adds in the same order."""
        named = not dictionary.text(config, "tuning")  # by the program: no table has been asked
        if named or dictionary.text(config, "collective") != "all_reduce":
            return None
        algorithm = dictionary.text(config, "algorithm")
        groups = np.array(dictionary.integers(config, "groups"), np.int64)
        groups = groups.reshape(-1, dictionary.integer(config, "group_size"))
        try:
            choice = self._choice("all_reduce", groups, byte_count, self._axes(groups)[0])
        except NotServed:
            return None
        if choice.dims or not {algorithm, choice.algorithm} <= _IN_RANK_ORDER:
            return None
        return config.replace(f'algorithm = "{algorithm}"', f'algorithm = "{choice.algorithm}"')

    def _choice(
        self, collective: str, groups: np.ndarray, byte_count: int, axes: tuple[int, ...]
    ) -> select.Choice:
        """The algorithm. Raises: NotServed."""
        if len(self._places) < len(self._ids):
            raise NotServed("the program is for devices that this process does not know")
        key = (collective, groups.shape, groups.tobytes(), byte_count, axes)
        if key not in self._choices:
            self._choices[key] = self._new_choice(collective, groups, byte_count, axes)
        return self._choices[key]

    def _new_choice(
        self, collective: str, groups: np.ndarray, byte_count: int, axes: tuple[int, ...]
    ) -> select.Choice:
        processes = [place.process for place in self._places]
        hosts = [place.host for place in self._places]
        try:
            return select.choose(
                collective,
                "auto",
                groups.shape[1],
                byte_count=byte_count,
                ranks_per_node=membership.ranks_per_node(groups, processes, hosts),
                processes=membership.owners_per_group(groups, processes),
                hosts=membership.owners_per_group(groups, hosts),
                axes=axes,
                on_gpu=False,
                table=table.active(),
            )
        except SetupError:
            raise  # differs between processes
        except JaxcollError as error:
            raise NotServed(str(error)) from error

    def _fingerprint(self) -> str:
        """That of the module as XLA made it. The engine keeps its lines, to tell differences."""
        if self._program is None:
            if self._match == _IN_ORDER:
                self._program = _IN_ORDER
            else:
                module = proto.Module.FromString(self._serialized)  # before anything was served
                # It decides which calls there are, so processes are told where it differs.
                lines = [f"JAXCOLL_MERGE_BYTES={self._merge_bytes} @ "]
                lines += fingerprint.lines(module)
                self._program = "hlo:" + fingerprint.digest(lines, str(self._ids))
                if native.comm_wants_listing(self._program):
                    native.comm_add_listing(self._program, module.name, lines)
        return self._program

    def _axes(self, groups: np.ndarray) -> tuple[tuple[int, ...], str]:
        """The sizes of the mesh axes that are a group, () if it is none; words for it."""
        key = (groups.shape, groups.tobytes())
        if key not in self._known_axes:
            self._known_axes[key] = self._new_axes(groups)
        return self._known_axes[key]

    def _new_axes(self, groups: np.ndarray) -> tuple[tuple[int, ...], str]:
        ranks = groups.shape[1]
        for mesh in self._meshes:
            if (axes := mesh.axes_of(groups)) is not None:
                sizes = tuple(mesh.shape[axis] for axis in axes)
                return sizes, membership.label(axes, mesh.shape, ranks)
        return (), f"{ranks} devices"


class _Mesh:
    """A mesh of the program, as far as it is known when its module has been partitioned."""

    def __init__(self, shape: dict[str, int], ids: Sequence[int]) -> None:
        self.shape = shape
        self._by_groups: dict[frozenset[frozenset[int]], tuple[str, ...]] = {}
        order = np.array(ids, np.int64) if ids else None
        names = [name for name, size in shape.items() if size > 1]
        for count in range(1, len(names) + 1):
            for axes in itertools.combinations(names, count):
                groups = membership.logical_groups(shape, axes)
                groups = groups if order is None else order[groups]
                self._by_groups.setdefault(frozenset(map(frozenset, groups.tolist())), axes)

    def axes_of(self, groups: np.ndarray) -> tuple[str, ...] | None:
        return self._by_groups.get(frozenset(map(frozenset, groups.tolist())))
