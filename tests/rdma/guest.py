"""Runs a command in a throw-away Linux guest that has two RDMA devices and no hardware for them.

    python tests/rdma/guest.py [--writable DIR] COMMAND...

Most machines that build and test have neither an RDMA NIC nor a kernel with soft-RoCE. So a Debian
kernel is booted under QEMU. The guest's root is this machine's file system, read-only over 9p with
a tmpfs over it: the same programs, libraries and paths, and what the guest writes is dropped, but
for the directories given as writable. COMMAND runs as root in the current directory with the
current environment; rxe0 and rxe1 are soft-RoCE devices on rail0 (10.77.0.1) and rail1 (10.77.1.1).

A device reaches its own queue pairs, from any process; rxe0 does not reach rxe1. Without KVM all is
emulated: its figures do not measure performance.

Debian, once: apt-get install --no-install-recommends qemu-system-x86 busybox-static kmod iproute2
ibverbs-providers. The kernel's package is downloaded and unpacked, not installed.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TOOLS = ("qemu-system-x86_64", "busybox", "depmod", "modprobe", "ip", "rdma", "dpkg", "apt-get")
PACKAGES = "qemu-system-x86 busybox-static kmod iproute2 ibverbs-providers"
# The modules that the first stage needs to reach this machine's files; the rest is loaded from
# there.
FIRST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
MEMORY_MIB = 2048
SHARE = "/run/jaxcoll-guest"  # in the guest: this run's directory

_MOUNT = "trans=virtio,version=9p2000.L,msize=512000"

# The initramfs: loads modules, puts the root together, goes there.
_INIT = f"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir /proc /dev /lower /upper /root
mount -t proc none /proc
mount -t devtmpfs none /dev
for m in $(cat /modules/order); do insmod /modules/$m; done
mount -t 9p -o {_MOUNT},ro,cache=loose lower /lower || poweroff -f
mount -t tmpfs -o mode=755 none /upper
mkdir /upper/changes /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work none /root \
    || poweroff -f
mkdir -p /root/proc /root/sys /root/dev /root/run
mount -t proc none /root/proc
mount -t sysfs none /root/sys
mount -t devtmpfs none /root/dev
mkdir -p /root/dev/shm
mount -t tmpfs none /root/dev/shm
mount -t tmpfs none /root/run
mkdir {"/root" + SHARE}
mount -t 9p -o {_MOUNT},cache=none share {"/root" + SHARE} || poweroff -f
umount /proc
exec switch_root /root {SHARE}/second
"""

# On this machine's files: devices, then the command, whose status goes to a file.
_SECOND = f"""#!/bin/bash
exec > {SHARE}/setup.log 2>&1
set -x
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
trap '{SHARE}/busybox poweroff -f' EXIT
i=0
while read -r folder; do
    mount -t 9p -o {_MOUNT},cache=none writable$i "$folder"
    i=$((i + 1))
done < {SHARE}/writable
mkdir -p /lib/modules/$(uname -r)
mount --bind "$(cat {SHARE}/modules)" /lib/modules/$(uname -r)
hostname rdma-guest
echo "127.0.0.1 rdma-guest" >> /etc/hosts  # JAX looks itself up
ip link set lo up
modprobe rdma_rxe
modprobe ib_uverbs
modprobe dummy numdummies=0
for i in 0 1; do
    ip link add rail$i type dummy
    ip link set rail$i mtu 9000 up
    ip addr add 10.77.$i.1/24 dev rail$i
    rdma link add rxe$i type rxe netdev rail$i
done
rdma link show
(bash {SHARE}/command > {SHARE}/output 2>&1 < /dev/null; echo $? > {SHARE}/status)
"""


