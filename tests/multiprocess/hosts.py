"""Several hosts on one machine: network namespaces joined by switches, for the tests of tcp.

    with Network(hosts=2, interfaces=["eth0", "eth1"]) as network:
        network.shape("eth0", "tbf rate 100mbit burst 64kb latency 50ms")
        with Job(script, **network.layout(processes_per_host=2)) as job:
            network.unplug(1, "eth0")
            ...

A host is a process that waits for the end of its input, in namespaces of its own for the network,
the host name and the mounts (it has its own /etc/hosts); the switches, one for each interface, are
bridges in one more such namespace. Namespaces have no names and no files, so nothing has to be
swept up: they and all that is in them last as long as the processes inside, whose input ends with
the test, even one that is killed. Root is not needed where users may make user namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROGRAMS = {"ip": "iproute2", "tc": "iproute2"} | dict.fromkeys(
    ("unshare", "nsenter", "setpriv", "mount"), "util-linux"
)
_HOLD = 'hostname "$1" && mount --bind "$2" /etc/hosts && ip link set lo up && echo up && exec cat'


class NotPermitted(Exception):
    """Why this machine cannot play several hosts: the reason of a test's skip."""


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


class _Host:
    """The namespaces of one host, kept by a process. `into`: another host's user namespace."""

    def __init__(self, name: str, hosts_file: str, into: _Host | None = None) -> None:
        self.name = name
        self._user: list[str] = []  # options of nsenter
        if os.geteuid() != 0:
            self._user = ["--user", "--preserve-credentials"]
        prefix, options = [], []
        if self._user and into is None:
            options = ["--user", "--map-root-user"]
        elif self._user and into is not None:
            prefix = ["nsenter", "--target", str(into.pid), *self._user]
        hold = ["sh", "-c", _HOLD, "hold", name, hosts_file]
        self._holder = subprocess.Popen(
            [*prefix, "unshare", *options, "--net", "--uts", "--mount", *hold],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        if (said := self._holder.stdout.readline()) != "up\n":
            self.close()
            raise NotPermitted(f"this machine does not let us make network namespaces: {said}")

    @property
    def pid(self) -> int:
        """The process that keeps the namespaces."""
        return self._holder.pid

    def command(self, *command: str) -> list[str]:
        """`command` on this host; it is killed when its parent ends."""
        inside = ["nsenter", "--target", str(self.pid), *self._user, "--net", "--uts", "--mount"]
        # The parent process may have ended before the signal was asked for.
        unless_orphan = ["sh", "-c", '[ "$PPID" != 1 ] && exec "$@"', "sh"]
        return [*inside, "setpriv", "--pdeathsig", "KILL", *unless_orphan, *command]

    def run(self, *command: str) -> str:
        """Runs `command` on this host. Raises: RuntimeError if it fails."""
        return _run(self.command(*command))

    def close(self) -> None:
        for pipe in (self._holder.stdin, self._holder.stdout):
            assert pipe is not None
            pipe.close()
        self._holder.kill()
        self._holder.wait()


class Network:
    """`hosts` hosts, each with every one of `interfaces`, and one switch for each of those.

    family: AF_INET or AF_INET6; there are addresses of no other one, except on loopback.

    Raises: NotPermitted with the reason if this machine has not what it takes.
    """

    def __init__(
        self,
        hosts: int = 2,
        interfaces: Sequence[str] = ("eth0",),
        family: socket.AddressFamily = socket.AF_INET,
    ) -> None:
        for program, package in _PROGRAMS.items():
            if shutil.which(program) is None:
                raise NotPermitted(f"needs {program}, of the package {package}")
        self.interfaces = list(interfaces)
        self._family = family
        self._stack = contextlib.ExitStack()
        try:
            self._build(hosts)
        except BaseException:
            self.close()
            raise

    def _build(self, count: int) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        names = [f"host{i}" for i in range(count)]
        lines = [f"{self.address(i)} {name}\n" for i, name in enumerate(names)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n" + "".join(lines))
        self._switches = _Host("switches", str(folder / "hosts"))
        self._stack.callback(self._switches.close)
        self.hosts: list[_Host] = []
        for name in names:
            self.hosts.append(_Host(name, str(folder / "hosts"), self._switches))
            self._stack.callback(self.hosts[-1].close)
        for interface in self.interfaces:
            self._try("bridges", "ip", "link", "add", interface, "type", "bridge")
            self._switches.run("ip", "link", "set", interface, "up")
            for i, host in enumerate(self.hosts):
                self._connect(i, host, interface)

    def _connect(self, index: int, host: _Host, interface: str) -> None:
        port = self._port(index, interface)
        peer = ["type", "veth", "peer", "name", interface, "netns", str(host.pid)]
        self._try("veth", "ip", "link", "add", port, *peer)
        address = self.address(index, interface)
        if self._family == socket.AF_INET6:
            where = ["add", f"{address}/64", "dev", interface, "nodad"]
        else:
            where = ["add", f"{address}/24", "dev", interface]
        try:
            host.run("ip", "address", *where)
        except RuntimeError as error:
            raise NotPermitted(f"no addresses of {self._family.name}: {error}") from None
        host.run("ip", "link", "set", interface, "up")
        self._switches.run("ip", "link", "set", port, "up")
        self.plug(index, interface)

    def _try(self, what: str, *command: str) -> None:
        try:
            self._switches.run(*command)
        except RuntimeError as error:
            raise NotPermitted(f"no {what} in this kernel: {error}") from None

    def _port(self, host: int, interface: str) -> str:
        return f"{interface}-h{host}"

    def address(self, host: int, interface: str = "") -> str:
        """The address of a host on the network of an interface, the first by default."""
        number = self.interfaces.index(interface) if interface else 0
        if self._family == socket.AF_INET6:
            return f"fd77:{number + 1:x}::{host + 1:x}"
        return f"10.77.{number}.{host + 1}"

    def unplug(self, host: int, interface: str) -> None:
        """From now on the switch drops what comes from and goes to the host, which sees nothing."""
        self._switches.run("ip", "link", "set", self._port(host, interface), "nomaster")

    def plug(self, host: int, interface: str) -> None:
        """Undoes `unplug`."""
        port = self._port(host, interface)
        self._switches.run("ip", "link", "set", port, "master", interface)

    def down(self, host: int, interface: str) -> None:
        """Turns the host's interface off: its kernel knows, its peers do not."""
        self.hosts[host].run("ip", "link", "set", interface, "down")

    def shape(self, interface: str, discipline: str) -> None:
        """Queues what every host sends there as `tc` says, e.g. "tbf rate 100mbit ...".

        Raises: NotPermitted if this kernel has no such discipline.
        """
        for host in self.hosts:
            self._queue(host, interface, discipline)

    def shape_host(self, index: int, interface: str, discipline: str) -> None:
        """The same for one host's cable, both ways: what it sends there and what it gets."""
        self._queue(self.hosts[index], interface, discipline)
        self._queue(self._switches, self._port(index, interface), discipline)

    def _queue(self, host: _Host, device: str, discipline: str) -> None:
        command = ["tc", "qdisc", "replace", "dev", device, "root", *discipline.split()]
        try:
            host.run(*command)
        except RuntimeError as error:
            what = discipline.split()[0]
            raise NotPermitted(f"no {what} in this kernel: {error}") from None

    def sent_bytes(self, host: int, interface: str) -> int:
        """The bytes that a host has sent there so far."""
        path = f"/proc/{self.hosts[host].pid}/net/dev"
        for line in Path(path).read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == interface:
                return int(figures.split()[8])
        raise AssertionError(f"no {interface} in {path}")

    def layout(self, processes_per_host: int, interface: str = "") -> dict[str, Any]:
        """Arguments of `Job`: ranks host by host, JAX's coordinator at the first host's address on
        the network of `interface`, the first by default."""
        enter = [host.command() for host in self.hosts for _ in range(processes_per_host)]
        return {"processes": len(enter), "enter": enter, "address": self.address(0, interface)}

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the hosts, whose interfaces go with them."""
        self._stack.close()
