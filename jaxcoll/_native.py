"""The only importer of the extension module, so that a missing build is explained in one place."""

try:
    from jaxcoll import _jaxcoll as native
except ImportError as error:  # pragma: no cover - only in a broken installation
    raise ImportError(
        "jaxcoll's extension module is missing or was built for another Python; "
        "reinstall with `pip install --force-reinstall .`"
    ) from error

__all__ = ["native"]
