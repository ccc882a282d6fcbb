"""The hook that JAX calls when it creates its back ends. It announces this process to the others of
the job, and with JAXCOLL_INSTALL=1 installs jaxcoll in a program that does not import it.

JAX initialises every module in `jax_plugins`, and those of the entry points of that name, after
`jax.distributed.initialize` and before the first device can be used. There is no back end here.
Without the variable nothing happens in a program that has not imported jaxcoll.
"""

import os
import sys


def initialize() -> None:
    """Called by JAX, once."""
    if os.environ.get("JAXCOLL_INSTALL", "0") not in ("", "0"):
        _install()
    startup = sys.modules.get("jaxcoll._jax.startup")
    if getattr(startup, "started", False):  # else `import jaxcoll` has not come so far, and will
        sys.modules["jaxcoll._job.presence"].announce()


def _install() -> None:
    """As the program would, before it compiles anything.

    A job that asks for jaxcoll does not run without it: JAX would log an exception and go on.
    """
    import importlib

    try:
        jaxcoll = importlib.import_module("jaxcoll")
        jaxcoll.install()
    except Exception as error:
        print(f"JAXCOLL_INSTALL: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)
