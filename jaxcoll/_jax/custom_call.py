"""The custom call: emits it, also alone in a module for XLA's partitioner, and parses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxcoll._jax.compat import Value, dictionary_entries, func, ir, mlir


def string_attribute(config: str, name: str) -> str:
    """A string in an MLIR dictionary given as text."""
    with mlir.make_ir_context(), ir.Location.unknown():
        return str(ir.StringAttr(ir.DictAttr(ir.Attribute.parse(config))[name]).value)


def module(
    target: str,
    config: str,
    operands: Sequence[tuple[Sequence[int], np.dtype]],
    results: Sequence[tuple[Sequence[int], np.dtype]],
) -> bytes:
    """A serialised module whose main function is one typed-FFI custom call.

    Args:
      config: the call's attributes as XLA prints them, an MLIR dictionary.
      operands, results: shapes and dtypes.
    """

    def tensor(shape: Sequence[int], dtype: np.dtype) -> ir.Type:
        return ir.RankedTensorType.get(list(shape), mlir.dtype_to_ir_type(dtype))

    with mlir.make_ir_context(), ir.Location.unknown():
        created = ir.Module.create()
        operand_types = [tensor(*operand) for operand in operands]
        result_types = [tensor(*result) for result in results]
        with ir.InsertionPoint(created.body):
            main: Any = func.FuncOp("main", ir.FunctionType.get(operand_types, result_types))
        with ir.InsertionPoint(main.add_entry_block()):
            attributes = dictionary_entries(ir.Attribute.parse(config))
            func.ReturnOp(emit(target, list(main.arguments), result_types, attributes))
        return mlir.module_to_bytecode(created)


def emit(
    target: str,
    operands: Sequence[Value],
    result_types: Sequence[ir.Type],
    attributes: dict[str, ir.Attribute],
    extra_attributes: dict[str, ir.Attribute] | None = None,
) -> list[Value]:
    """A typed-FFI custom call on row-major buffers."""

    def row_major(types: Iterable[ir.Type]) -> list[list[int]]:
        return [list(range(ir.RankedTensorType(t).rank - 1, -1, -1)) for t in types]

    call = mlir.custom_call(
        target,
        result_types=list(result_types),
        operands=list(operands),
        backend_config=attributes,
        api_version=4,
        operand_layouts=row_major(operand.type for operand in operands),
        result_layouts=row_major(result_types),
        extra_attributes=extra_attributes,
    )
    return list(call.results)
