"""The engine's functions for the bootstrap, which make links from connected descriptors.

They pass the results of a handshake, and a description of the link.
"""

from __future__ import annotations

from typing import Any, Protocol

from jaxcoll._errors import LinkError
from jaxcoll._job.connection import Connection
from jaxcoll._job.handshake import LinkKey
from jaxcoll._job.host import Record, address_text


class RdmaHalf(Protocol):
    """This process's side of an rdma link, which becomes one with the peer's offer."""

    def offer(self) -> bytes:
        """The offer for the peer, and for nobody else: its holder can write to this process."""


class Native(Protocol):
    """The functions that the engine offers. The bootstrap's thread calls them; they must not call
    `close` back."""

    def comm_bell(self) -> int:
        """The eventfd that wakes this process; it stays the engine's."""

    def comm_make_segment(self) -> int:
        """A fresh memfd for one link; the caller's."""

    def comm_add_shm_link(
        self, peer: int, sock: int, own_segment: int, peer_segment: int, peer_bell: int, text: str
    ) -> None:
        """Takes over all descriptors."""

    def comm_no_crypto(self) -> str:
        """Why this process can authenticate nothing, so neither tcp nor rdma; empty if it can."""

    def comm_add_tcp_link(
        self,
        peer: int,
        sockets: list[int],
        text: str,
        link_key: bytes,
        client: bool,
        encrypt: bool,
    ) -> None:
        """Takes over all descriptors; both sides list them in the same order. Traffic over them is
        authenticated, and encrypted if both sides agree on it."""

    def comm_rdma_fabrics(self) -> list[str]:
        """The fabrics of the RDMA ports that this process can use. Raises: ValueError, why none."""

    def comm_prepare_rdma(self, client_offer: bytes) -> RdmaHalf:
        """For the server the client's offer, for the client nothing. Raises: ValueError."""

    def comm_add_rdma_link(
        self,
        peer: int,
        half: Any,
        sock: int,
        offer: bytes,
        text: str,
        link_key: bytes,
        client: bool,
        encrypt: bool,
    ) -> None:
        """Takes over the socket and uses up what comm_prepare_rdma has returned; `offer` is the
        peer's. Only the socket is protected as that of a tcp link."""

    def comm_link_failed(self, peer: int, reason: str) -> None:
        """There will be no link to that peer."""

    def comm_refuse(self, reason: str) -> None:
        """Ends all links."""


# --- making links ---------------------------------------------------------------------------------


def check_crypto(native: Native, who: str, transport: str) -> None:
    """Raises: LinkError if the process cannot authenticate what it sends over `transport`."""
    why = "" if transport == "shm" else native.comm_no_crypto()
    if why:
        raise LinkError(f"{who} cannot use {transport}, which authenticates what it sends: {why}")


def prepare_rdma(native: Native, client_offer: bytes) -> RdmaHalf:
    """This process's half. Raises: LinkError."""
    try:
        return native.comm_prepare_rdma(client_offer)
    except ValueError as error:
        raise LinkError(f"{error}. JAXCOLL_TRANSPORT=shm,tcp does without rdma") from None


def add_rdma_link(
    native: Native,
    peer: Record,
    connection: Connection,
    half: RdmaHalf,
    offer: bytes,
    key: LinkKey,
    *,
    client: bool,
) -> None:
    text = f"rdma to {peer}"
    native.comm_add_rdma_link(
        peer.index, half, connection.detach(), offer, text, key.key, client, key.encrypt
    )


def add_shm_link(native: Native, peer: Record, connection: Connection, segment: int) -> None:
    peer_segment, peer_bell = connection.take_descriptors()
    native.comm_add_shm_link(
        peer.index, connection.detach(), segment, peer_segment, peer_bell, f"shm to {peer}"
    )


def add_tcp_link(
    native: Native, peer: Record, connections: list[Connection], key: LinkKey, *, client: bool
) -> None:
    first = connections[0].socket
    ends = map(address_text, (first.getsockname(), first.getpeername()))
    how = "encrypted" if key.encrypt else "authenticated"
    text = f"tcp to {peer}, {how}, {len(connections)} sockets, {' to '.join(ends)}"
    sockets = [connection.detach() for connection in connections]
    native.comm_add_tcp_link(peer.index, sockets, text, key.key, client, key.encrypt)
