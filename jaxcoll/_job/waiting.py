"""Waiting on an event loop: deadlines that count only time in which this process runs, and
heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from jaxcoll._job.connection import Connection, readable

_COUNTED_S = 1.0  # what one look at the clock counts for at most

_Result = TypeVar("_Result")


@contextlib.asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError after that many seconds, without the time for which it was stopped.

    A job that is stopped as a whole (^Z, SIGSTOP) and resumed goes on.
    """
    async with asyncio.timeout(None) as timeout:

        async def expire() -> None:
            left = seconds
            while left > 0:
                await asyncio.sleep(min(left, _COUNTED_S))
                left -= _COUNTED_S
            timeout.reschedule(asyncio.get_running_loop().time())

        task = asyncio.get_running_loop().create_task(expire())
        try:
            yield
        finally:
            task.cancel()


async def hold(
    connection: Connection,
    result: Awaitable[_Result],
    beat: Callable[[int], bytes],
    every_s: float,
) -> _Result:
    """Waits for `result`; meanwhile the client hears that this process lives.

    Args:
      beat: what to send, by its number.

    Raises: ConnectionResetError if the client has gone, or says anything before it is answered.
    """
    waiting = asyncio.ensure_future(result)
    left = asyncio.ensure_future(readable(connection.socket))
    count = 0
    try:
        while True:
            await asyncio.wait({waiting, left}, timeout=every_s, return_when="FIRST_COMPLETED")
            if left.done():
                raise ConnectionResetError("it has left while it was waiting")
            if waiting.done():
                return waiting.result()
            connection.send(beat(count % (1 << 32)))
            count += 1
    finally:
        waiting.cancel()
        left.cancel()
        # Its reader must be gone before somebody else waits for the same descriptor.
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await left
