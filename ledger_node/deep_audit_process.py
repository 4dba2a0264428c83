"""Runs deep audits in processes of their own: damaged pages can crash whoever reads them.

Only one runs in a node at a time, at the lowest priority.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

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
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ledger_node.deep_audit",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES_MAX,
    )
    assert process.stdout is not None, "it was asked for"
    assert process.stderr is not None, "it was asked for"
    last = DeepAudit(-1 if shard_id is None else shard_id)
    try:
        while line := await asyncio.wait_for(process.stdout.readline(), _SILENCE_S_MAX):
            last = _decode(line)
            yield last
        code = await process.wait()
        if code:
            said = (await process.stderr.read()).decode(errors="replace").strip()
            yield _died(last, code, said)
    except TimeoutError:
        last.message = f"the audit said nothing for {_SILENCE_S_MAX:.0f} s"
        yield last
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


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
