"""The examples of the documentation are run as they are printed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger_client.testing import StandaloneLedger, standalone_ledger

EXAMPLES = Path(__file__).parents[2] / "docs" / "EXAMPLES.md"

_BLOCK = re.compile(r"^## (.+?)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """Every block of code, under the heading above it."""
    found, heading = [], "shared"
    for title, code in _BLOCK.findall(EXAMPLES.read_text(encoding="utf-8")):
        heading = title or heading
        if code:
            found.append((heading, code))
    return found


@pytest.fixture(scope="module")
def ledger() -> Iterator[StandaloneLedger]:
    with standalone_ledger() as running:
        yield running


@pytest.fixture(scope="module")
def shared(ledger: StandaloneLedger) -> Iterator[dict[str, Any]]:
    (heading, code), *_ = blocks()
    assert heading == "shared"
    names: dict[str, Any] = {"target": ledger.target}
    exec(compile(code, f"{EXAMPLES.name}: {heading}", "exec"), names)
    yield names
    names["client"].close()


@pytest.mark.parametrize(("heading", "code"), blocks()[1:])
def test_example(shared: dict[str, Any], heading: str, code: str) -> None:
    exec(compile(code, f"{EXAMPLES.name}: {heading}", "exec"), dict(shared))


def test_there_is_one_for_each_scenario() -> None:
    text = EXAMPLES.read_text(encoding="utf-8")
    assert re.findall(r"\(`(scenario-\d+)`\)", text) == [f"scenario-{n}" for n in range(5, 12)]
    # What they share, the scenarios, five of many at once, and two that look back.
    assert len(blocks()) == 1 + 7 + 5 + 2
