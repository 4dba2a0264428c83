"""Runs deep audits in processes of their own: damaged pages can crash whoever reads them.

Only one runs in a node at a time, at the lowest priority.
"""

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO, Final

import msgspec

from ledger_node.deep_audit import DeepAudit

# A process that tells nothing for so long is stuck; otherwise it tells five times a second.
_SILENCE_S_MAX: Final = 600.0
# 100 faults fit into a line many times over.
_LINE_BYTES_MAX: Final = 16 << 20

_decode = msgspec.json.Decoder(DeepAudit).decode


async def deep_audits(store: Path, shard_id: int | None = None) -> AsyncGenerator[DeepAudit, None]:
    """Audit one shard of a store, or all; yield now and then how far that is.

    ``store`` is the folder of data.mdb. The last one of each shard is ``finished``, or has a
    message why it is not. If the process dies, that is a fault of the shard it was at. It ends when
    the iterator is closed.
    """
    arguments = [str(store)] if shard_id is None else [str(store), str(shard_id)]
    last = DeepAudit(-1 if shard_id is None else shard_id)
    with tempfile.TemporaryFile() as errors:
        process = _start(arguments, errors)
        assert process.stdout is not None, "it was asked for"
        lines = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), process.stdout
        )
        try:
            while line := await asyncio.wait_for(lines.readline(), _SILENCE_S_MAX):
                last = _decode(line)
                yield last
            code = await asyncio.to_thread(process.wait)
            if code:
                errors.seek(0)
                yield _died(last, code, errors.read().decode(errors="replace").strip())
        except TimeoutError:
            last.message = f"the audit said nothing for {_SILENCE_S_MAX:.0f} s"
            yield last
        finally:
            transport.close()
            process.kill()
            # It is gone at once, and nobody may be left to await it here.
            process.wait()


def _start(arguments: list[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process without a fork of this one.

    asyncio on uvloop forks, and in the child gRPC's own handlers of forks crash now and then before
    the new program begins. `subprocess` uses vfork, which calls no handlers.
    """
    return subprocess.Popen(  # noqa: S603 - our own module, no shell
        [sys.executable, "-m", "ledger_node.deep_audit", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
    )


def _died(last: DeepAudit, code: int, said: str) -> DeepAudit:
    """Return what is known when the process that was to audit ended early."""
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"ended with {signal.Signals(-code).name}: its pages are damaged"
    last_line = said.rpartition("\n")[2]
    why = f" ({last_line})" if last_line else ""
    fault = f"reading the store {how}{why}, after {last.rows_done} rows"
    return DeepAudit(
        last.shard_id, last.rows_done, last.rows_estimated, True, [*last.faults, fault]
    )
