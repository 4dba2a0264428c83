"""What every command shares: the options for the gateway and the output, and clean errors."""

import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import click

from ledger_cli.output import FORMATS, Output
from ledger_client import AsyncLedgerClient, LedgerClient, LedgerError
from ledger_cluster.config import ClusterConfigError, split_address
from ledger_core.ids import new_request_id

DEFAULT_GATEWAY = "127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 10.0
DEFAULT_CLUSTER_CONFIG = "cluster_config.json"

PAGE_SIZE_MAX = 1_000

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")


class CliError(click.ClickException):
    """A command that failed: lines for people on stderr, exit code 1, and no traceback."""

    def show(self, file: Any = None) -> None:
        """Print the message as it is: it says what failed and what to do next."""
        click.echo(self.message, file=file, err=file is None)


@dataclass
class Session:
    """The global options of one run of the command."""

    gateway: str = field(
        default_factory=lambda: os.environ.get("LEDGER_GATEWAY") or DEFAULT_GATEWAY
    )
    timeout_s: float = DEFAULT_TIMEOUT_S
    output_format: str = "table"
    correlation_id: str = field(default_factory=lambda: os.environ.get("LEDGER_CORRELATION_ID", ""))
    repeat_with: str = ""
    """Options that make the write under way the same one again, for the text of an error."""

    @property
    def output(self) -> Output:
        """Where results go."""
        return Output(self.output_format)

    def client(self) -> LedgerClient:
        """Return a client of the gateway; a context manager."""
        self.check_gateway()
        return LedgerClient(self.gateway, timeout_s=self.timeout_s)

    def async_client(self) -> AsyncLedgerClient:
        """Return an asyncio client of the gateway; an async context manager."""
        self.check_gateway()
        return AsyncLedgerClient(self.gateway, timeout_s=self.timeout_s)

    def check_gateway(self) -> None:
        """Refuse an address that cannot be one; it may come from the environment."""
        try:
            split_address(self.gateway)
        except ValueError as error:
            raise click.UsageError(f"The gateway's address {self.gateway!r} {error}.") from None

    def remember_request(self, request_id: str | None) -> str:
        """Return the request id of a write: the one given, or a new one."""
        request_id = request_id or new_request_id()
        self.repeat_with = f"--request-id {request_id}"
        return request_id

    def remember_option(self, option: str, value: object) -> None:
        """Note a value that was worked out for this write and belongs to its repeat."""
        self.repeat_with += f" {option} {value}"


pass_session = click.make_pass_decorator(Session, ensure=True)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> Any:
        if value is not None:
            setattr(ctx.ensure_object(Session), name, value)
        return value

    return callback


def gateway_options(command: Command) -> Command:
    """Add --gateway, --timeout and --correlation-id, for calls of the gateway.

    Given to a subcommand they win over those before it.
    """
    command = click.option(
        "--correlation-id",
        metavar="ID",
        expose_value=False,
        callback=_remember("correlation_id"),
        help="Kept with what a write does, to follow it up (default: LEDGER_CORRELATION_ID).",
    )(command)
    command = click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True, max=3600),
        expose_value=False,
        callback=_remember("timeout_s"),
        help=f"How long a call may take (default: {DEFAULT_TIMEOUT_S:g}).",
    )(command)
    return click.option(
        "--gateway",
        metavar="HOST:PORT",
        expose_value=False,
        callback=_remember("gateway"),
        help=f"Where the gateway listens (default: {DEFAULT_GATEWAY}, or LEDGER_GATEWAY).",
    )(command)


