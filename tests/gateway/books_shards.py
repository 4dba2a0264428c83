"""Shards with just enough books for names, accounts and ledgers, which fail when a test says so."""

from dataclasses import dataclass, field

import msgspec
from fake_shards import ACCOUNT_VIEW, Call, FakeShards

from ledger_core import commands, queries
from ledger_core.errors import OutcomeUnknownError, Reason
from ledger_core.results import AccountPage, AccountView, Failure, NameView, Result


@dataclass
class BooksShards(FakeShards):
    """Accounts in the order of their opening, and claims of names."""

    accounts: dict[int, AccountView] = field(default_factory=dict)
    names: dict[tuple[str, str], int] = field(default_factory=dict)
    requests: set[str] = field(default_factory=set)
    fail_before: int = -1
    """Number of the write before which the shards go away; -1: none."""
    fail_after: int = -1
    writes: int = 0

    def __post_init__(self) -> None:
        self.answer = self._run

    def _run(self, call: Call) -> Result | Exception:
        message = call.message
        match message:
            case queries.GetAccount():
                return self.accounts.get(message.account_id) or Failure(
                    Reason.ACCOUNT_NOT_FOUND, "no such account", "account_id"
                )
            case queries.FindName():
                owner = self.names.get((message.ledger, message.name))
                return NameView(message.ledger, message.name, owner)
            case queries.ListAccounts():
                return self._list(call.shard_id, message)
        number, self.writes = self.writes, self.writes + 1
        if number == self.fail_before:
            return OutcomeUnknownError("before")
        result = self._write(message)  # type: ignore[arg-type]
        return OutcomeUnknownError("after") if number == self.fail_after else result

    def _write(self, command: commands.Command) -> Result:
        match command:
            case commands.ClaimName():
                key = (command.ledger, command.name)
                owner = self.names.setdefault(key, command.account_id)
                if owner != command.account_id:
                    text = f"{owner:016x}"
                    return Failure(
                        Reason.NAME_TAKEN, "taken", "name", {"account_id": text, "request_id": "?"}
                    )
                return NameView(*key, owner)
            case commands.ReleaseName():
                key = (command.ledger, command.name)
                if self.names.get(key) == command.account_id:
                    del self.names[key]
                return NameView(*key, self.names.get(key))
            case commands.CreateAccount():
                return self._create(command)
            case commands.UpdateAccount():
                return self._update(command)
        raise AssertionError(command)

    def _create(self, command: commands.CreateAccount) -> Result:
        view = msgspec.structs.replace(
            ACCOUNT_VIEW,
            account_id=command.account_id,
            ledger=command.ledger,
            name=command.name,
            code=command.code,
            type=command.type,
            currency=command.currency.code,
            limits=command.limits,
            metadata=command.metadata,
        )
        known = self.accounts.setdefault(command.account_id, view)
        if known.code != command.code:
            return Failure(Reason.REQUEST_ID_REUSED, "another code", "request_id")
        return view

    def _update(self, command: commands.UpdateAccount) -> Result:
        view = self.accounts[command.account_id]
        if command.request_id in self.requests:
            return view
        if command.revision != view.revision:
            return Failure(Reason.REVISION_MISMATCH, "another revision", "revision")
        self.requests.add(command.request_id)
        if command.name is not None and command.name != view.name:
            view = msgspec.structs.replace(view, name=command.name, previous_name=view.name)
        view = msgspec.structs.replace(view, revision=view.revision + 1)
        self.accounts[command.account_id] = view
        return view

    def _list(self, shard_id: int, query: queries.ListAccounts) -> AccountPage:
        """Slots are places in the order of opening; a page looks at ten of them at most."""
        mine = [
            view for view in self.accounts.values() if self.shard_id_of(view.account_id) == shard_id
        ]
        shown: list[AccountView] = []
        slot = query.after_slot
        for slot in range(query.after_slot + 1, min(query.after_slot + 11, len(mine))):
            if mine[slot].code.startswith(query.code_prefix):
                shown.append(mine[slot])
            if len(shown) == query.page_size:
                break
        return AccountPage(shown, slot if slot + 1 < len(mine) else -1)
