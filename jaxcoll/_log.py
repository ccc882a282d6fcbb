"""The log, as Python's `logging` sees it: the logger "jaxcoll", and those below it.

Their records are written where the C++ side writes (ffi/base/log.h), in the same form, at the
levels that JAXCOLL_LOG asks for. If a program has a handler on one of these loggers or on the root
logger, the handler gets the records, in its own format, and stderr does not repeat them. The file
that JAXCOLL_LOG_FILE names contains them in any case.

Lines of the C++ side never pass through `logging`: its threads must not wait for the interpreter.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

LOGGER = logging.getLogger("jaxcoll")

_LEVELS = {"warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}


class _Handler(logging.Handler):
    """Thread rule: any thread; `logging` holds this handler's lock."""

    def __init__(self, native: Any) -> None:
        super().__init__(logging.WARNING)
        self._native = native

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record; never raises."""
        try:
            # A text that is not UTF-8 could not be handed over.
            text = self.format(record).encode("utf-8", "replace").decode()
            lines = self._native.log_lines(record.levelname, text)
            if self._native.log_to_file(lines) or self._others(record) or sys.stderr is None:
                return
            sys.stderr.write(lines)
            sys.stderr.flush()
        except Exception:
            self.handleError(record)

    def _others(self, record: logging.LogRecord) -> bool:
        """Whether the program has a handler for the record, be it one that drops it."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


_handler: _Handler | None = None
_level_is_ours = False  # else the logger's level is what the program has chosen, or nothing


def follow(native: Any, level: str | None) -> None:
    """Sets the loggers' levels to JAXCOLL_LOG; None where it is not set.

    Then the loggers' levels are the program's, and stderr gets warnings, as without any handler.
    """
    global _handler, _level_is_ours
    if _handler is None:
        _handler = _Handler(native)
        LOGGER.addHandler(_handler)
    _handler.setLevel(_LEVELS[level or "warning"])
    if level is not None or _level_is_ours:
        LOGGER.setLevel(logging.NOTSET if level is None else _LEVELS[level])
        _level_is_ours = level is not None
