"""The hook that JAX calls when it makes its back ends: the other processes of the job learn of this
one.

JAX initialises every module in `jax_plugins`, and those of the entry points of that name, after
`jax.distributed.initialize` and before the first device can be used. There is no back end here.
Nothing happens in a program that has not imported jaxcoll.
"""

import sys


def initialize() -> None:
    """Called by JAX, once."""
    startup = sys.modules.get("jaxcoll._jax.startup")
    if getattr(startup, "started", False):  # else `import jaxcoll` has not come so far, and will
        sys.modules["jaxcoll._job.presence"].announce()
