"""The modules that depend on JAX: primitives and their rules, their lowering, and the set-up by
`import jaxcoll`.

A call goes through `api` (arguments), `primitives` (types and batching), `autodiff` and `lowering`,
which emits the custom call; `install` lowers lax's own collectives the same way. Only `compat` uses
private JAX APIs. The entry points are `api` and `install`; `startup` does the set-up that must
precede the first back end.
"""
