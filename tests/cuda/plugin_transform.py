"""Registers a transformation of modules with JAX's plugin for CUDA where there is no GPU.

JAX 0.10.2 finds the plugin's interface by a client, which takes a GPU. The plugin has the interface
and calls what is registered there, so the tests take it from the plugin's library.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

_XLA_TRANSFORM = 24  # PJRT_Extension_Type_XlaTransform
_VERSION = 1  # PJRT_API_XLA_TRANSFORM_EXTENSION_VERSION


class _Extension(ctypes.Structure):
    pass


_Extension._fields_ = [
    ("struct_size", ctypes.c_size_t),
    ("type", ctypes.c_int),
    ("next", ctypes.POINTER(_Extension)),
    ("register", ctypes.c_void_p),
]


class _Api(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extensions", ctypes.POINTER(_Extension))]


class _Text(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    _fields_ = [
        ("api_version", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("cleanup", ctypes.c_void_p),
        ("has_error", ctypes.c_bool),
        ("code", ctypes.c_int),
        ("message", _Text),
    ]


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("header", _Header),
        ("module", _Text),
        ("transformed", _Text),
        ("changed", ctypes.c_bool),
    ]


_Transform = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(_Arguments))


class _Callbacks(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_int64),
        ("destroy", ctypes.c_void_p),
        ("transform", _Transform),
    ]


class _Registration(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("name_size", ctypes.c_size_t),
        ("stage", ctypes.c_int),
        ("callbacks", ctypes.POINTER(_Callbacks)),
    ]


_kept: list[object] = []  # what the plugin points to


def register(transform: Callable[[bytes], bytes | None]) -> None:
    """Has the plugin's compiler call `transform` before it schedules a module."""
    specs = [importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13)]
    (spec,) = [spec for spec in specs if spec is not None]
    library = ctypes.CDLL(str(Path(spec.origin).parent / "xla_cuda_plugin.so"))
    library.GetPjrtApi.restype = ctypes.POINTER(_Api)
    extension = library.GetPjrtApi().contents.extensions
    while extension.contents.type != _XLA_TRANSFORM:
        extension = extension.contents.next

    def call(_callbacks: int, arguments) -> None:
        module = arguments.contents.module
        result = transform(ctypes.string_at(module.data, module.size))
        if result is not None:
            _kept.append(ctypes.create_string_buffer(result, len(result)))
            arguments.contents.transformed.data = ctypes.addressof(_kept[-1])
            arguments.contents.transformed.size = len(result)
            arguments.contents.changed = True

    callbacks = _Callbacks(_VERSION, None, _Transform(call))
    name = b"jaxcoll"
    registration = _Registration(
        ctypes.sizeof(_Registration), name, len(name), 0, ctypes.pointer(callbacks)
    )
    _kept.extend([callbacks, registration])
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Registration))
    assert not function(extension.contents.register)(ctypes.byref(registration))
