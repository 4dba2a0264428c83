"""Our methods are added to the server once each, wrapped, and not as registered ones."""

from typing import Any

import grpc

from ledger.v1.reports_pb2_grpc import ReportServiceServicer, add_ReportServiceServicer_to_server
from ledger_gateway.guarded_methods import GuardedMethods
from ledger_gateway.reports import REPORT_SERVICE_NAME


class Server:
    """Notes what is added. It takes no registered methods: each costs something in every call."""

    def __init__(self) -> None:
        self.services: list[Any] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.services.extend(handlers)


def test_the_generated_functions_add_a_service_once_and_register_nothing() -> None:
    server: Any = Server()
    guarded: Any = GuardedMethods(server, calls_max=1, request_bytes_max=1)
    add_ReportServiceServicer_to_server(ReportServiceServicer(), guarded)
    (service,) = server.services
    assert isinstance(service, grpc.ServiceRpcHandler)
    assert service.service_name() == REPORT_SERVICE_NAME
