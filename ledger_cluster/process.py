"""What the server processes share at their start: the event loop, the log, and how they stop."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable

import structlog


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's where it is installed (not on Windows), else None for asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop


def configure_log() -> None:
    """Log to stderr, one line an event: ``gateway listening address=127.0.0.1:8000``."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def settle_garbage_collection() -> None:
    """Once a process has started: leave what it has for good out of garbage collection.

    Requests make cycles too, but few: with Python's own thresholds a gateway under load spent a
    fifth of its time looking for them, in all that it ever imported.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def stop_requested() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets. For the running event loop."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
