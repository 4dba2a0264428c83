"""Finds PostgreSQL on this machine, or installs Debian's package."""

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.bench import SkippedError

PROGRAMS = ("initdb", "postgres", "psql", "pgbench")
DEBIAN = Path("/usr/lib/postgresql")
APT_S_MAX = 600
# Debian makes and starts a database of its own at the installation, unless it is told not to.
NO_DATABASE = Path("/etc/postgresql-common/createcluster.d/ledger-bench.conf")


def find_or_install() -> Path:
    """Return the folder with PostgreSQL's programs; `SkippedError` says why there is none."""
    if folder := find():
        return folder
    if shutil.which("apt-get") is None:
        raise SkippedError("PostgreSQL is not installed, and there is no apt-get to install it")
    if os.geteuid() != 0:
        raise SkippedError("PostgreSQL is not installed; `apt-get install postgresql` takes root")
    _install()
    if folder := find():
        return folder
    raise SkippedError("apt-get has installed a PostgreSQL without " + ", ".join(PROGRAMS))


def find() -> Path | None:
    """Return the folder with PostgreSQL's programs if there is one, of the newest version."""
    versions = [file for file in DEBIAN.glob("*/bin") if file.parent.name.isdecimal()]
    folders = sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)
    if found := shutil.which("postgres"):
        folders.append(Path(found).resolve().parent)
    for folder in folders:
        if all((folder / program).exists() for program in PROGRAMS):
            return folder
    return None


def _install() -> None:
    NO_DATABASE.parent.mkdir(parents=True, exist_ok=True)
    NO_DATABASE.write_text("create_main_cluster = false\n")
    try:
        install = ("install", "-y", "--no-install-recommends", "postgresql")
        if _apt_get(*install):
            # Perhaps it only does not know yet what there is.
            _apt_get("update")
            if problem := _apt_get(*install):
                raise SkippedError(f"PostgreSQL is not installed, and apt-get says: {problem}")
    finally:
        NO_DATABASE.unlink()


def _apt_get(*arguments: str) -> str:
    """Return the last line that it said if it failed."""
    try:
        done = subprocess.run(
            ["apt-get", *arguments],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=APT_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing within {APT_S_MAX} s"
    lines = done.stdout.strip().splitlines()
    return (lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else ""
