"""Beats: small blocks of all shards set out together, and none waits for long."""

import asyncio
from collections.abc import Callable

import pytest

from ledger_gateway import beats
from ledger_gateway.beats import Beats, Departure


class Sender:
    """A lane with one block to send, as `Beats` sees it."""

    def __init__(self, of: Beats, sent: list[str], name: str) -> None:
        self._beats, self._sent, self._name = of, sent, name
        self.departure: Departure | None = None

    def send(self) -> None:
        self.departure = self._beats.leave(self.send)
        if self.departure is not None:
            self._sent.append(self._name)

    def answered(self) -> None:
        assert self.departure is not None
        self._beats.arrived(self.departure)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still unless a test moves it."""
    now = [1_000.0]
    monkeypatch.setattr(beats.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Callable[[], None]]]:
    """The timers that were set, instead of ones that go off by themselves."""
    found: list[tuple[float, Callable[[], None]]] = []

    def set_timer(self: Beats, delay_s: float) -> None:
        found.append((delay_s, self._send_waiting))
        self._timer = asyncio.get_running_loop().call_later(3_600, lambda: None)

    monkeypatch.setattr(Beats, "_set_timer", set_timer)
    return found


async def test_with_nothing_on_its_way_a_block_sets_out_at_once() -> None:
    sent: list[str] = []
    Sender(Beats(), sent, "a").send()
    assert sent == ["a"]


@pytest.mark.usefixtures("clock")
async def test_a_beat_is_open_in_the_pass_in_which_it_begins(
    timers: list[tuple[float, Callable[[], None]]],
) -> None:
    of, sent = Beats(), list[str]()
    for name in "ab":
        Sender(of, sent, name).send()
    assert sent == ["a", "b"]
    await asyncio.sleep(0)
    Sender(of, sent, "c").send()
    assert sent == ["a", "b"]
    assert len(timers) == 1


async def test_who_waits_sets_out_a_little_after_the_last_answer(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    first, second = Sender(of, sent, "a"), Sender(of, sent, "b")
    first.send()
    second.send()
    await asyncio.sleep(0)
    for name in "cd":
        Sender(of, sent, name).send()
    clock[0] += 0.03
    first.answered()
    assert len(timers) == 1
    clock[0] += 0.01
    second.answered()
    delay_s, go = timers[-1]
    assert len(timers) == 2
    assert delay_s == pytest.approx(0.2 * 0.04)
    clock[0] += delay_s
    go()
    assert sent == ["a", "b", "c", "d"]


async def test_the_pause_is_bounded(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    slow = Sender(of, sent, "a")
    slow.send()
    await asyncio.sleep(0)
    Sender(of, sent, "b").send()
    clock[0] += 7.0
    slow.answered()
    assert timers[-1][0] == pytest.approx(beats.PAUSE_S_MAX)


async def test_a_shard_that_does_not_answer_holds_up_others_for_a_bounded_time(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    stuck = Sender(of, sent, "stuck")
    stuck.send()
    await asyncio.sleep(0)
    other = Sender(of, sent, "other")
    other.send()
    delay_s, go = timers[-1]
    assert delay_s == pytest.approx(beats.BEAT_S_MIN)
    clock[0] += delay_s
    go()
    assert sent == ["stuck", "other"]
    await asyncio.sleep(0)
    # What comes late, of an earlier beat, does not end this one.
    stuck.answered()
    third = Sender(of, sent, "third")
    third.send()
    assert sent == ["stuck", "other"]
    assert 0 < timers[-1][0] <= beats.BEAT_S_MAX
