"""What a leader concludes from a follower's answers."""

import pytest

from ledger_node.raft import progress
from ledger_node.raft.library import Node
from ledger_node.raft.progress import Progress


@pytest.fixture
def peer() -> Progress:
    """A follower of a leader whose log ends at 10; connected, nothing known yet."""
    peer = Progress(Node("B"))
    peer.connected = True
    peer.reset(last_index=10)
    return peer


@pytest.fixture
def streaming(peer: Progress) -> Progress:
    peer.accepted(10)
    return peer


def test_a_new_follower_is_probed_with_one_message(peer: Progress) -> None:
    assert not peer.streaming
    assert not peer.may_send(10)
    assert peer.may_send(11)
    peer.sent(11, 100)
    assert not peer.may_send(12)
    assert peer.next_index == 11


def test_a_confirmation_starts_streaming_after_it(peer: Progress) -> None:
    peer.sent(15, 100)
    peer.accepted(15)
    assert (peer.streaming, peer.match_index, peer.next_index) == (True, 15, 16)


def test_an_answer_to_an_empty_probe_starts_streaming(peer: Progress) -> None:
    peer.match_index = 10
    peer.sent(15, 100)
    peer.accepted(10)
    assert (peer.streaming, peer.next_index) == (True, 11)


def test_a_late_confirmation_does_not_end_a_probe_further_on(peer: Progress) -> None:
    peer.match_index = 5
    peer.accepted(4)
    assert (peer.streaming, peer.match_index, peer.next_index) == (False, 5, 11)


def test_confirmations_never_move_next_back(streaming: Progress) -> None:
    streaming.sent(20, 100)
    streaming.sent(30, 100)
    streaming.accepted(20)
    assert (streaming.match_index, streaming.next_index) == (20, 31)
    streaming.accepted(15)
    assert (streaming.match_index, streaming.next_index) == (20, 31)


def test_next_is_always_after_match(streaming: Progress) -> None:
    streaming.accepted(40)  # sent before an earlier probe
    assert (streaming.match_index, streaming.next_index) == (40, 41)


def test_a_refusal_while_streaming_starts_a_probe_at_the_hint(streaming: Progress) -> None:
    streaming.sent(30, 100)
    assert streaming.refused(prev_index=30, hint_index=15)
    assert (streaming.streaming, streaming.next_index) == (False, 15)
    assert (list(streaming.in_flight), streaming.in_flight_bytes) == ([], 0)
    assert streaming.may_send(30)


def test_a_hint_below_the_confirmed_is_not_followed(streaming: Progress) -> None:
    streaming.sent(30, 100)
    assert streaming.refused(prev_index=30, hint_index=3)
    assert streaming.next_index == 11


def test_a_hint_beyond_the_question_is_not_followed(streaming: Progress) -> None:
    streaming.sent(30, 100)
    assert streaming.refused(prev_index=20, hint_index=99)
    assert streaming.next_index == 20


@pytest.mark.parametrize("prev_index", [5, 10, 31])
def test_refusals_of_what_is_confirmed_or_not_asked_are_late(
    streaming: Progress, prev_index: int
) -> None:
    streaming.sent(30, 100)
    assert not streaming.refused(prev_index, hint_index=2)
    assert (streaming.streaming, streaming.next_index) == (True, 31)


@pytest.mark.parametrize("prev_index", [1, 6, 9, 11])
def test_while_probing_only_the_open_question_is_answered(peer: Progress, prev_index: int) -> None:
    peer.sent(15, 100)
    assert not peer.refused(prev_index, hint_index=2)
    assert peer.paused
    assert peer.next_index == 11
    assert peer.refused(10, hint_index=7)
    assert not peer.paused
    assert peer.next_index == 7


def test_the_window_opens_as_messages_are_confirmed(
    streaming: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WINDOW_BYTES_MAX", 200)
    streaming.sent(20, 150)
    assert streaming.may_send(99)
    streaming.sent(30, 150)
    assert not streaming.may_send(99)
    streaming.accepted(15)
    assert streaming.in_flight_bytes == 300
    streaming.accepted(20)
    assert streaming.in_flight_bytes == 150
    assert streaming.may_send(99)


def test_a_broken_link_forgets_what_was_under_way(streaming: Progress) -> None:
    streaming.sent(30, 100)
    streaming.disconnected()
    assert not streaming.may_send(99)
    assert (streaming.next_index, streaming.in_flight_bytes) == (11, 0)


def test_a_new_leadership_forgets_everything(streaming: Progress) -> None:
    streaming.acked_round = 9
    streaming.reset(last_index=50)
    assert (streaming.match_index, streaming.next_index, streaming.acked_round) == (1, 51, 0)
    assert not streaming.streaming
