"""How a process that must not go on ends."""

import os
import traceback
from typing import NoReturn

import structlog

from ledger_node.store import plain_reason

EXIT_CODE = 70  # EX_SOFTWARE in sysexits.h


def die(what: str, error: BaseException) -> NoReturn:
    """End the process now, as a crash would: memory is ahead of the disk, so nothing may leave it.

    No cleanup runs: a clean shutdown would store and send what must not be.
    """
    if reason := plain_reason(error):
        # Not a bug: whoever runs the node needs to know what to do, not where it happened.
        structlog.get_logger().critical(f"{what}: {reason}")
    else:
        structlog.get_logger().critical(what, error=f"{type(error).__name__}: {error}")
        traceback.print_exception(error)
    os._exit(EXIT_CODE)
