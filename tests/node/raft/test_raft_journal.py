"""The journal: what it refuses on load, and how little it holds in memory."""

import pytest
from raft_harness import MemoryStore

from ledger_node.raft import FatalRaftError, journal
from ledger_node.raft.journal import GroupJournal


class CountingStore(MemoryStore):
    """Counts reads of entries."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def read(self, index: int) -> tuple[int, bytes]:
        self.reads += 1
        return super().read(index)


def filled(entries: int, size: int = 1) -> tuple[CountingStore, GroupJournal]:
    store = CountingStore()
    group_journal = GroupJournal(store)
    group_journal.setCurrentTerm(1, None)
    for index in range(2, entries + 1):
        group_journal.add(b"\0" * size, index, 1)
    store.reads = 0
    return store, group_journal


def test_a_fresh_log_starts_with_the_same_entry_everywhere() -> None:
    store = MemoryStore()
    group_journal = GroupJournal(store)
    assert store.view.entries == [(0, b"\x01")]
    assert len(group_journal) == 1
    assert group_journal[0] == group_journal[-1] == (b"\x01", 1, 0)
    assert group_journal.applied_index == 1


def test_memory_is_bounded_by_entries_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "TAIL_ENTRIES_MAX", 10)
    _, group_journal = filled(100)
    assert len(group_journal._tail) == 10
    monkeypatch.setattr(journal, "TAIL_ENTRIES_MAX", 1000)
    monkeypatch.setattr(journal, "TAIL_BYTES_MAX", 50)
    _, group_journal = filled(100, size=20)
    assert len(group_journal._tail) == 2
    assert group_journal._tail_bytes == 40


def test_the_tail_is_read_from_memory_and_the_rest_from_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "TAIL_ENTRIES_MAX", 10)
    store, group_journal = filled(100)
    assert group_journal[0][1] == 1
    assert group_journal[-1][1] == 100
    assert [entry[1] for entry in group_journal[90:200]] == list(range(91, 101))
    assert store.reads == 0
    assert [entry[1] for entry in group_journal[5:8]] == [6, 7, 8]
    assert store.reads == 3
    assert group_journal.term_at(50) == 1
    assert group_journal.term_at(101) is None


def test_truncation_keeps_the_cached_tail_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "TAIL_ENTRIES_MAX", 4)
    store, group_journal = filled(20)
    group_journal.setCurrentTerm(2, "B")
    group_journal.truncate_from(10)
    assert (group_journal.last_index, group_journal._tail, group_journal._tail_bytes) == (9, {}, 0)
    group_journal.add(b"\0new", 10, 2)
    assert group_journal[-1] == (b"\0new", 10, 2)
    assert [group_journal.entry(i)[2] for i in (9, 10)] == [1, 2]
    assert store.view.entries[8:] == [(1, b"\0"), (2, b"\0new")]


@pytest.mark.parametrize("place", [slice(0, None), slice(None, 5), slice(0, 5000), slice(0, 9, 2)])
def test_unbounded_slices_are_refused(place: slice) -> None:
    _, group_journal = filled(3)
    with pytest.raises(FatalRaftError, match="bounded"):
        group_journal[place]


def test_appends_must_follow_on() -> None:
    _, group_journal = filled(3)
    for index, term in ((5, 1), (3, 1), (4, 0), (4, 2)):
        with pytest.raises(FatalRaftError):
            group_journal.add(b"\0", index, term)


def test_entry_one_and_what_is_not_there_cannot_be_truncated() -> None:
    _, group_journal = filled(3)
    for index in (0, 1, 4):
        with pytest.raises(FatalRaftError):
            group_journal.truncate_from(index)


def test_the_library_cannot_cut_the_log() -> None:
    _, group_journal = filled(3)
    with pytest.raises(FatalRaftError):
        group_journal.deleteEntriesFrom(1)
    with pytest.raises(FatalRaftError):
        group_journal.deleteEntriesTo(1)
    with pytest.raises(FatalRaftError):
        group_journal.clear()


def stored(
    entries: list[tuple[int, bytes]], term: int = 0, vote: str | None = None, applied: int = 0
) -> MemoryStore:
    store = MemoryStore()
    store.view.entries = entries
    store.view.term, store.view.voted_for, store.view.applied = term, vote, applied
    return store


@pytest.mark.parametrize(
    ("store", "what"),
    [
        (stored([], term=3), "the log is gone"),
        (stored([], vote="B"), "the log is gone"),
        (stored([], applied=4), "the log is gone"),
        (stored([(0, b"\1"), (2, b"\0")], term=1), "newer than the stored term"),
        (stored([(2, b"\1"), (1, b"\0")], term=2), "terms fall"),
        (stored([(0, b"\1"), (1, b"\0")], term=1, applied=3), "state is at entry 3"),
        (stored([(0, b"\1"), (1, b"")], term=1), "has no kind"),
    ],
)
def test_a_store_that_contradicts_itself_is_refused_on_load(store: MemoryStore, what: str) -> None:
    with pytest.raises(FatalRaftError, match=what):
        GroupJournal(store)


def test_a_log_whose_first_index_is_after_its_last_is_refused() -> None:
    class Shifted(MemoryStore):
        def first_index(self) -> int:
            return 5

    store = Shifted()
    store.view.entries = [(0, b"\1")]
    with pytest.raises(FatalRaftError, match="first index"):
        GroupJournal(store)


def test_commit_restarts_at_what_is_applied() -> None:
    store = stored([(0, b"\1"), (1, b"\0a"), (1, b"\0b")], term=4, vote="B", applied=2)
    group_journal = GroupJournal(store)
    assert group_journal.getRaftCommitIndex() == 2
    group_journal.setRaftCommitIndex(3)
    assert group_journal.getRaftCommitIndex() == 2
    assert (group_journal.getCurrentTerm(), group_journal.getVotedForNodeId()) == (4, "B")
