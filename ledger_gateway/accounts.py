"""The RPCs of accounts.

An account's name is claimed on the shard that keeps the name before the account gets it, and given
back after the account has lost it. Whatever is interrupted in between, a repeat of the request
completes: claims are the account's, and claiming again changes nothing.
"""
# ruff: noqa: N802 - gRPC names the methods

from ledger.v1 import ledger_pb2
from ledger_core import commands, queries
from ledger_core.accounts import AccountState, AccountType
from ledger_core.errors import FieldViolation, Reason, RefusedError
from ledger_core.ids import derive_account_id, new_request_id, parse_account_id
from ledger_core.ledgers import MAIN_NAME, name_key
from ledger_core.results import AccountPage, AccountView, Failure, NameView, Result
from ledger_gateway import conversion, fields, validation
from ledger_gateway.errors import unwrap
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.pagination import AccountCursor, decode_account_token, encode_account_token
from ledger_gateway.shard_calls import Context, ShardCalls
from ledger_gateway.source import require_valid

# What one call to a shard may bring, and how much a page holds before it ends early: accounts with
# all the metadata they can have take 41 KB, and clients refuse messages above 4 MiB by default.
_ACCOUNTS_PER_CALL_MAX = 64
_PAGE_BYTES_MAX = 1_000_000
# How many calls one page may take: filters that fit few accounts must not keep it busy for long.
_CALLS_PER_PAGE_MAX = 64


