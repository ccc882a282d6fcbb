"""The record that a process gives the others about itself, and which transport two processes
use."""

from __future__ import annotations

import array
import fcntl
import functools
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxcoll import _files
from jaxcoll._errors import FileError
from jaxcoll._errors import LinkError as LinkError
from jaxcoll._text import printable

TRANSPORTS = ("shm", "rdma", "tcp")  # the best first
RECORD_BYTES_MAX = 64 << 10
REASON_CHARACTERS_MAX = 500
TEXT_CHARACTERS_MAX = 1000  # of one text in a record
ADDRESSES_MAX = 256

_SIOCGIFCONF, _SIOCGIFFLAGS = 0x8912, 0x8913
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFREQ_BYTES, _IFNAME_BYTES = 40, 16
_IFA_F_UNUSABLE = 0x08 | 0x40  # duplicate, tentative


_log = logging.getLogger("jaxcoll.host")

# --- this host ----------------------------------------------------------------------------------


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT_ID_BYTES_MAX = 256


@functools.lru_cache(maxsize=1)
def _machine() -> tuple[str, str]:
    """The same in all processes of this machine, and why it is not, where it cannot be."""
    try:
        boot_id = _files.read_text(BOOT_ID, _BOOT_ID_BYTES_MAX, regular=True).strip()
        if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", boot_id):
            raise FileError(f"{BOOT_ID} holds no boot id")
        return f"{boot_id}/{os.stat('/proc/self/ns/net').st_ino}", ""
    except OSError as error:  # unknown: better a slower transport than a wrong one
        return secrets.token_hex(16), str(error)


def machine_identity() -> str:
    """The running kernel and network namespace: what loopback and abstract sockets span."""
    return _machine()[0]


def why_unknown() -> str:
    """Why the processes on this host cannot be determined; empty where they can."""
    return _machine()[1]


def hostname() -> str:
    """This host's name, for messages, which must not fail."""
    try:
        return socket.gethostname()
    except Exception:
        return "an unknown host"


@functools.lru_cache(maxsize=1)  # one warning per process
def identity() -> str:
    """The identity that all processes of this host share, where JAXCOLL_HOST_ID does not give
    one."""
    machine, trouble = _machine()
    if trouble:
        _log.warning(
            "jaxcoll cannot tell which processes are on this host (%s): they count as on hosts of "
            "their own, without shm. Mount /proc as usual, or set JAXCOLL_HOST_ID to one text for "
            "all processes of a host",
            trouble,
        )
    return f"{machine}/{socket.gethostname()}"


@dataclass(frozen=True)
class Interface:
    """A network interface that is up, and its addresses in the order of the kernel."""

    name: str
    loopback: bool
    addresses: tuple[str, ...]


def interfaces() -> list[Interface]:
    """Those that are up and have an address, loopback last. Link-local IPv6 addresses, which mean
    nothing on another host, are left out."""
    found: dict[str, list[str]] = {}
    flags: dict[str, int] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name, address in _ipv4_addresses(control):
            found.setdefault(name, []).append(address)
        for name, address in _ipv6_addresses():
            found.setdefault(name, []).append(address)
        for name in found:
            try:
                answer = fcntl.ioctl(
                    control, _SIOCGIFFLAGS, name.encode().ljust(_IFREQ_BYTES, b"\0")
                )
                flags[name] = struct.unpack_from("H", answer, _IFNAME_BYTES)[0]
            except OSError:  # it went away
                flags[name] = 0
    listed = [
        Interface(name, bool(flags[name] & _IFF_LOOPBACK), tuple(addresses))
        for name, addresses in found.items()
        if flags[name] & _IFF_UP
    ]
    return sorted(listed, key=lambda interface: interface.loopback)


def _ipv4_addresses(control: socket.socket) -> Iterable[tuple[str, str]]:
    size = 4096
    while True:
        buffer = array.array("B", bytes(size))
        request = struct.pack("i4xP", size, buffer.buffer_info()[0])
        used = struct.unpack_from("i", fcntl.ioctl(control, _SIOCGIFCONF, request))[0]
        if used + _IFREQ_BYTES <= size:
            break
        size *= 2  # the kernel fills what there is room for
    for start in range(0, used, _IFREQ_BYTES):
        request = buffer[start : start + _IFREQ_BYTES].tobytes()
        name = request[:_IFNAME_BYTES].split(b"\0")[0].decode()
        address = socket.inet_ntoa(request[_IFNAME_BYTES + 4 : _IFNAME_BYTES + 8])
        yield name.split(":")[0], address  # eth0:1 is an alias of eth0


