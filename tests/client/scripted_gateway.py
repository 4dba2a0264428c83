"""A gRPC server that answers `ledger.v1.LedgerService` from a script, and remembers requests."""

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from ledger.v1 import ledger_pb2


@dataclass
class Failing:
    """Ends the call with this status and these details."""

    code: grpc.StatusCode
    message: str = "scripted"
    details: list[Message] = field(default_factory=list)
    raw: bytes | None = None

    def abort(self, context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        if self.details or self.raw is not None:
            data = status.SerializeToString() if self.raw is None else self.raw
            context.set_trailing_metadata((("grpc-status-details-bin", data),))
        context.abort(self.code, self.message)


def info(reason: str, **metadata: str) -> Message:
    return error_details_pb2.ErrorInfo(reason=reason, domain="ledger", metadata=metadata)


def retry_after(seconds: float) -> Message:
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


Step = Message | Failing | Callable[[grpc.ServicerContext], Message]


@dataclass
class ScriptedGateway:
    """``steps`` are taken one a call; the last one answers all further calls."""

    steps: list[Step]
    requests: list[Any] = field(default_factory=list)
    times_left_s: list[float] = field(default_factory=list)
    correlation_ids: list[str] = field(default_factory=list)
    target: str = ""

    def answer(self, request: Message, context: grpc.ServicerContext) -> Message:
        self.requests.append(request)
        self.times_left_s.append(context.time_remaining() or 0.0)
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self.correlation_ids.append(metadata.get("x-correlation-id", ""))
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if callable(step):
            return step(context)
        if not isinstance(step, Failing):
            return step
        step.abort(context)
        raise AssertionError


@contextmanager
def scripted_gateway(*steps: Step) -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway(list(steps))
    service = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"]
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            gateway.answer,
            request_deserializer=getattr(ledger_pb2, method.input_type.name).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for method in service.methods
    }
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service.full_name, handlers),)
    )
    gateway.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield gateway
    finally:
        server.stop(0).wait()