def why_not() -> str:
    """Why no guest can be had on this machine; empty if one can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the guest is for Linux on x86-64"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: apt-get install {PACKAGES})"
    return ""


def run(
    command: Sequence[str],
    *,
    writable: Sequence[Path] = (),
    environment: Mapping[str, str] = os.environ,
    timeout_s: float = 600,
) -> tuple[int, str]:
    """Its exit status and what it printed.

    Args:
      writable: directories that the guest may write to; they exist.
      environment: of the command.
      timeout_s: from the start of the guest's boot.

    Raises: RuntimeError with the guest's log if it does not come up or dies.
    """
    kernel = _prepared_kernel()
    with tempfile.TemporaryDirectory(prefix="jaxcoll-guest-") as name:
        share = Path(name)
        (share / "modules").write_text(f"{_modules(kernel)}\n")
        (share / "writable").write_text("".join(f"{path.resolve()}\n" for path in writable))
        exports = [
            f"export {k}={shlex.quote(v)}" for k, v in environment.items() if k.isidentifier()
        ]
        (share / "command").write_text(
            "\n".join([*exports, f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(command)}"])
        )
        (share / "second").write_text(_SECOND)
        (share / "second").chmod(0o755)
        shutil.copy(_tool("busybox"), share / "busybox")
        trouble = _boot(kernel, share, [path.resolve() for path in writable], timeout_s)
        output = _text(share / "output")
        status = _text(share / "status").strip()
        if status:
            return int(status), output
        logs = [_text(share / log)[-3000:] for log in ("console", "setup.log")]
        raise RuntimeError("\n".join([f"the guest {trouble or 'died'}", *logs, output[-3000:]]))


def _boot(kernel: Path, share: Path, writable: Sequence[Path], timeout_s: float) -> str:
    """Boots and waits for the end; why it ended if not by itself."""
    shared = [("lower", Path("/"), ",readonly=on"), ("share", share, "")]
    shared += [(f"writable{i}", path, "") for i, path in enumerate(writable)]
    hardware = any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd"))
    if hardware and os.access("/dev/kvm", os.W_OK):
        accelerator = ["-accel", "kvm", "-cpu", "host"]
    else:
        accelerator = ["-accel", "tcg,thread=multi", "-cpu", "max"]
    # no_timer_check: an emulated timer on a busy machine does not keep the time that it wants.
    quiet = "quiet panic=-1 no_timer_check mitigations=off nokaslr random.trust_cpu=on"
    command = [
        *(_tool("qemu-system-x86_64"), "-M", "q35", *accelerator),
        *("-smp", str(os.cpu_count() or 1), "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"),
        *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initrd.gz")),
        *("-append", f"console=ttyS0 {quiet}", "-serial", f"file:{share / 'console'}"),
    ]
    for tag, path, option in shared:
        command += [
            "-virtfs",
            f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{option}",
        ]
    with (share / "qemu.log").open("w") as log:
        guest = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            guest.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout_s:g} s"
        finally:
            guest.kill()
            guest.wait()
    return "" if guest.returncode == 0 else f"ended with {_text(share / 'qemu.log')}"


def _prepared_kernel() -> Path:
    """Debian's newest kernel with its modules, and an initramfs; downloaded once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxcoll-guest"
    ready = cache / "kernel"
    if ready.exists():
        return ready
    cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=cache))
    building.chmod(0o755)
    found = _output("apt-cache", "depends", "linux-image-amd64")
    names = [line.split()[-1] for line in found.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise RuntimeError("apt knows no linux-image-amd64; apt-get update first")
    _output("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", names[0], cwd=building)
    (package,) = building.glob("*.deb")
    _output("dpkg", "-x", str(package), "root", cwd=building)
    package.unlink()
    version = _modules(building).name
    _output("depmod", "-b", str(building / "root"), version)
    next((building / "root/boot").glob("vmlinuz-*")).rename(building / "vmlinuz")
    _write_initramfs(building, version)
    try:
        building.rename(ready)
    except OSError:  # somebody else was faster
        shutil.rmtree(building)
    return ready


def _write_initramfs(kernel: Path, version: str) -> None:
    tree = kernel / "initramfs"
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    shutil.copy(_tool("busybox"), tree / "bin/busybox")
    order: list[str] = []
    for module in FIRST_MODULES:
        listed = _output(
            *("modprobe", "-d", str(kernel / "root"), "-S", version, "--show-depends", module)
        )
        for line in listed.splitlines():
            what, *path = line.split()
            if what == "insmod" and Path(path[0]).name not in order:
                order.append(Path(path[0]).name)
                shutil.copy(path[0], tree / "modules")
    (tree / "modules/order").write_text("\n".join(order))
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in [*sorted(tree.rglob("*"))])
    archive = subprocess.run(
        [_tool("busybox"), "cpio", "-o", "-H", "newc"],
        input=names.encode(),
        cwd=tree,
        capture_output=True,
        check=True,
    ).stdout
    (kernel / "initrd.gz").write_bytes(gzip.compress(archive, 1))


def _modules(kernel: Path) -> Path:
    return next((kernel / "root/lib/modules").iterdir())


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _tool(name: str) -> str:
    found = shutil.which(name, path=_path())
    assert found, f"no {name}; see why_not()"
    return found


def _output(tool: str, *arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [_tool(tool), *arguments], cwd=cwd, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{tool} {shlex.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def main() -> int:
    """Runs the command line's command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--writable", type=Path, action="append", default=[])
    parser.add_argument("--timeout-s", type=float, default=600)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 125
    status, output = run(
        arguments.command, writable=arguments.writable, timeout_s=arguments.timeout_s
    )
    print(output, end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
