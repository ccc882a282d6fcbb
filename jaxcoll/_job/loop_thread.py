"""An event loop on a daemon thread, beside another thread that calls the job's store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from jaxcoll._job.store_thread import Store as Store
from jaxcoll._job.store_thread import StoreThread

_CLOSE_S = 5.0
_STORE_S = 1.0  # for the store to answer at the end; its thread is a daemon

_log = logging.getLogger("jaxcoll.bootstrap")


class LoopThread:
    """Starts with the first thing that there is to do. Failures are reported to the subclass.

    Thread rule: `close` and `_call_soon` may be called by any thread; all else is the loop's.
    """

    def __init__(self, store: Store) -> None:
        self._store_client = store
        self._lock = threading.Lock()  # guards the next two
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._lost: Exception | None = None  # the loop has failed
        self._thread: threading.Thread
        self._store: StoreThread
        self._tasks: set[asyncio.Task[Any]] = set()

    def _on_no_thread(self, error: Exception) -> Exception:
        """There can be no thread, or none any more; called by the thread that wants something done.

        Returns: what to raise.
        """
        raise NotImplementedError

    def _on_lost_loop(self, error: BaseException) -> None:
        """The loop has failed, and runs nothing any more."""
        raise NotImplementedError

    def _on_trouble(self, error: Exception) -> None:
        """Something that `_call_soon` was given has failed."""
        raise NotImplementedError

    async def _last_words(self, words: str) -> None:
        """The last that is done before the loop ends."""
        raise NotImplementedError

    def _free(self) -> None:
        """Frees what the loop has used; no task runs any more."""
        raise NotImplementedError

    def close(self, words: str = "") -> None:
        """Stops listening, cancels pending operations and ends the threads. Links stay.

        Args:
          words: the words for processes that wait for this one, e.g. "has ended".
        """
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None:
            return

        def end() -> None:
            self._spawn(self._last_words(words)).add_done_callback(lambda _: loop.stop())

        with contextlib.suppress(RuntimeError):  # the thread has ended by itself
            loop.call_soon_threadsafe(end)
        self._thread.join(_CLOSE_S)

    def _call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Has the thread call a function; nothing after `close`. Raises what _on_no_thread says."""
        with self._lock:
            if self._closed:
                return
            if self._loop is None:
                try:
                    if self._lost is not None:
                        raise self._lost
                    self._loop = self._start()
                except Exception as error:  # e.g. the interpreter is shutting down
                    self._lost = error
                    raise self._on_no_thread(error) from error
            self._loop.call_soon_threadsafe(self._guard, function, *arguments)

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop()
        try:
            self._store = StoreThread(self._store_client, loop)
            self._thread = threading.Thread(
                target=self._run, args=[loop], name="jaxcoll-bootstrap", daemon=True
            )
            self._store.thread.start()
            try:
                self._thread.start()
            except BaseException:
                self._store.close()
                raise
        except BaseException:
            loop.close()
            raise
        return loop

    def _guard(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._on_trouble(error)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references
        task.add_done_callback(self._tasks.discard)
        return task

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(lambda _, context: _log.debug("%s", context))
        try:
            loop.run_forever()
        except Exception as error:  # of the loop itself: tasks keep theirs
            with self._lock:
                self._lost, self._loop = error, None
            self._on_lost_loop(error)
        self._store.close()
        with contextlib.suppress(OSError):  # of a loop that is lost: nothing can end its tasks
            while tasks := asyncio.all_tasks(loop):  # a task may start others as it ends
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.wait(tasks))
        self._free()
        self._store.thread.join(_STORE_S)
        loop.close()
