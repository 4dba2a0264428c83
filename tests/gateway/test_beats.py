"""Beats: small blocks of all shards set out together, and none waits for long."""

import asyncio
from collections.abc import Callable

import pytest
from bulk_shards import ACCOUNTS, BulkShards
from fake_shards import until

from ledger_core.commands import CreateTransaction
from ledger_core.errors import ShardUnavailableError
from ledger_gateway import beats
from ledger_gateway.beats import FEW_COMMANDS, Beats, CommandBeats, Departure
from ledger_gateway.shard_calls import ShardCalls


class Sender:
    """A lane with one block to send, as `Beats` sees it."""

    def __init__(self, of: Beats, sent: list[str], name: str, items: int = 1) -> None:
        self._beats, self._sent, self._name, self._items = of, sent, name, items
        self.departure: Departure | None = None

    def send(self) -> None:
        self.departure = self._beats.leave(self.send, self._items)
        if self.departure is not None:
            self.departure.join(self._items)
            self._sent.append(self._name)

    def answered(self) -> None:
        assert self.departure is not None
        self._beats.arrived(self.departure, self._items)


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


async def test_while_not_all_are_back_who_waits_sets_out_a_little_after_the_last_answer(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    first, second = Sender(of, sent, "a"), Sender(of, sent, "b", items=3)
    first.send()
    second.send()
    await asyncio.sleep(0)
    for name in "cd":
        Sender(of, sent, name).send()
    clock[0] += 0.008
    first.answered()
    assert len(timers) == 1
    clock[0] += 0.002
    second.answered()
    delay_s, go = timers[-1]
    assert len(timers) == 2
    assert delay_s == pytest.approx(0.5 * 0.01)
    clock[0] += delay_s
    go()
    assert sent == ["a", "b", "c", "d"]


async def test_there_is_no_pause_once_all_are_back(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    first, second = Sender(of, sent, "a", items=40), Sender(of, sent, "b", items=60)
    first.send()
    second.send()
    await asyncio.sleep(0)
    clock[0] += 0.01
    first.answered()
    second.answered()
    Sender(of, sent, "c", items=30).send()
    assert timers[-1][0] == pytest.approx(0.005)
    growing = Sender(of, sent, "d", items=69)
    growing.send()
    assert len(timers) == 1
    growing._items = 70
    growing.send()
    delay_s, go = timers[-1]
    assert delay_s <= 0
    go()
    assert sent == ["a", "b", "c", "d"]


async def test_a_pause_goes_on_while_callers_come_back_one_by_one(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    slow = Sender(of, sent, "a", items=9)
    slow.send()
    await asyncio.sleep(0)
    clock[0] += 0.02
    slow.answered()
    ended_at = clock[0]
    for number in range(5):
        clock[0] = ended_at + 0.004 * number
        Sender(of, sent, f"{number}").send()
        if number >= 2:
            # The timer goes off, but another one has come: it is waited for, for a gap at most.
            timers[-1][1]()
            assert sent == ["a"]
    assert [delay_s for delay_s, _ in timers] == pytest.approx([0.01, 0.003, 0.003, 0.003])
    clock[0] = ended_at + 0.019
    timers[-1][1]()
    assert sent == ["a", "0", "1", "2", "3", "4"]


async def test_a_pause_is_no_longer_than_the_last_beat(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    quick = Sender(of, sent, "a", items=9)
    quick.send()
    await asyncio.sleep(0)
    clock[0] += 0.006
    quick.answered()
    for _ in range(2):
        clock[0] += 0.002
        Sender(of, sent, "b").send()
    timers[-1][1]()
    assert sent == ["a"]
    assert timers[-1][0] == pytest.approx(0.002)
    clock[0] += 0.002
    Sender(of, sent, "b").send()
    timers[-1][1]()
    assert sent == ["a", *"bbb"]


async def test_who_waited_while_others_were_on_their_way_waits_for_them_to_come_back(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    first, second = Sender(of, sent, "a", items=50), Sender(of, sent, "b", items=50)
    first.send()
    await asyncio.sleep(0)
    second.send()
    clock[0] += 0.01
    first.answered()
    assert timers[-1][0] == pytest.approx(0.005)
    first.send()
    assert timers[-1][0] <= 0
    timers[-1][1]()
    assert sent == ["a", "b", "a"]


async def test_the_pause_is_bounded(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    slow = Sender(of, sent, "a", items=2)
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


# Single commands


class Given:
    """A caller without a deadline."""

    def time_remaining(self) -> None:
        return None


class Commands:
    """Callers that each wait for the beat of a command."""

    def __init__(self) -> None:
        self.beats = CommandBeats()
        self.calls: list[asyncio.Task[Departure]] = []

    @property
    def left(self) -> int:
        return sum(call.done() and not call.cancelled() for call in self.calls)

    async def ask(self, count: int) -> None:
        """Some more of them, and a few passes of the event loop."""
        self.calls += [asyncio.create_task(self.beats.departure()) for _ in range(count)]
        await self.passes()

    async def passes(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def answered(self, count: int) -> None:
        """The first ones get their answer."""
        for call in self.calls[:count]:
            self.beats.arrived(call.result())
        del self.calls[:count]


@pytest.mark.usefixtures("clock")
async def test_a_few_commands_do_not_wait_for_each_other(
    timers: list[tuple[float, Callable[[], None]]],
) -> None:
    commands = Commands()
    for number in range(FEW_COMMANDS):
        await commands.ask(1)
        assert commands.left == number + 1
    for _ in range(FEW_COMMANDS):
        commands.answered(1)
    await commands.ask(1)
    assert commands.left == 1
    assert timers == []


async def test_many_commands_set_out_together_once_those_before_are_answered(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    commands = Commands()
    for _ in range(FEW_COMMANDS + 4):
        await commands.ask(1)
    assert commands.left == FEW_COMMANDS
    clock[0] += 0.01
    commands.answered(FEW_COMMANDS - 1)
    await commands.ask(3)
    assert commands.left == 1
    clock[0] += 0.01
    commands.answered(1)
    # Not all of their callers are back yet: a pause.
    delay_s, go = timers[-1]
    assert delay_s == pytest.approx(beats.PAUSE_S_MAX)
    clock[0] += delay_s
    go()
    await commands.passes()
    assert commands.left == 7


async def test_there_is_no_pause_once_all_callers_are_back(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    commands = Commands()
    await commands.ask(FEW_COMMANDS + 10)
    assert commands.left == FEW_COMMANDS + 10
    clock[0] += 0.05
    commands.answered(FEW_COMMANDS + 10)
    await commands.ask(FEW_COMMANDS + 9)
    assert commands.left == 0
    assert timers[-1][0] > 0
    await commands.ask(1)
    delay_s, go = timers[-1]
    assert delay_s <= 0
    go()
    await commands.passes()
    assert commands.left == FEW_COMMANDS + 10


async def test_commands_for_a_shard_that_is_away_hold_up_others_for_a_bounded_time(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    commands = Commands()
    await commands.ask(FEW_COMMANDS)
    clock[0] += 0.005
    await commands.ask(1)
    assert commands.left == FEW_COMMANDS
    delay_s, go = timers[-1]
    assert 0 < delay_s <= beats.BEAT_S_MIN
    clock[0] += delay_s
    go()
    await commands.passes()
    assert commands.left == FEW_COMMANDS + 1


@pytest.mark.usefixtures("clock")
async def test_a_cancelled_command_is_waited_for_by_no_beat(
    timers: list[tuple[float, Callable[[], None]]],
) -> None:
    commands = Commands()
    await commands.ask(FEW_COMMANDS)
    await commands.ask(3)
    waiting, leaving, last = commands.calls[-3:]
    waiting.cancel()
    await commands.passes()
    commands.answered(FEW_COMMANDS)
    _, go = timers[-1]
    go()
    # Its beat has come, but it has not taken a step.
    leaving.cancel()
    await commands.passes()
    assert waiting.cancelled()
    assert leaving.cancelled()
    assert last.result().under_way == 1


async def test_a_beat_for_which_nobody_waits_any_more_does_not_begin(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    commands = Commands()
    await commands.ask(FEW_COMMANDS)
    await commands.ask(1)
    commands.calls.pop().cancel()
    await commands.passes()
    delay_s, go = timers[-1]
    clock[0] += delay_s
    go()
    await commands.passes()
    clock[0] -= delay_s
    await commands.ask(1)
    assert commands.left == FEW_COMMANDS  # the first ones are still on their way


async def test_a_beat_that_begins_before_its_timer_goes_off_is_not_cut_short_by_it(
    clock: list[float], timers: list[tuple[float, Callable[[], None]]]
) -> None:
    of, sent = Beats(), list[str]()
    slow, eager = Sender(of, sent, "slow"), Sender(of, sent, "eager")
    slow.send()
    await asyncio.sleep(0)
    eager.send()
    assert sent == ["slow"]
    # The event loop is late: it sends again before it looks at its timers.
    clock[0] += timers[-1][0]
    eager.send()
    assert sent == ["slow", "eager"]
    assert of._timer is None


@pytest.mark.usefixtures("clock")
async def test_a_command_that_is_cancelled_as_its_beat_comes_does_not_join_it(
    timers: list[tuple[float, Callable[[], None]]],
) -> None:
    commands = Commands()
    await commands.ask(FEW_COMMANDS)
    await commands.ask(2)
    commands.answered(FEW_COMMANDS)
    cancelled, last = commands.calls
    cancelled.cancel()
    timers[-1][1]()
    await commands.passes()
    assert cancelled.cancelled()
    assert last.result().under_way == 1


async def test_a_command_that_fails_or_is_cancelled_is_on_its_way_no_more() -> None:
    shards = BulkShards()
    calls = ShardCalls(shards)
    command = CreateTransaction(ACCOUNTS[0][0], 1, "", True, "r")
    shards.answer = lambda _: ShardUnavailableError("gone")
    failing = [
        asyncio.create_task(calls.execute_in_step(command, Given())) for _ in range(FEW_COMMANDS)
    ]
    await asyncio.wait(failing)
    assert all(isinstance(call.exception(), ShardUnavailableError) for call in failing)
    shards.answer, shards.hold = None, asyncio.Event()
    stuck = [
        asyncio.create_task(calls.execute_in_step(command, Given())) for _ in range(FEW_COMMANDS)
    ]
    await until(lambda: shards.at_work[-1] == FEW_COMMANDS)
    for call in stuck:
        call.cancel()
    await asyncio.wait(stuck)
    shards.hold = None
    departure = await calls._beats.departure()
    assert (departure.under_way, departure.most) == (1, 1)
