"""A real ledger for your tests: a standalone gateway in a process of its own.

    from ledger_client.testing import standalone_ledger

    with standalone_ledger() as ledger, LedgerClient(ledger.target) as client:
        client.create_account()

With pytest, ``pytest_plugins = ["ledger_client.testing"]`` gives a fixture ``ledger``, started once
per session; open an account per test. It needs the service package itself to be installed.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ledger_client.client import LedgerClient
from ledger_client.errors import LedgerError

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_LISTENING = re.compile(r"gateway listening\s+address=(\S+)")


class StandaloneLedger:
    """A running standalone gateway."""

    def __init__(self, data_dir: Path, log_path: Path) -> None:
        self.data_dir = data_dir
        self._log_path = log_path
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [
                    *(sys.executable, "-m", "ledger_gateway.main"),
                    *("--standalone", "--data-dir", str(data_dir)),
                    *("--host", "127.0.0.1", "--port", "0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.target = self._wait_until_serving()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The id of the gateway's process."""
        return self._process.pid

    def log(self) -> str:
        """Return what the gateway has printed so far."""
        return self._log_path.read_text(errors="replace")

    def stop(self) -> int:
        """End it as an operator would (SIGTERM) and return its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it without warning (SIGKILL), as a crash would."""
        self._process.kill()
        self._process.wait()

    def _wait_until_serving(self) -> str:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the gateway ended at its start:\n{self.log()}")
            found = _LISTENING.search(self.log())
            if found and _serves(found[1]):
                return found[1]
            time.sleep(0.05)
        raise RuntimeError(f"the gateway does not serve:\n{self.log()}")


@contextmanager
def standalone_ledger(data_dir: Path | None = None) -> Iterator[StandaloneLedger]:
    """Run a ledger on a free loopback port; its data is gone afterwards unless you say where."""
    with tempfile.TemporaryDirectory(prefix="ledger-") as scratch:
        directory = Path(scratch)
        running = StandaloneLedger(data_dir or directory / "data", directory / "gateway.log")
        try:
            yield running
        finally:
            running.stop()


def _serves(target: str) -> bool:
    with LedgerClient(target, timeout_s=2.0) as client, suppress(LedgerError):
        return client.serving_shards().get("", False)
    return False


try:
    import pytest
except ImportError:  # the context manager works without
    pass
else:

    @pytest.fixture(scope="session")
    def ledger() -> Iterator[StandaloneLedger]:
        """Run a standalone ledger for the session."""
        with standalone_ledger() as running:
            yield running
