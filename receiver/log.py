"""Log lines that no sender can forge: one line an event, `key=value`, every text escaped and short.

Never a body, a signature, a secret or personal data: callers give ids, reasons and numbers only.
"""

from __future__ import annotations

import logging

MAX_CHARS = 500
MAX_OUTSIDE_CHARS = 64
_OUTSIDE = {"id"}  # fields whose text a stranger has chosen

LOG = logging.getLogger("receiver")

# For granian too, so that everything comes out of one place in one form.
LOG_CONFIG: dict[str, object] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s level=%(levelname)s %(message)s"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "stream": "ext://sys.stderr",
        },
    },
    "loggers": {
        "receiver": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "_granian": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}


def log_event(level: int, event: str, **fields: object) -> None:
    """Log one event; texts are escaped and cut, numbers stand as they are."""
    if LOG.isEnabledFor(level):
        parts = [f"{name}={_show(name, value)}" for name, value in fields.items()]
        LOG.log(level, "%s", " ".join([f"event={event}", *parts]))


def _show(name: str, value: object) -> str:
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float):
        return f"{value:.3f}"
    # ascii() leaves no line break, no escape sequence and no look-alike.
    return ascii(str(value)[: MAX_OUTSIDE_CHARS if name in _OUTSIDE else MAX_CHARS])
