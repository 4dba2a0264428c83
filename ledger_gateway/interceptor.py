"""The outermost layer of every call: bounds what runs at once and maps every error to a status.

gRPC sends the text of an unhandled exception to the caller; here it ends in the log, and the
caller gets an incident id to quote.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from ledger_core.errors import LedgerError, OverloadedError, Reason
from ledger_gateway.errors import abort

_log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of our services; health checking and reflection pass untouched.

    At most ``calls_max`` of them run at once; a stream is one as long as it lasts. Health checks
    are not counted: they must get through when the service is full. A request has at most
    ``request_bytes_max``, or what ``larger_ones`` says for its method.
    """

    def __init__(
        self,
        service_names: Iterable[str],
        calls_max: int,
        request_bytes_max: int,
        larger_ones: Mapping[str, int] | None = None,
    ) -> None:
        self._request_bytes_max = request_bytes_max
        self._larger_ones = larger_ones or {}
        self._prefixes = tuple(f"/{name}/" for name in service_names)
        self._calls_max = calls_max
        self._calls = 0
        # The methods of the services are few and fixed: each is wrapped once.
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler of the method."""
        method: str = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(self._prefixes):
            return handler
        wrap = self._wrap if handler.unary_unary is not None else self._wrap_stream
        wrapped = self._wrapped[method] = wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        # Typed as optional in gRPC; unary_unary was checked, the generated code sets both others.
        handle: Any = handler.unary_unary
        parse: Any = handler.request_deserializer
        bytes_max = self._larger_ones.get(method, self._request_bytes_max)

        async def guarded(data: bytes, context: Context) -> Any:
            async with self._answering(method, context):
                _require_size(data, bytes_max)
                return await handle(_parse(parse, data), context)

        # No deserializer: the request is parsed inside, so that an unreadable one is answered in
        # our words (gRPC would say INTERNAL).
        return grpc.unary_unary_rpc_method_handler(
            guarded,
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    def _wrap_stream(self, method: str, handler: Handler) -> Handler:
        """Wrap a method that is a stream both ways: our services have no others."""
        handle: Any = handler.stream_stream
        parse: Any = handler.request_deserializer
        bytes_max = self._larger_ones.get(method, self._request_bytes_max)

        async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for data in requests:
                _require_size(data, bytes_max)
                yield _parse(parse, data)

        # No generator: gRPC would not close it when the caller goes while an answer is written.
        async def guarded(requests: AsyncIterator[bytes], context: Context) -> None:
            async with (
                self._answering(method, context),
                aclosing(handle(parsed(requests), context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        return grpc.stream_stream_rpc_method_handler(
            guarded,
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _answering(self, method: str, context: Context) -> AsyncIterator[None]:
        """Count a call, and end it with the status of what goes wrong."""
        self._calls += 1
        try:
            self._require_room()
            yield
        except LedgerError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        # Exception only: a cancelled call (CancelledError) has nobody to answer to.
        except Exception:
            incident = secrets.token_hex(4)
            _log.exception("call failed", method=method, incident=incident)
            await abort(context, _internal_error(incident))
        finally:
            self._calls -= 1

    def _require_room(self) -> None:
        if self._calls > self._calls_max:
            raise OverloadedError("the gateway is at its limit of concurrent calls; try again")


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
