"""Runs a script in a Python of its own with its own number of CPU devices."""

import os
import subprocess
import textwrap

from support import warm_python, xla_flags


def run_python(
    script: str,
    *arguments: str,
    device_count: int = 8,
    timeout_s: float = 120.0,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `script`; it sees `arguments` as sys.argv[1:]. Fails on a non-zero exit status."""
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.with_devices(device_count),
        **(environment or {}),
    }
    completed = warm_python.run(
        ["-c", textwrap.dedent(script), *arguments],
        variables,
        timeout_s=timeout_s,
        warnings_are_errors=True,
    )
    assert completed.returncode == 0, (
        f"exit status {completed.returncode}\n{completed.stdout}\n{completed.stderr}"
    )
    return completed
