"""Runs a script in a fresh Python with its own number of CPU devices."""

import os
import subprocess
import sys
import textwrap


def run_python(
    script: str,
    *arguments: str,
    device_count: int = 8,
    timeout_s: float = 120.0,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `script`; it sees `arguments` as sys.argv[1:]. Fails on a non-zero exit status."""
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={device_count}",
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert completed.returncode == 0, (
        f"exit status {completed.returncode}\n{completed.stdout}\n{completed.stderr}"
    )
    return completed