class AccountRpcs:
    """Opening, changing and showing accounts."""

    _shards: ShardCalls
    _directory: LedgerDirectory

    async def CreateAccount(
        self, request: ledger_pb2.CreateAccountRequest, context: Context
    ) -> ledger_pb2.CreateAccountResponse:
        """Open an account, after claiming its name if it has one."""
        source = require_valid(validation.create_account(request), context)
        command = await self._new_account(request, source, context)
        if not command.name or await self._find_account(command.account_id, context):
            # With a name, a repeat: the name was claimed then, and may be another account's now.
            result = await self._shards.execute(command, context)
        else:
            await self._claim(command.ledger, command.name, command, context)
            result = await self._shards.execute(command, context)
            if isinstance(result, Failure):
                await self._release(command.ledger, command.name, command, context)
        return ledger_pb2.CreateAccountResponse(
            account=conversion.account(unwrap(result, AccountView))
        )

    async def GetAccount(
        self, request: ledger_pb2.GetAccountRequest, context: Context
    ) -> ledger_pb2.GetAccountResponse:
        """Return an account with its balances, by its id or by its name."""
        validation.require(validation.get_account(request))
        ledger = request.ledger or MAIN_NAME
        account_id: int | None
        if request.name:
            named = await self._shards.query(
                name_key(ledger, request.name),
                queries.FindName(ledger, request.name),
                context,
                request.consistency,
            )
            account_id = unwrap(named.result, NameView).account_id
        else:
            account_id = parse_account_id(request.account_id)
        if account_id is None:
            raise _no_such_name(ledger, request.name)
        query = queries.GetAccount(account_id)
        answer = await self._shards.query(account_id, query, context, request.consistency)
        if request.name and not _has_name(answer.result, request.name):
            # Claimed, but not given yet, or not given back yet.
            raise _no_such_name(ledger, request.name)
        return ledger_pb2.GetAccountResponse(
            account=conversion.account(unwrap(answer.result, AccountView)),
            read_point=conversion.read_point(answer),
        )

    async def ListAccounts(
        self, request: ledger_pb2.ListAccountsRequest, context: Context
    ) -> ledger_pb2.ListAccountsResponse:
        """List the accounts of a ledger page by page, one shard after the other."""
        validation.require(validation.list_accounts(request))
        ledger = request.ledger or MAIN_NAME
        await self._directory.require(ledger, context)
        page_size = request.page_size or fields.PAGE_SIZE_DEFAULT
        position, after_slot = decode_account_token(request.page_token, request)
        shard_ids = self._shards.shard_ids()
        response = ledger_pb2.ListAccountsResponse()
        for _ in range(_CALLS_PER_PAGE_MAX):
            missing = page_size - len(response.accounts)
            if not missing or position >= len(shard_ids) or response.ByteSize() > _PAGE_BYTES_MAX:
                break
            query = queries.ListAccounts(
                ledger,
                min(missing, _ACCOUNTS_PER_CALL_MAX),
                after_slot,
                request.code_prefix,
                AccountType(request.type) if request.type else None,
                AccountState(request.state) if request.state else None,
                request.metadata_key,
            )
            answer = await self._shards.query_shard(
                shard_ids[position], query, context, request.consistency
            )
            page = unwrap(answer.result, AccountPage)
            response.accounts.extend(conversion.account(view) for view in page.accounts)
            if after_slot == -1 or not response.read_points:
                response.read_points.append(conversion.read_point(answer))
            after_slot = page.last_slot
            if after_slot == -1:
                position += 1
        if position < len(shard_ids):
            cursor = AccountCursor(position, after_slot)
            response.next_page_token = encode_account_token(cursor, request)
        return response

    async def UpdateAccount(
        self, request: ledger_pb2.UpdateAccountRequest, context: Context
    ) -> ledger_pb2.UpdateAccountResponse:
        """Change name, metadata or limits; a new name is claimed before, the old one released."""
        source = require_valid(validation.update_account(request), context)
        account_id = parse_account_id(request.account_id)
        command = commands.UpdateAccount(
            account_id=account_id,
            request_id=request.request_id or new_request_id(),
            revision=request.revision,
            name=request.name if request.HasField("name") else None,
            metadata=(
                conversion.metadata(request.metadata.values)
                if request.HasField("metadata")
                else None
            ),
            limits=conversion.limits(request.limits) if request.HasField("limits") else None,
            actor=request.actor,
            source=source,
        )
        if command.name is None:
            result = await self._shards.execute(command, context)
        else:
            result = await self._rename(command, command.name, context)
        return ledger_pb2.UpdateAccountResponse(
            account=conversion.account(unwrap(result, AccountView))
        )

    async def FreezeAccount(
        self, request: ledger_pb2.FreezeAccountRequest, context: Context
    ) -> ledger_pb2.FreezeAccountResponse:
        """Let an account take no new transactions."""
        return ledger_pb2.FreezeAccountResponse(
            account=await self._change(commands.FreezeAccount, request, context)
        )

    async def UnfreezeAccount(
        self, request: ledger_pb2.UnfreezeAccountRequest, context: Context
    ) -> ledger_pb2.UnfreezeAccountResponse:
        """Let a frozen account take new transactions again."""
        return ledger_pb2.UnfreezeAccountResponse(
            account=await self._change(commands.UnfreezeAccount, request, context)
        )

    async def CloseAccount(
        self, request: ledger_pb2.CloseAccountRequest, context: Context
    ) -> ledger_pb2.CloseAccountResponse:
        """Close an empty account for good. It keeps its name."""
        return ledger_pb2.CloseAccountResponse(
            account=await self._change(commands.CloseAccount, request, context)
        )

    async def _new_account(
        self, request: ledger_pb2.CreateAccountRequest, source: commands.Source, context: Context
    ) -> commands.CreateAccount:
        """Fill in what the ledger's currencies and chart say."""
        ledger = request.ledger or MAIN_NAME
        request_id = request.request_id or new_request_id()
        currencies = await self._directory.currencies(
            ledger, {"currency": request.currency}, context
        )
        account_type = AccountType(request.type or AccountType.LIABILITY)
        if request.code:
            line = await self._directory.chart_line(ledger, request.code, context)
            if line and request.type not in (line.type, ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED):
                raise RefusedError(
                    Reason.TYPE_NOT_IN_CHART,
                    f"accounts under {line.code!r} ({line.name}) of ledger {ledger!r} are "
                    f"{line.type.name}, not {account_type.name}",
                    metadata={"ledger": ledger, "code": line.code, "type": line.type.name},
                    violations=[FieldViolation("type", f"is {line.type.name} for this code")],
                )
            account_type = line.type if line else account_type
        return commands.CreateAccount(
            account_id=derive_account_id(ledger, request_id),
            ledger=ledger,
            request_id=request_id,
            type=account_type,
            currency=currencies["currency"],
            code=request.code,
            name=request.name,
            limits=(
                conversion.limits(request.limits)
                if request.HasField("limits")
                else commands.NO_OVERDRAFT
            ),
            metadata=conversion.metadata(request.metadata),
            actor=request.actor,
            source=source,
        )

    async def _change(
        self,
        kind: type[commands.FreezeAccount | commands.UnfreezeAccount | commands.CloseAccount],
        request: validation.ChangeRequest,
        context: Context,
    ) -> ledger_pb2.Account:
        source = require_valid(validation.change_account(request), context)
        account_id = parse_account_id(request.account_id)
        request_id = request.request_id or new_request_id()
        command = kind(account_id, request_id, request.actor, source)
        result = await self._shards.execute(command, context)
        return conversion.account(unwrap(result, AccountView))

    async def _rename(self, command: commands.UpdateAccount, name: str, context: Context) -> Result:
        before = await self._find_account(command.account_id, context)
        if before is None or before.revision != command.revision:
            # It fails, or is a repeat, which must not claim a name that was given up since.
            claimed = False
        else:
            claimed = name not in ("", before.name)
        if claimed and before:
            await self._claim(before.ledger, name, command, context)
        result = await self._shards.execute(command, context)
        if before and claimed and isinstance(result, Failure):
            await self._release(before.ledger, name, command, context)
        if before and isinstance(result, AccountView):
            # The name before, and the one before that if giving it back was interrupted.
            for old in sorted({before.name, before.previous_name} - {"", result.name}):
                await self._release(before.ledger, old, command, context)
        return result

    async def _find_account(self, account_id: int, context: Context) -> AccountView | None:
        answer = await self._shards.query(account_id, queries.GetAccount(account_id), context)
        if isinstance(answer.result, Failure):
            return None
        return unwrap(answer.result, AccountView)

    async def _claim(
        self,
        ledger: str,
        name: str,
        command: commands.CreateAccount | commands.UpdateAccount,
        context: Context,
    ) -> None:
        """Take a name for an account; RefusedError says who else has it."""
        claim = commands.ClaimName(ledger, name, command.account_id, command.request_id)
        unwrap(await self._shards.execute(claim, context), NameView)

    async def _release(
        self,
        ledger: str,
        name: str,
        command: commands.CreateAccount | commands.UpdateAccount,
        context: Context,
    ) -> None:
        """Give a name back, unless the account has it after all: by another request like this."""
        account = await self._find_account(command.account_id, context)
        if account is None or account.name != name:
            release = commands.ReleaseName(ledger, name, command.account_id, command.request_id)
            unwrap(await self._shards.execute(release, context), NameView)


def _has_name(result: Result, name: str) -> bool:
    return isinstance(result, AccountView) and result.name == name


def _no_such_name(ledger: str, name: str) -> RefusedError:
    return RefusedError(
        Reason.ACCOUNT_NOT_FOUND,
        f"ledger {ledger!r} has no account named {name!r}",
        metadata={"ledger": ledger, "name": name},
        violations=[FieldViolation("name", "belongs to no account of the ledger")],
    )