def _ipv6_addresses() -> Iterable[tuple[str, str]]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:  # a kernel without IPv6
        return
    for line in lines:
        digits, _, _, _, flags, name = line.split()
        address = ipaddress.IPv6Address(bytes.fromhex(digits))
        if not address.is_link_local and not int(flags, 16) & _IFA_F_UNUSABLE:
            yield name, str(address)


def _kept(
    listed: Sequence[Interface], chosen: tuple[bool, Sequence[str]] | None
) -> list[Interface]:
    excluded, prefixes = chosen or (True, ())
    return [i for i in listed if i.name.startswith(tuple(prefixes)) != excluded]


def describe_addresses(
    listed: Sequence[Interface], chosen: tuple[bool, Sequence[str]] | None
) -> str:
    """For people: what `choose_addresses` chooses and leaves out. Raises: LinkError, as it does."""
    choose_addresses(listed, chosen)
    kept = _kept(listed, chosen)
    named = [f"{i.name} ({', '.join(i.addresses)})" for i in kept]
    without = ", ".join(i.name for i in listed if i not in kept)
    ways = f"can be reached at {', '.join(named) or 'no address'}; loopback serves this machine"
    return ways + (f"; left out by JAXCOLL_IFNAME: {without}" if without else "")


def choose_addresses(
    listed: Sequence[Interface], chosen: tuple[bool, Sequence[str]] | None
) -> list[str]:
    """The addresses to be reached at, best first.

    Args:
      chosen: JAXCOLL_IFNAME: whether its names are excluded, and prefixes of interface names.

    Raises: LinkError if `chosen` leaves no interface.
    """
    kept = _kept(listed, chosen)
    if chosen and not kept:
        excluded, prefixes = chosen
        there = ", ".join(f"{i.name} ({', '.join(i.addresses)})" for i in listed) or "none"
        asked = f"JAXCOLL_IFNAME={'^' if excluded else ''}{','.join(prefixes)}"
        raise LinkError(f"{asked} leaves no network interface; those that are up: {there}")
    return [address for interface in kept for address in interface.addresses]


def addresses_for(where: str, chosen: Sequence[str]) -> list[str]:
    """Those of `choose_addresses` that serve peers of this machine ("near") or others ("far").

    Raises: LinkError if there is none.
    """
    loopback = [a for a in chosen if ipaddress.ip_address(a).is_loopback]
    if where == "near" and chosen:
        return loopback or list(chosen)
    if others := [a for a in chosen if a not in loopback]:
        return others
    raise LinkError("it has no address but loopback" if chosen else "it has no address")


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def address_text(address: Sequence[Any]) -> str:
    """As people write it: 192.0.2.1:80, [fd00::1]:80."""
    name, port = address[:2]
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


# --- records ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """The facts that others need to link to a process; travels through the store as JSON."""

    version: str  # of jaxcoll
    index: int
    host: str  # processes with equal ones may share memory
    machine: str  # processes with equal ones reach each other's loopback
    hostname: str  # for people
    pid: int
    uid: int
    transports: tuple[str, ...]
    unix_name: str  # abstract, without its leading NUL
    fabrics: tuple[
        str, ...
    ] = ()  # that its RDMA ports are of; processes with a common one may use rdma
    no_rdma: str = ""  # why it has none

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, text: bytes, index: int) -> Record:
        """Raises: LinkError if this is not the record of process `index`; it may be anything."""
        try:
            if len(text) > RECORD_BYTES_MAX:
                raise ValueError(f"{len(text)} bytes")
            fields = json.loads(text)
            lists = {name: tuple(fields[name]) for name in ("transports", "fabrics")}
            record = cls(**{**fields, **lists})
            record._check()
            if record.index != index:
                raise ValueError(f"it is that of process {record.index}")
        except _UNREADABLE as error:
            raise _unreadable(index, error) from None
        return record

    def _check(self) -> None:
        texts = [self.version, self.host, self.machine, self.hostname, self.unix_name, self.no_rdma]
        for text in [*texts, *self.transports, *self.fabrics]:
            # Printable text can be shown to people and be encoded.
            if not isinstance(text, str) or len(text) > TEXT_CHARACTERS_MAX:
                raise ValueError(f"{text!r:.40} is not text")
            if not text.isprintable():
                raise ValueError(f"{text!a:.40} cannot be printed")
        for number in (self.index, self.pid, self.uid):
            if type(number) is not int:
                raise ValueError(f"{number!r:.40} is not a number")

    def __str__(self) -> str:
        return f"process {self.index} (pid {self.pid} on {self.hostname})"


