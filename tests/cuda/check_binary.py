"""Checks what nvcc made: code for every architecture, and no spills in the kernels.

    python tests/cuda/check_binary.py NINJA_LOG CUOBJDUMP MODULE

The log is of a build from nothing with -Xptxas=-v.
"""

import re
import subprocess
import sys

MACHINE_CODE, PTX = {"sm_80", "sm_90", "sm_100"}, {"sm_100"}


def kernels_that_spill(log: str) -> tuple[int, list[str]]:
    """How many functions ptxas reported, and those with a stack frame or spills."""
    reported = re.findall(
        r"Function properties for (\S+)\s*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        log,
    )
    return len(reported), [name for name, *bytes_ in reported if any(int(b) for b in bytes_)]


def architectures(cuobjdump: str, module: str, what: str) -> set[str]:
    listed = subprocess.run([cuobjdump, what, module], capture_output=True, text=True, check=True)
    return set(re.findall(r"\.(sm_\w+)\.", listed.stdout))


def main() -> int:
    log_path, cuobjdump, module = sys.argv[1:]
    with open(log_path) as file:
        count, spilling = kernels_that_spill(file.read())
    found = architectures(cuobjdump, module, "--list-elf")
    ptx = architectures(cuobjdump, module, "--list-ptx")
    print(f"machine code {sorted(found)}, PTX {sorted(ptx)}, {count} functions")
    complaints = [f"spills: {name}" for name in spilling]
    if found != MACHINE_CODE or ptx != PTX:
        complaints.append(f"expected machine code {MACHINE_CODE} and PTX {PTX}")
    if count < 51 * len(MACHINE_CODE):  # 27 reductions, 22 interpreters, two that only move
        complaints.append("too few functions in the log: was it a build from nothing?")
    print("\n".join(complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
