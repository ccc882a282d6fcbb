"""The only importer of the extension module, so that a missing build is explained in one place."""

import pkgutil
from typing import Any

import jaxcoll
from jaxcoll import _environment, _log

# `python -m ...` inside a checkout imports the checkout's jaxcoll, while `pip install .` has put
# the extension module into site-packages: look in every jaxcoll on the path, the first one first.
jaxcoll.__path__ = pkgutil.extend_path(jaxcoll.__path__, "jaxcoll")

try:
    import jaxcoll._jaxcoll as native
except ImportError as error:  # pragma: no cover - only in a broken installation
    raise ImportError(
        "jaxcoll's extension module is missing or was built for another Python; "
        "reinstall with `pip install --force-reinstall .`"
    ) from error


def _configure(settings: dict[str, Any]) -> None:
    native.configure(**settings)
    _log.follow(native, settings["log"])


# Before anything can use the engine, in ranks without JAX as well.
_environment.tell(_configure)

cuda: Any = native  # names that only a build with GPU kernels has: see native.cuda_built

__all__ = ["cuda", "native"]