def addresses_to_bytes(addresses: Sequence[tuple[str, int]]) -> bytes:
    """The record that a process publishes once it listens for tcp."""
    return json.dumps({"addresses": addresses}).encode()


def no_addresses_to_bytes(reason: str) -> bytes:
    """The same if it cannot."""
    return json.dumps({"reason": reason[:REASON_CHARACTERS_MAX]}).encode()


def addresses_from_bytes(text: bytes, index: int) -> list[tuple[str, int]]:
    """Raises: LinkError if there are none, or not of process `index`; it may be anything."""
    try:
        if len(text) > RECORD_BYTES_MAX:
            raise ValueError(f"{len(text)} bytes")
        fields = json.loads(text)
        reason = fields.get("reason")
        addresses = [
            (str(ipaddress.ip_address(str(address))), port)
            for address, port in ([] if reason else fields["addresses"])
        ]
        if not reason and not 0 < len(addresses) <= ADDRESSES_MAX:
            raise ValueError(f"{len(addresses)} addresses")
        for _, port in addresses:
            if type(port) is not int or not 0 < port < 1 << 16:
                raise ValueError(f"{port!r:.40} is not a port")
    except _UNREADABLE as error:
        raise _unreadable(index, error) from None
    if reason:
        reason = printable(str(reason))
        raise LinkError(f"process {index} cannot be reached: {reason[:REASON_CHARACTERS_MAX]}")
    return addresses


_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def _unreadable(index: int, error: Exception) -> LinkError:
    return LinkError(
        f"what process {index} has published cannot be read ({error}); does every process "
        "run the same version of jaxcoll?"
    )


def choose_transport(one: Record, other: Record) -> str:
    """The best transport between two processes; both ends come to the same answer.

    Raises: LinkError saying what to change if there is none.
    """
    one, other = sorted((one, other), key=lambda record: record.index)
    if one.version != other.version:
        raise LinkError(
            f"{one} runs jaxcoll {one.version}, {other} runs jaxcoll {other.version}; install the "
            "same version for every process"
        )
    possible = {"tcp"}
    if one.host == other.host and one.uid == other.uid:
        possible.add("shm")
    if set(one.fabrics) & set(other.fabrics):
        possible.add("rdma")
    allowed = set(one.transports) & set(other.transports)
    for transport in TRANSPORTS:
        if transport in possible & allowed:
            return transport
    if one.host != other.host:
        why = "on different hosts (if they share one, see JAXCOLL_HOST_ID)"
    elif one.uid != other.uid:
        why = f"of different users (uid {one.uid} and {other.uid})"
    else:
        why = "on one host"
    could = " or ".join(sorted(possible))
    allows = [f"process {r.index} allows {', '.join(r.transports)}" for r in (one, other)]
    no_rdma = ""
    if "rdma" in allowed - possible:
        no_rdma = "; ".join(
            f"process {r.index} has no rdma: {r.no_rdma}" for r in (one, other) if not r.fabrics
        )
        no_rdma = f" ({no_rdma or 'their RDMA ports are of different fabrics'})"
    raise LinkError(
        f"no transport joins {one} to {other}: they are {why}, which takes {could}, but "
        f"{' and '.join(allows)}{no_rdma}. Unset JAXCOLL_TRANSPORT, or add {could} to it on both"
    )


def check_transport(own: Record, peer: Record, could_be: Sequence[str]) -> None:
    """Whether `peer` has come by what both would have chosen.

    Each transport checks a peer in its own way, shm by its user: a peer must not pick the way on
    which it is checked least.

    Args:
      could_be: the transports that the connection would do for.

    Raises: LinkError, for the peer.
    """
    chosen = choose_transport(own, peer)
    if chosen not in could_be:
        raise LinkError(f"{peer} came by {could_be[0]}, but {chosen} is what joins it to {own}")
