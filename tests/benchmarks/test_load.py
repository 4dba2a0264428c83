"""The loops count what they should. Nothing here depends on how fast the machine is."""

import asyncio
import time

import pytest

from benchmarks.load import Load, Run, WrongAnswerError


def _load(**changes: float | None) -> Load:
    return Load(**({"operation": "", "seconds": 0.3, "warmup_s": 0.0, "in_flight": 4} | changes))  # type: ignore[arg-type]


async def _at_once() -> None:
    await asyncio.sleep(0)


async def test_a_closed_loop_keeps_so_many_calls_under_way() -> None:
    under_way = most = 0

    async def call() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1

    outcome = await Run(call, _load()).run()
    assert most == 4
    assert 4 <= outcome.done <= outcome.latencies.summary().count
    assert not outcome.failed


async def test_an_open_loop_makes_the_planned_calls() -> None:
    outcome = await Run(_at_once, _load(per_s=100.0, in_flight=100)).run()
    assert outcome.latencies.summary().count == 30
    assert outcome.done + outcome.unsent <= 30


async def test_latencies_of_an_open_loop_show_a_pause_to_all_that_was_planned_in_it() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            # The whole process stands still, as it does when a server stalls and nobody can call.
            time.sleep(0.2)  # noqa: ASYNC251

    outcome = await Run(call, _load(per_s=100.0, in_flight=1)).run()
    latency = outcome.latencies.summary()
    assert latency.max_ms >= 200
    # About 20 calls were planned during the pause, and are late by 0.1 s in the middle. A loop that
    # measured from the sending would see one slow call, and a p50 of next to nothing.
    assert latency.p90_ms >= 50


async def test_planned_calls_that_nobody_was_free_to_make_count_as_late() -> None:
    async def call() -> None:
        await asyncio.sleep(0.4)

    outcome = await Run(call, _load(per_s=100.0, in_flight=1)).run()
    assert outcome.done < 1
    assert outcome.unsent == 29  # the first one was sent
    assert outcome.latencies.summary().count == 30


async def test_failures_are_counted_by_name() -> None:
    answers = iter((WrongAnswerError("REJECTED"), ValueError("no")))

    async def call() -> None:
        if error := next(answers, None):
            raise error
        await asyncio.sleep(0.01)

    outcome = await Run(call, _load(in_flight=1)).run()
    assert outcome.failed == {"REJECTED": 1, "ValueError": 1}
    assert outcome.done


async def test_calls_without_an_answer_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.DRAIN_S_MAX", 0.05)
    outcome = await Run(asyncio.Event().wait, _load(seconds=0.05)).run()  # type: ignore[arg-type]
    assert outcome.failed == {"no answer": 4}


async def test_the_warm_up_does_not_count() -> None:
    outcome = await Run(_at_once, _load(per_s=100.0, seconds=0.1, warmup_s=0.2)).run()
    assert outcome.latencies.summary().count == 10


async def test_a_call_counts_with_the_part_of_it_that_is_measured() -> None:
    async def call() -> None:
        await asyncio.sleep(0.2)

    outcome = await Run(call, _load(seconds=0.3, in_flight=1, timeline=True)).run()
    # Two calls: all of the first one, and some half of the second.
    assert len(outcome.moments) == 2
    assert 1 < outcome.done < 2
