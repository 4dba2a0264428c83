"""What is left: the Raft log, requests, names, ledgers, and what is on its way between shards."""

import struct

import msgspec

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import Prepare
from ledger_node.proof import UNREADABLE, Proof, plain
from ledger_node.records import (
    InFlightRecord,
    LedgerRecord,
    NameRecord,
    RequestRow,
    TransactionRecord,
)
from ledger_node.store_scan import key_numbers, row_name

_decode_in_flight = msgspec.msgpack.Decoder(InFlightRecord).decode
_decode_prepare = msgspec.msgpack.Decoder(Prepare).decode
_decode_ledger = msgspec.msgpack.Decoder(LedgerRecord).decode
_decode_name = msgspec.msgpack.Decoder(NameRecord).decode

# The byte of a request's key that says in what its id is unique: ledgers have revisions instead.
_SCOPE_AT = 16
_OF_LEDGERS = b"b"


def prove_indexes(proof: Proof) -> None:
    """Check the tables that nothing else covers."""
    _prove_log(proof)
    _prove_requests(proof)
    _prove_in_flight(proof)
    for key, prepare in proof.rows("undecided", lambda _key, row: _decode_prepare(row)):
        (number,) = key_numbers("undecided", key)
        record = _transaction(proof, number)
        if record is not None and record.origin != prepare.origin:
            name = proof.transaction(number)
            proof.fault("undecided", name, "it was prepared for another transaction")
    for key, ledger in proof.rows("ledgers", lambda _key, row: _decode_ledger(row)):
        if ledger.name.encode() != key:
            proof.fault("ledgers", row_name("ledgers", key), f"is of ledger {ledger.name!r}")
    for _ in proof.rows("names", lambda _key, row: _decode_name(row)):
        pass


def _prove_log(proof: Proof) -> None:
    """Check the Raft log: no gaps, checksums, terms that do not fall, all that was applied."""
    with proof.shard.log() as log:
        first, last = log.bounds()
        if log.count() != last - first + 1:
            proof.fault("log", "", f"has {log.count()} entries from {first} to {last}")
            return
        applied = proof.meta.applied_index
        # At the last step of an install the log is still the former one.
        if last and last < applied and log.installing() is None:
            proof.fault("log", f"index {last + 1}", f"is missing: {applied} is applied")
        newest_term = 0
        for index in range(first, last + 1):
            proof.advance()
            try:
                term, _payload = log.entry(index)
            except (*UNREADABLE, struct.error) as error:
                proof.fault("log", f"index {index}", plain(error))
                continue
            if term < newest_term:
                proof.fault("log", f"index {index}", f"is of term {term}, after {newest_term}")
            newest_term = max(newest_term, term)


def _prove_requests(proof: Proof) -> None:
    """Check that requests point to transactions and accounts that there are."""
    end = max(proof.meta.next_slot, proof.meta.next_transaction)
    for key, request in proof.rows("requests", lambda _key, row: RequestRow.unpack(row)):
        if key[_SCOPE_AT : _SCOPE_AT + 1] != _OF_LEDGERS and request.number >= end:
            proof.fault(
                "requests", row_name("requests", key), f"nothing is number {request.number}"
            )


def _prove_in_flight(proof: Proof) -> None:
    """Check that homes remember whom they have to tell, and nothing else."""
    for key, record in proof.rows("in_flight", lambda _key, row: _decode_in_flight(row)):
        (number,) = key_numbers("in_flight", key)
        transaction = _transaction(proof, number)
        name = proof.transaction(number)
        if transaction is None:
            proof.fault("in_flight", name, "its transaction is missing")
        elif not transaction.participants or record.state >= len(transaction.states):
            proof.fault("in_flight", name, f"its transaction has no state {record.state} to tell")
        elif (record.prepare is not None) != (transaction.status is TransactionStatus.UNDECIDED):
            proof.fault("in_flight", name, f"it does not fit its state {transaction.status.name}")
    for number in proof.numbers_of_bits("in_flight_bits"):
        transaction = _transaction(proof, number)
        if transaction is None or not transaction.participants:
            name = proof.transaction(number)
            proof.fault("in_flight_bits", name, "there is nothing to tell of it")
        elif transaction.status is not TransactionStatus.SETTLED:
            name, status = proof.transaction(number), transaction.status.name
            proof.fault("in_flight_bits", name, f"it does not fit its state {status}")
    for number in proof.undecided_at_home:
        if not proof.shard.has("in_flight", number.to_bytes(8)):
            name = proof.transaction(number)
            proof.fault(
                "in_flight", name, "the row is missing: it is UNDECIDED, and nobody goes on"
            )


def _transaction(proof: Proof, number: int) -> TransactionRecord | None:
    try:
        return proof.tables.find_transaction(number)
    except UNREADABLE:
        return None
