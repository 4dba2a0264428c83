"""What holds for all tests: none fails because the machine was slow, or by the port of another."""

import os

import pytest
from hypothesis import settings

from ledger_cli import local_cluster

settings.register_profile("ledger", deadline=None)
settings.load_profile("ledger")


def own_ports() -> range:
    """The ports for the servers of this test process: no other one of the run gets any of them.

    A port alone cannot tell that it is free: its node may just be down.
    """
    ports = local_cluster.PORTS
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = len(ports) // workers
    return ports[number * share : (number + 1) * share]


local_cluster.PORTS = own_ports()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [item for items in terminalreporter.stats.values() for item in items]
    lines = [
        text
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, text in report.user_properties
        if name == "measured"
    ]
    if lines:
        terminalreporter.section("measured on the cluster")
        for line in lines:
            terminalreporter.write_line(str(line))
