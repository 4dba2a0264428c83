"""The outermost layer of every call: bounds what runs at once and maps every error to a status.

gRPC sends the text of an unhandled exception to the caller; here it ends in the log, and the
caller gets an incident id to quote.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Never, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from ledger_core.errors import LedgerError, OverloadedError, Reason
from ledger_gateway.errors import abort

_log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class GuardedMethods:
    """Takes the methods of our services for a server, and wraps each of them.

    Services are added to this, by the generated functions, as they would be to the server. At most
    ``calls_max`` calls run at once; a stream is one as long as it lasts. A request has at most
    ``request_bytes_max``, or what ``larger_ones`` says for its method. Health checks are added to
    the server itself, and not counted: they must get through when the service is full.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        calls_max: int,
        request_bytes_max: int,
        larger_ones: Mapping[str, int] | None = None,
    ) -> None:
        self._server = server
        self._request_bytes_max = request_bytes_max
        self._larger_ones = larger_ones or {}
        self._calls_max = calls_max
        self._calls = 0

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add the methods of a service.

        Not as registered ones: for each call that it accepts, grpc.aio looks at every registered
        method, and there are some 40. Nor behind an interceptor, which is asked for each call anew.
        """
        wrapped = {
            name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, wrapped),)
        )

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Do nothing: these are the same methods once more."""

    def _wrap(self, method: str, handler: Handler) -> Handler:
        """Wrap a method; of no service is the request alone a stream."""
        bytes_max = self._larger_ones.get(method, self._request_bytes_max)
        # No deserializer: the request is parsed inside, so that an unreadable one is answered in
        # our words (gRPC would say INTERNAL).
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._guarded(method, handler, bytes_max),
                request_deserializer=None,
                response_serializer=handler.response_serializer,
            )
        guarded = self._guarded_stream(method, handler, bytes_max)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                guarded,
                request_deserializer=None,
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_stream_rpc_method_handler(
            guarded,
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, method: str, handler: Handler, bytes_max: int) -> Any:
        # Typed as optional in gRPC; unary_unary was checked, the generated code sets both others.
        handle: Any = handler.unary_unary
        parse: Any = handler.request_deserializer

        async def guarded(data: bytes, context: Context) -> Any:
            self._calls += 1
            try:
                self._require_room()
                _require_size(data, bytes_max)
                return await handle(_parse(parse, data), context)
            # Exception only: a cancelled call (CancelledError) has nobody to answer to.
            except Exception as error:
                await _answer_error(method, context, error)
            finally:
                self._calls -= 1

        return guarded

    def _guarded_stream(self, method: str, handler: Handler, bytes_max: int) -> Any:
        handle: Any = handler.stream_stream or handler.unary_stream
        parse: Any = handler.request_deserializer

        def parsed_one(data: bytes) -> Any:
            _require_size(data, bytes_max)
            return _parse(parse, data)

        async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for data in requests:
                yield parsed_one(data)

        # No generator: gRPC would not close it when the caller goes while an answer is written.
        async def guarded(asked: Any, context: Context) -> None:
            self._calls += 1
            try:
                self._require_room()
                request = parsed_one(asked) if handler.unary_stream else parsed(asked)
                async with aclosing(handle(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)
            except Exception as error:
                await _answer_error(method, context, error)
            finally:
                self._calls -= 1

        return guarded

    def _require_room(self) -> None:
        if self._calls > self._calls_max:
            raise OverloadedError("the gateway is at its limit of concurrent calls; try again")


async def _answer_error(method: str, context: Context, error: Exception) -> Never:
    """End a call with the status of what went wrong."""
    if isinstance(error, LedgerError):
        await abort(context, error)
    if isinstance(error, grpc.aio.AbortError):
        raise error
    incident = secrets.token_hex(4)
    _log.exception("call failed", method=method, incident=incident, exc_info=error)
    await abort(context, _internal_error(incident))


def _require_size(data: bytes, bytes_max: int) -> None:
    if len(data) > bytes_max:
        raise LedgerError(
            Reason.OVERLOADED,
            f"the request has {len(data):,} bytes; at most {bytes_max:,} are taken",
        )


def _parse(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise LedgerError(
            Reason.INVALID_FIELDS,
            "the request is not a valid protobuf message of its type (strings must be UTF-8)",
        ) from None


def _internal_error(incident: str) -> LedgerError:
    return LedgerError(
        Reason.INTERNAL,
        f"internal error: the operators find it in the gateway's log as incident {incident}",
        metadata={"incident": incident},
    )
