"""A peer to which a link is being made: the time allowed, and the reason if the peer has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from jaxcoll._job.dial import Unreachable
from jaxcoll._job.host import LinkError
from jaxcoll._text import is_number, printable

_RETRY_MIN_S, _RETRY_MAX_S = 0.05, 1.0
_GONE_AFTER = 4  # attempts in a row that nobody listens to before a peer counts as dead
_EXHAUSTED_S = 1.0  # how long this process may lack descriptors or memory
_REASON_BYTES_MAX = 4096
_INDEX_MAX = (1 << 31) - 1


class Gone(LinkError):
    """Nobody listens where the peer did."""


class Silent(LinkError):
    """The peer gives no sign of life."""


class Exhausted(LinkError):
    """This process cannot connect to anybody."""


@dataclass
class Peer:
    """A peer that a link is wanted to, or that wants one."""

    who: str  # for people
    outcome: asyncio.Future[str]  # "" once linked, else why not; final
    task: asyncio.Task[None] | None = None
    trouble: str = "publishing this process"  # what to say if time runs out now
    silent_s: float = 0.0  # how long it has been waited for since it gave a sign of life

    def on_beat(self) -> None:
        """It lives, and has no answer yet."""
        self.silent_s = 0.0
        self.trouble = "it has run no collective across processes yet"


def new_peer(index: int) -> Peer:
    """Makes a peer whose future belongs to the running loop."""
    return Peer(f"process {index}", asyncio.get_running_loop().create_future())


async def persist(peer: Peer, attempt: Callable[[], Awaitable[None]], silence_s: float) -> None:
    """Tries until it succeeds, it is refused for good, time runs out, or nobody is there.

    Raises: Gone, Silent, Exhausted.
    """
    refused, exhausted_s, pause_s = 0, 0.0, _RETRY_MIN_S
    while True:
        try:
            return await attempt()
        except Unreachable as error:
            peer.trouble = str(error)
            refused = refused + 1 if error.gone else 0
            exhausted_s = exhausted_s + pause_s if error.exhausted else 0.0
            peer.silent_s = peer.silent_s + error.silent_s if error.silent_s else 0.0
        if refused == _GONE_AFTER:
            raise Gone(f"{peer.who} has ended, or a firewall rejects this process: {peer.trouble}")
        if peer.silent_s >= silence_s:
            raise Silent(
                f"{peer.who} has not answered for {peer.silent_s:.3g} s: it is stopped, or cut off "
                f"({peer.trouble})"
            )
        if exhausted_s > _EXHAUSTED_S:
            raise Exhausted(peer.trouble)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _RETRY_MAX_S)


def read_ends(found: Mapping[str, bytes], folder: str) -> dict[int, str]:
    """Why processes take no part any more, by their index.

    Args:
      found: the store's entries below `folder`, which anyone may have written.
    """
    ends: dict[int, str] = {}
    for key, reason in found.items():
        index = key.removeprefix(folder)
        if is_number(index, 0, _INDEX_MAX):
            text = reason[:_REASON_BYTES_MAX].decode("utf-8", "replace")
            ends[int(index)] = printable(text)
    return ends
