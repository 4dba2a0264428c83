"""The process that makes the load, so that its work is its own and can be told from the rest.

    python -m benchmarks.load_process ADDRESS FOLDER

reads loads from its input, one JSON object a line, and answers each with lines of JSON: one
``measuring`` when the warm-up is over, some ``progress``, one ``ended``, and one ``outcome``.
FOLDER has the accounts. It ends when its input does.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.book import AccountBook
from benchmarks.load import Load, Run
from benchmarks.operations import OPERATIONS
from ledger_cluster.process import event_loop_factory, settle_garbage_collection

PROGRESS_S = 0.25


async def _carry_out(load: Load, target: str, book: AccountBook) -> None:
    opening = OPERATIONS[load.operation](target, book, random.Random(load.seed), load)
    async with opening as call:
        run = Run(call, load)
        telling = asyncio.create_task(_tell_of(run))
        outcome = await run.run()
        await telling
    _tell(
        "outcome",
        done=outcome.done,
        failed=outcome.failed,
        unsent=outcome.unsent,
        histogram=outcome.latencies.buckets(),
        moments=outcome.moments,
    )


async def _tell_of(run: Run) -> None:
    await asyncio.sleep(run.measured_from - time.monotonic())
    _tell("measuring")
    while (left_s := run.until - time.monotonic()) > 0:
        _tell("progress", done=run.outcome.done, left_s=left_s)
        await asyncio.sleep(min(PROGRESS_S, left_s))
    _tell("ended")


def _tell(event: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **more}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out what is asked for until there is no more."""
    target, folder = sys.argv[1:]
    book = AccountBook.load(Path(folder))
    settle_garbage_collection()
    for line in sys.stdin:
        load = Load(**json.loads(line))
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(_carry_out(load, target, book))


if __name__ == "__main__":
    main()
