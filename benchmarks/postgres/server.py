"""A PostgreSQL of our own: in a temporary folder, on a unix socket, gone in the end."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

SCHEMA = Path(__file__).parent / "schema.sql"
DATABASE = "postgres"
USER = "bench"
START_S_MAX = 60.0
STOP_S_MAX = 30.0
COMMAND_S_MAX = 600.0

# What is not the default, and favours it: a large cache, and no checkpoint for as long as possible.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
}


class PostgresError(RuntimeError):
    """PostgreSQL did not do what it was asked to; the text says what it said."""


class Server:
    """A context manager. Runs as another user if we are root: PostgreSQL refuses to be root."""

    def __init__(self, programs: Path, scratch: Path | None) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-bench-pg-", dir=scratch))
        self._as_user: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process whose children do the work."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            # Fast shutdown: clients are sent away.
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(STOP_S_MAX)
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the command line of a client of this server."""
        where = ("-h", str(self.folder), "-U", USER)
        return [str(self._programs / program), *where, *arguments, DATABASE]

    def ask(self, sql: str) -> str:
        """Run SQL; return what it answers, without decoration."""
        return self._client("-c", sql)

    def load_schema(self, accounts: int, funds: int) -> None:
        """Make the tables, and so many accounts."""
        self._client("-f", str(SCHEMA))
        self.ask(
            "INSERT INTO accounts (id, balance) "
            f"SELECT id, {funds} FROM generate_series(1, {accounts}) AS id"
        )
        self.ask("VACUUM ANALYZE")
        self.ask("CHECKPOINT")

    @property
    def version(self) -> str:
        """Such as 15.8."""
        return self.ask("SHOW server_version").partition(" ")[0]

    def _start(self) -> None:
        if os.geteuid() == 0:
            user = _other_user()
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-U", USER, "-A", "trust", "--locale=C", "-E", "UTF8")
        own = SETTINGS | {"listen_addresses": "", "unix_socket_directories": str(self.folder)}
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in own.items())
        log = self.folder / "server.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(data)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                **self._as_user,
            )
        deadline = time.monotonic() + START_S_MAX
        while True:
            with suppress(PostgresError):
                self.ask("SELECT 1")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise PostgresError("PostgreSQL does not start: " + " | ".join(said))
            time.sleep(0.1)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
            **self._as_user,
        )
        if done.returncode:
            raise PostgresError(f"{program}: {done.stderr.strip()}")

    def _client(self, *arguments: str) -> str:
        command = self.command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *arguments)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False
        )
        if done.returncode:
            raise PostgresError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()


def _other_user() -> pwd.struct_passwd:
    """Return who the server runs as when we are root."""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresError("there is no user postgres or nobody for the server to run as")
