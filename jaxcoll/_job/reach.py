"""The addresses at which processes can be reached by tcp. No process listens before a peer needs
tcp.

A job on one host uses only shared memory, so no other socket should be open. But a process knows
another's host only after reading its record. So records contain no address. Each process compares
itself with the first of the job. If the two would use tcp or rdma, it listens and asks the first to
listen, which asks all others. A process that needs a link later asks its peer, if that does not
listen yet. Each process has a pending request at the coordinator that returns when it is asked; it
then publishes its addresses under a second key.

There are two ways in: "near", loopback where JAXCOLL_IFNAME allows it, for processes of this
machine, and "far", the network interfaces. A process that listens far needs no more for near ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable

from jaxcoll._job import host
from jaxcoll._job import listener as _listener
from jaxcoll._job.host import LinkError, Record
from jaxcoll._job.secret import NONE_GIVEN, Secret
from jaxcoll._job.store_thread import StoreThread

SECRET_BYTES = 32

_ASK_AFTER_S = 0.05  # normally the peer listens already
_DIGITS_MAX = 9
_CLOSE_S = 1.0
WATCH_S = 5.0  # how long one request to the coordinator lasts that nothing answers

_log = logging.getLogger("jaxcoll.bootstrap")


def way_to(own: Record, peer: Record) -> str:
    """How `peer` is reached, and reaches this process."""
    return "near" if own.machine == peer.machine else "far"


class TcpReach:
    """This process's tcp listeners, and the addresses of its peers.

    Thread rule: the event loop's thread.

    Args:
      folder: of the keys in the store.
      index, count: of this process, and of processes.
      door: serves incoming connections.
      store, watching: for short calls; for the one that waits, not started yet.
      record_of: reads the record of a process.
    """

    def __init__(
        self,
        folder: str,
        index: int,
        count: int,
        door: _listener.Door,
        store: StoreThread,
        watching: StoreThread,
        secret: Secret | None,
        ifname: tuple[bool, tuple[str, ...]] | None,
        record_of: Callable[[int], Awaitable[Record]],
    ) -> None:
        self._folder = folder
        self._index = index
        self._count = count
        self._door = door
        self._store = store
        self._given = secret
        self._ifname = ifname
        self._record_of = record_of
        self._opened: dict[str, asyncio.Task[None]] = {}
        self._secret: asyncio.Task[bytes] | None = None
        self._watching = watching
        self._watch: asyncio.Task[None] | None = None
        self._compare: asyncio.Task[None] | None = None

    # --- this process ---------------------------------------------------------------------------

    async def secret(self) -> bytes:
        """The secret of handshakes over tcp. Raises: LinkError."""
        if self._secret is None:
            self._secret = asyncio.get_running_loop().create_task(self._find_secret())
        return await asyncio.shield(self._secret)

    async def _find_secret(self) -> bytes:
        if self._given is not None:
            return self._given.key("links")
        key, mine = f"{self._folder}secret", secrets.token_bytes(SECRET_BYTES)
        await self._store.set(key, mine)  # the first value stands
        secret = await self._store.get(key)
        if len(secret) != SECRET_BYTES:
            raise LinkError(f"the job's secret has {len(secret)} bytes")
        if secret == mine:  # of one process
            _log.warning(
                "the secret that processes prove themselves with over tcp and rdma is in "
                "the store of jax.distributed; whoever reaches its coordinator can join this job. "
                "JAXCOLL_SECRET_FILE or JAXCOLL_SECRET_FD prevents that: %s",
                NONE_GIVEN,
            )
        return secret

    async def listen(self, way: str) -> None:
        """Opens this process's listeners that way, once, and publishes where they are.

        Raises: LinkError; waiting peers have been sent the reason.
        """
        if way == "near" and "far" in self._opened:
            way = "far"
        if way not in self._opened:
            self._opened[way] = asyncio.get_running_loop().create_task(self._listen(way))
        await asyncio.shield(self._opened[way])

    async def _listen(self, way: str) -> None:
        try:
            secret = await self.secret()
            chosen = host.choose_addresses(host.interfaces(), self._ifname)
            opened = _listener.listen_tcp(host.addresses_for(way, chosen))
        except (LinkError, OSError) as error:
            await self._publish(way, host.no_addresses_to_bytes(str(error)))
            raise
        for listener in opened:
            self._door.open(listener, secret)
        addresses = [listener.getsockname()[:2] for listener in opened]
        _log.info("listens at %s", ", ".join(map(host.address_text, addresses)))
        await self._publish(way, host.addresses_to_bytes(addresses))
        if way == "far" and self._watch is not None:
            self._watch.cancel()  # there is no more to open

    async def _publish(self, way: str, text: bytes) -> None:
        for name in ("far", "near") if way == "far" else ("near",):
            await self._store.set(f"{self._folder}tcp/{self._index}/{name}", text)

    def watch(self, own: Record) -> None:
        """From now on listens when the job turns out to need it. `own` has been published."""
        if {"tcp", "rdma"} & set(own.transports):
            self._watching.thread.start()
            self._watch = asyncio.get_running_loop().create_task(self._serve_requests(own))
            self._compare = asyncio.get_running_loop().create_task(self._compare_with_first(own))

    async def _compare_with_first(self, own: Record) -> None:
        key = f"{self._folder}first"
        await self._store.set(key, str(self._index).encode())  # the first value stands
        for first in await self._named(await self._store.get(key)):
            if way := self._way(own, first):
                await self._ask_to_listen(first.index, way, f"{self._index}")
                await self.listen(way)

    async def _serve_requests(self, own: Record) -> None:
        for name in ("any", "far"):
            with contextlib.suppress(LinkError, OSError):  # the error reaches the waiting caller
                names = await self._watching.get(self._key(self._index, name))
                # At least one of two that do not share memory does not with this process either.
                ways = [self._way(own, peer) for peer in await self._named(names)]
                if any(ways):
                    way = "far" if "far" in ways else "near"
                    await self._ask_the_others(own, way, names)
                    await self.listen(way)

    async def _ask_the_others(self, own: Record, way: str, names: bytes) -> None:
        """By the first process, so that all listen before a link is wanted. A process that has
        died is then missed as soon as it is looked for: nobody listens any more."""
        if int(await self._store.get(f"{self._folder}first")) == self._index:
            for index in set(range(self._count)) - {self._index}:
                await self._ask_to_listen(index, way, f"{names.decode()} {self._index}")

    async def _ask_to_listen(self, index: int, way: str, names: str) -> None:
        for name in ("any", "far") if way == "far" else ("any",):
            await self._store.set(self._key(index, name), names.encode())

    def _key(self, index: int, name: str) -> str:
        return f"{self._folder}listen/{index}/{name}"

    async def _named(self, indices: bytes) -> list[Record]:
        """The records of the processes that a value of the store names; it may be anything."""
        words = indices.split()[:2]
        if not all(word.isdigit() and len(word) < _DIGITS_MAX for word in words):
            return []
        return [await self._record_of(int(w)) for w in words if int(w) != self._index]

    @staticmethod
    def _way(own: Record, peer: Record) -> str:
        """How the two reach each other by tcp; empty if they need not."""
        try:
            return "" if host.choose_transport(own, peer) == "shm" else way_to(own, peer)
        except LinkError:
            return ""

    # --- others ---------------------------------------------------------------------------------

    async def addresses(self, own: Record, peer: Record) -> list[tuple[str, int]]:
        """The address where a peer listens for this process. Waits until it does. Raises:
        LinkError."""
        key = f"{self._folder}tcp/{peer.index}/{way_to(own, peer)}"
        try:
            async with asyncio.timeout(_ASK_AFTER_S):
                text = await self._store.get(key)
        except TimeoutError:
            await self._ask_to_listen(peer.index, way_to(own, peer), f"{self._index}")
            text = await self._store.get(key)
        return host.addresses_from_bytes(text, peer.index)

    async def stop_watching(self) -> None:
        """Answers the request that its thread waits for. This process listens no more."""
        for name in ("any", "far"):
            with contextlib.suppress(LinkError):  # then it ends by itself
                await self._store.set(self._key(self._index, name), b"")

    def close(self) -> None:
        """Ends the thread that waits for requests. The loop has stopped."""
        self._watching.close()
        if self._watching.thread.is_alive():
            self._watching.thread.join(_CLOSE_S)
