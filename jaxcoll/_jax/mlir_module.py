"""Modules on their way from JAX to XLA: attributes, calls and meshes in them."""

from __future__ import annotations

from typing import Any

from jaxcoll._jax.compat import dictionary_entries, ir, sdy


def has_custom_call(module: ir.Module, target: str) -> bool:
    """Whether a module calls a target whose name begins so."""
    found = False

    def look(op: Any) -> Any:
        nonlocal found
        if op.name == "stablehlo.custom_call":
            name = ir.StringAttr(op.attributes["call_target_name"]).value
            found = name.startswith(target)
        return ir.WalkResult.INTERRUPT if found else ir.WalkResult.ADVANCE

    module.operation.walk(look)
    return found


_FRONTEND_ATTRIBUTES = "mhlo.frontend_attributes"


def set_frontend_attribute(module: ir.Module, name: str, value: str | None) -> None:
    """Sets an attribute of a module that XLA carries along; None removes it."""
    with module.context:
        attributes = module.operation.attributes
        entries = {}
        if _FRONTEND_ATTRIBUTES in attributes:
            entries = dictionary_entries(attributes[_FRONTEND_ATTRIBUTES])
        if value is not None:
            entries[name] = ir.StringAttr.get(value)
        elif entries.pop(name, None) is None:
            return
        attributes[_FRONTEND_ATTRIBUTES] = ir.DictAttr.get(entries)


def meshes_of(module: ir.Module) -> list[tuple[dict[str, int], list[int]]]:
    """The meshes that a module names: sizes of their axes, and their logical ids, [] in order."""
    meshes = []
    for op in module.body.operations:
        if op.operation.name == "sdy.mesh":
            mesh = sdy.MeshAttr(op.attributes["mesh"])
            axes = [sdy.MeshAxisAttr(axis) for axis in mesh.axes]
            meshes.append(({axis.name: axis.size for axis in axes}, list(mesh.device_ids)))
    return meshes
