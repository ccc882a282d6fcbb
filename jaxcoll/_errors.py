"""Exceptions raised while tracing. At run time JAX raises `jax.errors.JaxRuntimeError`."""


class JaxcollError(Exception):
    """Base class of the errors that jaxcoll itself raises."""


class UnsupportedError(JaxcollError, NotImplementedError):
    """A platform, process layout or combination of features that jaxcoll does not serve."""


class UnsupportedDtypeError(JaxcollError, TypeError):
    """A reduce op that the dtype lacks; names the ops it has."""


class UnknownReduceOpError(JaxcollError, ValueError):
    """A reduce op that does not exist; names those that do."""


class UnknownAlgorithmError(JaxcollError, ValueError):
    """An algorithm that the collective does not have; names those it has."""


class WorldSizeError(JaxcollError, ValueError):
    """An algorithm or a schedule that cannot serve this many ranks; names the sizes it takes."""


class AxisIndexGroupsError(JaxcollError, ValueError):
    """axis_index_groups that are ragged or do not cover the axis exactly once."""


class PermutationError(JaxcollError, ValueError):
    """A permutation with a repeated source or destination, or one out of range."""


class TuningError(JaxcollError, RuntimeError):
    """A tuning table that cannot be used, or not by all processes alike; names the files."""
