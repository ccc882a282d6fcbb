"""The compiler's hook, which routes the collectives of XLA's partitioner through jaxcoll.

JAX (from 0.10.2 on) passes every module to a callback, after partitioning and layout. A frontend
attribute in the module itself, set in the thread that requests its compilation, marks the modules
for jaxcoll. So the callback may run in any thread, and JAX's persistent cache, whose keys are
digests of modules, distinguishes programs compiled with jaxcoll from others, and from those of
other versions and settings.
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
from jaxcoll._errors import ABOUT_THE_JOB, JaxcollError, SetupError, UnsupportedError
from jaxcoll._hlo import (
    dictionary,
    fingerprint,
    merge,
    overlap,
    proto,
    report,
    serve,
    simplify,
    streams,
)
from jaxcoll._hlo import module as _module
from jaxcoll._hlo.costs import Costs
from jaxcoll._hlo.groups import Devices, NotServed
from jaxcoll._jax import compat, job_log, mlir_module
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
            if native.cuda_built:
                compat.register_gpu_module_transformation("jaxcoll", _transform)
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
    platforms = {compat.platform_of(device.client) for device in devices}
    if len(devices) < 2 or len(platforms) > 1 or not platforms <= {"cpu", _GPU}:
        return
    on_gpu = platforms == {_GPU}
    processes = {device.process_index for device in devices}
    if serves and on_gpu:
        serves = _serves_gpus(len(processes) > 1)
    if not serves:
        wanted = _overlap_wanted and (not on_gpu or _uses_stream())
        overlaps = wanted and mlir_module.has_custom_call(module, serve.TARGET)
        # A lowered program may have been compiled before, under another setting.
        only = _ONLY_STREAM if on_gpu else "{}"
        mlir_module.set_frontend_attribute(module, ATTRIBUTE, only if overlaps else None)
        return
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
    mlir_module.set_frontend_attribute(module, ATTRIBUTE, _marking(module, on_gpu))


_GPU = "cuda"
_ONLY_STREAM = '{"stream":true}'  # for a module whose collectives stay XLA's
_left_on_gpus: list[str] = []  # why programs on GPUs were left to XLA; guarded by _lock


def left_on_gpus() -> tuple[str, ...]:
    """Why what XLA inserts into programs on GPUs was left to it in this process."""
    with _lock:
        return tuple(_left_on_gpus)


def _serves_gpus(several_processes: bool) -> bool:
    """Whether programs on GPUs can be served here; says once why not."""
    try:
        if not native.cuda_built:
            raise UnsupportedError("this build of jaxcoll has no GPU kernels")
        if trouble := compat.gpu_hook_trouble():
            raise UnsupportedError(trouble)
        if several_processes:
            presence.start_engine()
        membership.start_gpus()
    except UnsupportedError as error:
        reason = f"on GPUs: {error}"
        with _lock:
            known = reason in _left_on_gpus
            if not known:
                _left_on_gpus.append(reason)
        if not known:
            _log.warning("jaxcoll.install(): what XLA inserts is left to XLA %s", reason)
        return False
    return True


def _marking(module: Any, on_gpu: bool) -> str:
    """All that what becomes of a module depends on, beside the module."""
    meshes = mlir_module.meshes_of(module)
    marking: dict[str, Any] = {
        "version": jaxcoll.__version__,
        "tuning": "" if on_gpu else table.digest(),
        "match": _environment.values()["JAXCOLL_MATCH"],
        "merge_bytes": 0 if on_gpu else _merge_bytes(),
        "meshes": [[list(mesh.items()), ids] for mesh, ids in meshes],
    }
    if on_gpu:
        marking |= {"gpu": True, "stream": _uses_stream()}
    return json.dumps(marking, separators=(",", ":"))


def _uses_stream() -> bool:
    return bool(_environment.values()["JAXCOLL_CUDA_STREAM"] == "1")


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
    If only this process may be affected, it reports the reason to the others, which would wait for
    it.
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
    if "version" not in marking:  # its collectives stay XLA's, its calls are to go on beside work
        program = _module.Program(module)
        if marking.get("stream", False):
            changes: int = streams.put_on_stream(program)
        else:
            changes = overlap.overlap(program, Costs(program))
            program.store()
        return module.SerializeToString() if changes else None
    on_gpu = marking.get("gpu", False)
    target = serve.GPU if on_gpu else serve.CPU
    decider = _Decider(serialized, module, marking)
    program = _module.Program(module)
    simplify.simplify(program, decider.decide, decider.may_scatter, target)
    served, left = serve.serve(program, decider.decide, target)
    if served or left:
        with _lock:
            _reports.append(Served(module.name, len(served), tuple(left)))
            del _reports[:-_REPORTS_AT_MOST]
    program.forward_tuples()
    if not on_gpu:  # the rest goes by what work costs on CPUs, and how XLA:CPU runs it
        costs = Costs(program)
        if most_bytes := marking["merge_bytes"]:
            merge.merge(program, costs, most_bytes, decider.rechoose)
            program.forward_tuples()
        overlap.overlap(program, costs)
    elif marking["stream"]:
        streams.put_on_stream(program)
    program.store()
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
        self._on_gpu = marking.get("gpu", False)
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
        job_log.communicator(label, request.groups, self._ids, self._on_gpu)
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
            "tuning": "" if self._on_gpu else table.digest(),
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
                on_gpu=self._on_gpu,
                table=None if self._on_gpu else table.active(),
            )
        except SetupError:
            raise  # differs between processes
        except JaxcollError as error:
            raise NotServed(str(error)) from error

    def _fingerprint(self) -> str:
        """That of the module as XLA made it. The engine keeps its lines, to report differences."""
        if self._program is None:
            if self._match == _IN_ORDER:
                self._program = _IN_ORDER
            else:
                module = proto.Module.FromString(self._serialized)  # before anything was served
                # It determines the calls of a program, so processes report where it differs.
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
