"""The set-up that `import jaxcoll` does. It starts no back end: `jax.distributed.initialize` may
follow.

Importing this module does it, once. `lowering` imports it, so that no collective can be lowered in
a process that has not been set up, whichever module was imported first.
"""

from __future__ import annotations

import atexit
import os
import re
import warnings

from jaxcoll import _environment
from jaxcoll._errors import SettingError
from jaxcoll._jax import compat, job_log, memory
from jaxcoll._job import presence, secret
from jaxcoll._native import native

# XLA's CPU client launches and runs programs on one pool of max(cores, devices) threads and blocks
# a thread for every device of a running launch. With 32 launches in flight its next launch blocks
# threads of that pool, too, and the running one is starved of the last it needs: eight devices on
# two cores hang for good, with lax's collectives as with ours. It takes devices * (1 + n) threads
# for n Python threads that dispatch; idle ones cost nothing but address space.
_DISPATCH_THREADS_MIN = 64
_DISPATCH_THREADS_PER_DEVICE = 4


def _requested_devices() -> int:
    """CPU devices asked for so far by XLA_FLAGS or jax_num_cpu_devices."""
    flag = re.findall(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    return max(compat.num_cpu_devices(), int(flag[-1]) if flag else 1)


def _widen_dispatch_pool() -> None:
    if "PJRT_NPROC" in os.environ or "NPROC" in os.environ:
        return  # XLA reads both; whoever set one knows better
    threads = max(
        os.cpu_count() or 1,
        _DISPATCH_THREADS_MIN,
        _DISPATCH_THREADS_PER_DEVICE * _requested_devices(),
    )
    _environment.add("PJRT_NPROC", str(threads))


_environment.check()
if _trouble := native.log_open():
    raise SettingError(f"JAXCOLL_LOG_FILE cannot be used: {_trouble}")
if _trouble := _environment.trouble_with_isa(
    _environment.values()["JAXCOLL_ISA"], native.kernel_isas()
):
    warnings.warn(_trouble, stacklevel=2)
memory.keep(_environment.values()["JAXCOLL_KEEP_MEMORY"] or "0")
native.watch_interrupts()
secret.take()
_widen_dispatch_pool()
for _platform, _registration in native.ffi_registrations().items():
    compat.register_ffi(_platform, **_registration)
# Exit handlers run in reverse order of registration, and JAX registered its own on import: calls
# in flight are cancelled while the back end that waits for them still exists.
atexit.register(native.shutdown)
started = True  # from here on JAX's plugin may announce this process, if it was too early for us
job_log.process()
presence.announce()
