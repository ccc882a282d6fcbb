"""The job's store, whose calls block, beside an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from jaxcoll._job.host import LinkError

SLICE_S = 0.1  # how long one missing key keeps the thread from the others


class Store(Protocol):
    """The keys and values through which the processes of a job meet: JAX's key-value store, behind
    this interface. Called by one thread.
    """

    def set(self, key: str, value: bytes) -> None:
        """Sets a key for good; if it was set before, that value stands."""

    def wait(self, key: str, deadline_s: float) -> bytes:
        """The value of a key; raises TimeoutError if it is not set within `deadline_s` from now."""

    def list(self, folder: str) -> dict[str, bytes]:
        """The keys that are set below `folder`, which ends in a slash, and their values."""


class _Call:
    """Compared by identity."""

    def __init__(self, function: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.function = function
        self.future = future

    def finish(self, result: Any, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class StoreThread:
    """Makes the store's calls, one at a time: a process has one request outstanding, however many
    of its peers are late. A key that does not exist yet moves to the end of the queue after
    `slice_s`.

    Thread rule: `close` may be called by any thread, `set`, `get` and `list` by the loop's.
    """

    def __init__(
        self, store: Store, loop: asyncio.AbstractEventLoop, slice_s: float = SLICE_S
    ) -> None:
        self.store = store
        self._slice_s = slice_s
        self._loop = loop
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()  # guards _calls and _closed
        self._closed = False
        self._values: dict[str, bytes] = {}  # keys never change
        self.thread = threading.Thread(target=self._run, name="jaxcoll-store", daemon=True)

    async def set(self, key: str, value: bytes) -> None:
        """Raises: LinkError if the store fails."""
        await self._call(lambda: self.store.set(key, value))

    async def get(self, key: str) -> bytes:
        """Waits until the key is set. Raises: LinkError if the store fails."""
        if key not in self._values:
            await self._call(lambda: self._fetch(key))
        return self._values[key]

    async def list(self, folder: str) -> dict[str, bytes]:
        """The keys that are set below `folder` now, with their values. Raises: LinkError if the
        store fails."""
        listed: dict[str, bytes] = await self._call(lambda: self.store.list(folder))
        return listed

    def _fetch(self, key: str) -> None:
        if key not in self._values:  # many may have asked for it at once
            self._values[key] = self.store.wait(key, self._slice_s)

    def close(self) -> None:
        """Lets the thread end after the call that it is making."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    async def _call(self, function: Callable[[], Any]) -> Any:
        call = _Call(function, self._loop.create_future())
        with self._changed:
            self._calls.appendleft(call)  # before keys that are known to be late
            self._changed.notify()
        return await call.future  # cancelled with the task that waits; the thread then drops it

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                call = self._calls.popleft()
            if call.future.done():
                continue
            result, failure = None, None
            try:
                result = call.function()
            except TimeoutError:
                with self._changed:
                    self._calls.append(call)
                continue
            except LinkError as error:  # the stored value cannot be trusted
                failure = error
            except Exception as error:
                failure = LinkError(f"the job's store (jax.distributed) has failed: {error}")
            try:
                self._loop.call_soon_threadsafe(call.finish, result, failure)
            except RuntimeError:  # the loop was closed meanwhile
                return
