"""The modules that know JAX: primitives and their rules, their lowering, and what `import jaxcoll`
sets up.

A call goes through `api` (arguments), `primitives` (types and batching), `autodiff` and `lowering`,
which emits the custom call; `install` lowers lax's own collectives the same way. `compat` alone
touches what JAX does not promise to keep. The entry points are `api` and `install`; `startup` is
what has to happen before the first back end starts.
"""