def output_option(command: Command) -> Command:
    """Add -o; given to a subcommand it wins over the one before it."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        expose_value=False,
        callback=_remember("output_format"),
        help="Table for people; json and csv have amounts in minor units (default: table).",
    )(command)


def request_id_option(command: Command) -> Command:
    """Add --request-id, for writes."""
    return click.option(
        "--request-id",
        help="Repeating a call with the same id has no further effect (default: a new id).",
    )(command)


def actor_option(command: Command) -> Command:
    """Add --actor, for writes."""
    return click.option("--actor", default="", help="Who or what causes it.")(command)


def stale_option(command: Command) -> Command:
    """Add --stale, for reads."""
    return click.option(
        "--stale",
        is_flag=True,
        help="Let any replica answer, perhaps from a slightly older state.",
    )(command)


def paging_options(command: Command) -> Command:
    """Add --limit and --all, for lists."""
    command = click.option("--all", "everything", is_flag=True, help="Show all, however many.")(
        command
    )
    return click.option(
        "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show this many."
    )(command)


def page_size(limit: int, everything: bool) -> int:
    """Return how many items to ask for at once: one more than shown tells of more."""
    return PAGE_SIZE_MAX if everything else min(limit + 1, PAGE_SIZE_MAX)


def shown(found: Iterable[Item], limit: int, everything: bool) -> list[Item]:
    """Return the items to show, and say on stderr if there are more."""
    if everything:
        return list(found)
    items = list(islice(found, limit + 1))
    if len(items) > limit:
        click.echo(f"Only {limit} are shown; --all shows every one.", err=True)
    return items[:limit]


def cluster_config_option(command: Command) -> Command:
    """Add --cluster-config."""
    return click.option(
        "--cluster-config",
        metavar="FILE",
        default=DEFAULT_CLUSTER_CONFIG,
        show_default=True,
        help="The cluster configuration.",
    )(command)


def explain(error: LedgerError, session: Session) -> str:
    """Return an error of a call in lines: what, why, each field at fault, and what next."""
    what = str(error.status)
    if error.reason and error.reason != what:
        what = f"{what} ({error.reason})"
    lines = [f"{what}: {error.message}" if not error.violations else f"{what}: wrong request"]
    lines += [f"  {item.field}: {item.description}" for item in error.violations]
    if step := _next_step(error, session):
        lines.append(step)
    return "\n".join(lines)


def _next_step(error: LedgerError, session: Session) -> str:
    if error.status == "UNAVAILABLE" and error.reason != "SHARD_UNAVAILABLE":
        return (
            f"Is the gateway running at {session.gateway}? "
            "`ledger dev cluster` starts a local cluster with one."
        )
    if error.status == "UNAVAILABLE":
        return "`ledger cluster status` shows which shards have a leader."
    if error.status == "DEADLINE_EXCEEDED" and session.repeat_with:
        return (
            "It may or may not have happened. Repeat the command with "
            f"{session.repeat_with} to find out: it takes effect once."
        )
    if error.status == "DEADLINE_EXCEEDED":
        return "`ledger cluster status` shows the cluster's state; --timeout gives it longer."
    if error.status == "RESOURCE_EXHAUSTED":
        return "Try again in a moment; the request id makes a repeat safe."
    return ""


class CleanErrors(click.Group):
    """The root command: errors become lines on stderr and exit code 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn what fails into a CliError."""
        session = ctx.ensure_object(Session)
        try:
            return super().invoke(ctx)
        except LedgerError as error:
            raise CliError(explain(error, session)) from None
        except ClusterConfigError as error:
            raise CliError(str(error)) from None
        except LookupError as error:
            if type(error) is not LookupError:  # an IndexError or KeyError is a bug of ours
                raise CliError(_bug(error)) from error
            raise CliError(str(error)) from None
        except BrokenPipeError:
            raise  # whoever reads our output has seen enough; click ends quietly
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            raise CliError(f"{what}{(error.strerror or str(error)).lower()}") from None
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            raise CliError(_bug(error)) from error


def _bug(error: Exception) -> str:
    if os.environ.get("LEDGER_DEBUG"):
        return "".join(traceback.format_exception(error)).rstrip()
    return (
        f"Unexpected {type(error).__name__}: {error}. This is a bug in the command; "
        "LEDGER_DEBUG=1 shows where."
    )
