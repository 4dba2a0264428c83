"""When a call is tried again, without a network."""

import pytest

from ledger_client import LedgerError, NotFoundError, UnavailableError
from ledger_client._retries import Attempts

UNAVAILABLE = UnavailableError("UNAVAILABLE", "away")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_pauses_grow_up_to_a_limit_and_end_with_the_deadline() -> None:
    clock = Clock()
    attempts = Attempts(20.0, clock, jitter=lambda: 1.0)
    pauses: list[float] = []

    def fail_on() -> None:
        while True:
            pauses.append(attempts.pause_s(UNAVAILABLE))
            clock.now_s += pauses[-1]

    with pytest.raises(UnavailableError):
        fail_on()
    assert pauses[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert max(pauses) == 2.0
    assert 18.0 <= sum(pauses) < 20.0


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_jitter_takes_at_most_half(jitter: float) -> None:
    attempts = Attempts(20.0, Clock(), jitter=lambda: jitter)
    assert 0.025 <= attempts.pause_s(UNAVAILABLE) <= 0.05


def test_never_earlier_than_the_server_asks() -> None:
    attempts = Attempts(20.0, Clock(), jitter=lambda: 0.0)
    assert attempts.pause_s(UnavailableError("UNAVAILABLE", "", retry_delay_s=1.0)) >= 1.0


def test_what_is_certain_is_raised_at_once() -> None:
    for error in (NotFoundError("NOT_FOUND", ""), LedgerError("INTERNAL", "")):
        with pytest.raises(LedgerError) as caught:
            Attempts(20.0).pause_s(error)
        assert caught.value is error


def test_a_lost_connection_leaves_the_outcome_open() -> None:
    clock = Clock()
    attempts = Attempts(1.0, clock)
    attempts.pause_s(UNAVAILABLE)
    clock.now_s += 0.99
    with pytest.raises(UnavailableError) as caught:
        attempts.pause_s(UnavailableError("UNAVAILABLE", "nothing was done", reason="NO_LEADER"))
    assert caught.value is UNAVAILABLE


def test_an_attempt_leaves_time_for_another() -> None:
    clock = Clock()
    attempts = Attempts(10.0, clock)
    assert attempts.timeout_s() == 5.0
    clock.now_s += 5.0
    assert attempts.timeout_s() == 2.5
    clock.now_s += 3.5
    assert attempts.timeout_s() == 1.5
    clock.now_s += 9.0
    assert attempts.timeout_s() == 0.0
