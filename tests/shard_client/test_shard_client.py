"""The way to the shards: redirects, retries, batches and deadlines, against scripted nodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from scripted_node import ScriptedNode, ServedLink

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cluster import shard_client
from ledger_cluster.channels import EXECUTE_BYTES_MAX
from ledger_cluster.config import ClusterConfig, NodeConfig, ReplicaConfig, ShardConfig
from ledger_cluster.shard_client import ShardClient
from ledger_cluster.shards import Attempts
from ledger_core.accounts import AccountType
from ledger_core.commands import (
    CreateLedger,
    CreateTransaction,
    CreateTransfers,
    decode_command,
    encode_command,
)
from ledger_core.errors import (
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    Reason,
    ShardUnavailableError,
)
from ledger_core.ids import U32_MAX
from ledger_core.ledgers import USD, ChartCode
from ledger_core.queries import GetAccount
from ledger_core.results import Failure, TransfersView, encode_result
from ledger_core.transfers import TRANSFERS_PER_BLOCK_MAX, TransferForm

ACCOUNT = 7
NODES = ("a", "b", "c")
UNREACHABLE = "127.0.0.1:1"

Script = Callable[["Node", shard_pb2.ExecuteRequest | shard_pb2.QueryRequest], Awaitable[Any]]


def write(request_id: str = "r", description: str = "") -> CreateTransaction:
    return CreateTransaction(ACCOUNT, 1, description, True, request_id)


def echo(data: bytes) -> bytes:
    """A result that names the request it answers."""
    return encode_result(Failure(Reason.INTERNAL, decode_command(data).request_id))


@dataclass
class Node(shard_pb2_grpc.ShardServiceServicer):
    """Answers what its script says, and remembers what it was asked."""

    id: str
    script: Script
    seen: list[list[bytes]] = field(default_factory=list)
    links: ScriptedNode = field(default_factory=ScriptedNode)
    answering: set["asyncio.Task[None]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.links.asked = self.asked

    def asked(self, link: ServedLink, request: Any) -> None:
        """Answer a request when the script is done with it, whatever the others do."""
        task = asyncio.create_task(self._answer(link, request))
        self.answering.add(task)
        task.add_done_callback(self.answering.discard)

    async def _answer(self, link: ServedLink, request: Any) -> None:
        kind = request.WhichOneof("request")
        asked = getattr(request, kind)
        self.seen.append(list(asked.commands if kind == "execute" else asked.queries))
        try:
            answer = {kind: await self.script(self, asked)}
        except ValueError as error:
            answer = {"fault": str(error)}
        link.answer(shard_pb2.ShardReply(number=request.number, **answer))

    async def Execute(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def GetNodeStatus(self, request: Any, context: Any) -> Any:
        return await self.script(self, request)

    async def AuditReplica(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


async def leads(node: Node, request: Any) -> Any:
    if isinstance(request, shard_pb2.QueryRequest):
        results = [encode_result(Failure(Reason.INTERNAL, node.id)) for _ in request.queries]
        return shard_pb2.QueryResponse(
            outcome=shard_pb2.OUTCOME_OK, results=results, applied_index=5, age_ms=3
        )
    return shard_pb2.ExecuteResponse(
        outcome=shard_pb2.OUTCOME_OK, results=[echo(data) for data in request.commands]
    )


def follows(leader_id: str = "") -> Script:
    async def script(_node: Node, _request: Any) -> Any:
        return shard_pb2.ExecuteResponse(
            outcome=shard_pb2.OUTCOME_NOT_LEADER, leader_node_id=leader_id
        )

    return script


def fails_first(times: int, outcome: "shard_pb2.Outcome.ValueType") -> Script:
    async def script(node: Node, request: Any) -> Any:
        if len(node.seen) <= times:
            return shard_pb2.ExecuteResponse(outcome=outcome)
        return await leads(node, request)

    return script


class Cluster:
    """Scripted nodes and a client of theirs. A node with script None cannot be reached."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._servers: list[grpc.aio.Server] = []
        self._clients: list[ShardClient] = []

    async def client(self, a: Script | None, b: Script | None, c: Script | None) -> ShardClient:
        nodes = []
        for node_id, script in zip(NODES, (a, b, c), strict=True):
            address = link_address = UNREACHABLE
            if script is not None:
                node = self.nodes[node_id] = Node(node_id, script)
                server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
                shard_pb2_grpc.add_ShardServiceServicer_to_server(node, server)
                address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
                link_address = await node.links.start()
                await server.start()
                self._servers.append(server)
            nodes.append(NodeConfig(node_id, address, link_address))
        replicas = tuple(ReplicaConfig(f"s0-{node_id}", node_id) for node_id in NODES)
        config = ClusterConfig(
            "test",
            tuple(nodes),
            (ShardConfig(0, 0, U32_MAX, replicas),),
        )
        client = ShardClient(config)
        self._clients.append(client)
        return client

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        for server in self._servers:
            await server.stop(None)
        for node in self.nodes.values():
            node.links.stop()
            for task in node.answering:
                task.cancel()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    yield cluster
    await cluster.stop()


async def test_the_preferred_leader_is_asked_first_and_answers(cluster: Cluster) -> None:
    client = await cluster.client(leads, leads, leads)
    result = await client.execute(ACCOUNT, write(), 5)
    assert isinstance(result, Failure)
    assert result.message == "r"
    assert [len(cluster.nodes[n].seen) for n in NODES] == [1, 0, 0]


async def test_a_redirect_is_followed_at_once_and_remembered(cluster: Cluster) -> None:
    client = await cluster.client(follows("c"), follows("c"), leads)
    await client.execute(ACCOUNT, write("r1"), 5)
    await client.execute(ACCOUNT, write("r2"), 5)
    assert [len(cluster.nodes[n].seen) for n in NODES] == [1, 0, 2]


async def test_nodes_that_redirect_in_circles_end_at_the_deadline(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than the deadline, which so falls into it, not into an attempt.
    monkeypatch.setattr(shard_client, "_BACKOFF_S_MIN", 2.0)
    client = await cluster.client(follows("b"), follows("c"), follows("a"))
    with pytest.raises(ShardUnavailableError, match="not the leader"):
        await client.execute(ACCOUNT, write(), 0.5)
    assert [len(cluster.nodes[n].seen) for n in NODES] == [2, 1, 1]


async def test_an_unknown_leader_is_searched_among_the_replicas(cluster: Cluster) -> None:
    client = await cluster.client(follows(), follows(), leads)
    await client.execute(ACCOUNT, write(), 5)
    assert len(cluster.nodes["c"].seen) == 1


async def test_a_node_that_is_down_is_passed_over(cluster: Cluster) -> None:
    client = await cluster.client(None, leads, leads)
    await client.execute(ACCOUNT, write(), 5)


async def test_a_write_whose_leader_lost_its_leadership_is_sent_again_as_it_was(
    cluster: Cluster,
) -> None:
    script = fails_first(1, shard_pb2.OUTCOME_UNKNOWN)
    client = await cluster.client(script, follows("a"), follows("a"))
    await client.execute(ACCOUNT, write(), 5)
    first, second = cluster.nodes["a"].seen
    assert first == second


async def test_a_leader_that_stalls_is_given_up_before_the_deadline(cluster: Cluster) -> None:
    async def stalls(_node: Node, _request: Any) -> Any:
        await asyncio.Event().wait()

    client = await cluster.client(stalls, leads, leads)
    await client.execute(ACCOUNT, write(), 8)
    assert cluster.nodes["a"].seen
    assert cluster.nodes["b"].seen == cluster.nodes["a"].seen


async def test_no_leader_until_the_deadline_means_that_nothing_was_done(cluster: Cluster) -> None:
    client = await cluster.client(follows(), follows(), follows())
    with pytest.raises(ShardUnavailableError, match=r"shard 0 gave no result within 0\.4 s"):
        await client.execute(ACCOUNT, write(), 0.4)


async def test_no_node_to_be_reached_means_that_nothing_was_done(cluster: Cluster) -> None:
    client = await cluster.client(None, None, None)
    with pytest.raises(ShardUnavailableError, match="cannot be reached"):
        await client.execute(ACCOUNT, write(), 0.6)


@pytest.mark.parametrize("outcome", [shard_pb2.OUTCOME_UNKNOWN, None])
async def test_a_write_that_may_have_arrived_has_an_unknown_outcome(
    cluster: Cluster, outcome: "shard_pb2.Outcome.ValueType | None"
) -> None:
    async def script(node: Node, _request: Any) -> Any:
        if outcome is None:
            await asyncio.Event().wait()
        return shard_pb2.ExecuteResponse(outcome=outcome)

    client = await cluster.client(script, follows("a"), follows("a"))
    with pytest.raises(OutcomeUnknownError, match="repeat it with the same request id"):
        await client.execute(ACCOUNT, write(), 0.5)


async def test_a_write_whose_answer_comes_just_too_late_has_an_unknown_outcome(
    cluster: Cluster,
) -> None:
    """The answer is there when the deadline has passed, but the caller was not told of that yet."""
    client = await cluster.client(leads, leads, leads)
    loop = asyncio.get_running_loop()

    class Link:
        async def ask(self, request: Any, _timeout_s: float) -> Any:
            answer = loop.create_future()
            loop.call_later(0.02, answer.set_result, None)
            # Both timers, the answer's and the deadline's, are due when the loop gets to run.
            loop.call_soon(time.sleep, 0.2)
            await answer
            execute = await leads(cluster.nodes["a"], request.execute)
            return shard_pb2.ShardReply(execute=execute)

    for lane in client._lanes.values():
        lane._links = dict.fromkeys(NODES, Link())  # type: ignore[arg-type]
    with pytest.raises(OutcomeUnknownError):
        await client.execute(ACCOUNT, write(), 0.05)


async def test_a_read_without_answer_was_simply_not_done(cluster: Cluster) -> None:
    async def stalls(_node: Node, _request: Any) -> Any:
        await asyncio.Event().wait()

    client = await cluster.client(stalls, stalls, stalls)
    with pytest.raises(ShardUnavailableError):
        await client.query(ACCOUNT, GetAccount(ACCOUNT), 0.3)


async def test_a_full_shard_refuses_at_once(cluster: Cluster) -> None:
    async def full(_node: Node, _request: Any) -> Any:
        return shard_pb2.ExecuteResponse(
            outcome=shard_pb2.OUTCOME_RESOURCE_EXHAUSTED, message="the disk is full"
        )

    client = await cluster.client(full, full, full)
    with pytest.raises(OverloadedError, match="the disk is full"):
        await client.execute(ACCOUNT, write(), 5)
    assert len(cluster.nodes["a"].seen) == 1


async def test_a_refusal_after_a_lost_answer_leaves_the_outcome_open(cluster: Cluster) -> None:
    async def loses_one_then_is_full(node: Node, _request: Any) -> Any:
        if len(node.seen) == 1:
            return shard_pb2.ExecuteResponse(outcome=shard_pb2.OUTCOME_UNKNOWN)
        return shard_pb2.ExecuteResponse(
            outcome=shard_pb2.OUTCOME_RESOURCE_EXHAUSTED, message="the disk is full"
        )

    client = await cluster.client(loses_one_then_is_full, follows("a"), follows("a"))
    with pytest.raises(OutcomeUnknownError, match="the disk is full; the write may have happened"):
        await client.execute(ACCOUNT, write(), 5.0)


async def test_a_node_that_does_not_understand_is_not_asked_for_ever(cluster: Cluster) -> None:
    async def malformed(_node: Node, _request: Any) -> Any:
        raise ValueError("malformed request")

    client = await cluster.client(malformed, malformed, malformed)
    with pytest.raises(LedgerError, match="malformed request") as caught:
        await client.execute(ACCOUNT, write(), 5)
    assert caught.value.reason is Reason.INTERNAL
    assert len(cluster.nodes["a"].seen) == 1


async def test_a_fault_after_a_lost_answer_leaves_the_outcome_open(cluster: Cluster) -> None:
    async def loses_one_then_fails(node: Node, _request: Any) -> Any:
        if len(node.seen) == 1:
            return shard_pb2.ExecuteResponse(outcome=shard_pb2.OUTCOME_UNKNOWN)
        raise ValueError("malformed request")

    client = await cluster.client(loses_one_then_fails, follows("a"), follows("a"))
    with pytest.raises(OutcomeUnknownError, match="malformed request; the write may have happened"):
        await client.execute(ACCOUNT, write(), 5.0)


async def test_calls_that_come_together_travel_together_and_get_their_own_results(
    cluster: Cluster,
) -> None:
    client = await cluster.client(leads, leads, leads)
    results = await asyncio.gather(
        *(client.execute(ACCOUNT, write(f"r{i}"), 5) for i in range(100))
    )
    assert [result.message for result in results if isinstance(result, Failure)] == [
        f"r{i}" for i in range(100)
    ]
    assert len(cluster.nodes["a"].seen) == 1


async def test_batches_are_bounded_in_bytes(cluster: Cluster) -> None:
    client = await cluster.client(leads, leads, leads)
    description = "€" * 1000
    await asyncio.gather(
        *(client.execute(ACCOUNT, write(f"r{i}", description), 5) for i in range(300))
    )
    batches = cluster.nodes["a"].seen
    assert sum(map(len, batches)) == 300
    assert all(sum(map(len, batch)) <= EXECUTE_BYTES_MAX for batch in batches)
    assert len(batches) < 10


async def test_what_a_message_had_no_room_for_is_asked_again(cluster: Cluster) -> None:
    """Commands are sent once more, and find their first result."""

    async def answers_two(_node: Node, request: Any) -> Any:
        done = [echo(command) for command in request.commands]
        done[2:] = [b""] * len(done[2:])
        return shard_pb2.ExecuteResponse(outcome=shard_pb2.OUTCOME_OK, results=done)

    client = await cluster.client(answers_two, answers_two, answers_two)
    results = await asyncio.gather(*(client.execute(ACCOUNT, write(f"r{i}"), 5) for i in range(7)))
    assert [result.message for result in results if isinstance(result, Failure)] == [
        f"r{i}" for i in range(7)
    ]
    assert [len(batch) for batch in cluster.nodes["a"].seen] == [7, 5, 3, 1]


def charted(lines: int) -> CreateLedger:
    """A command of some 400 bytes for each line of its chart."""
    chart = [ChartCode(f"1{n}", "€" * 128, AccountType.ASSET) for n in range(lines)]
    return CreateLedger("books", "large", "", [USD], chart)


def block(count: int) -> CreateTransfers:
    """Transfers as columns: 41 bytes each."""
    return CreateTransfers(
        ACCOUNT,
        "main",
        USD,
        bytes([TransferForm.IN]) * count,
        ACCOUNT.to_bytes(8, "little") * count,
        bytes(8 * count),
        (1).to_bytes(8, "little") * count,
        bytes(16 * count),
    )


async def sent_to(node: Node) -> None:
    """Wait until a node was asked."""
    while not node.seen:  # noqa: ASYNC110  (it is soon)
        await asyncio.sleep(0.001)


async def takes_blocks(_node: Node, request: Any) -> Any:
    done = [encode_result(TransfersView(1, 1, b"", {}, {})) for _ in request.commands]
    return shard_pb2.ExecuteResponse(outcome=shard_pb2.OUTCOME_OK, results=done)


async def test_a_block_of_transfers_goes_at_once_and_alone(cluster: Cluster) -> None:
    """Also where as many batches as may be are on their way."""
    held = asyncio.Event()

    async def holds_others(node: Node, request: Any) -> Any:
        if len(request.commands[0]) < 1_000:
            await held.wait()
            return await leads(node, request)
        return await takes_blocks(node, request)

    client = await cluster.client(holds_others, follows("a"), follows("a"))
    others = []
    for number in range(6):
        others.append(asyncio.ensure_future(client.execute(ACCOUNT, write(f"r{number}"), 5)))
        await asyncio.sleep(0.005)
    sent = block(TRANSFERS_PER_BLOCK_MAX)
    await asyncio.gather(*(client.execute(ACCOUNT, sent, 5) for _ in range(3)))
    assert cluster.nodes["a"].seen[-3:] == [[encode_command(sent)]] * 3
    held.set()
    await asyncio.gather(*others)


async def test_a_reply_to_a_block_that_makes_no_sense_is_an_error_of_the_block(
    cluster: Cluster,
) -> None:
    async def says_too_much(node: Node, request: Any) -> Any:
        reply = await takes_blocks(node, request)
        reply.results.append(reply.results[0])
        return reply

    client = await cluster.client(says_too_much, follows("a"), follows("a"))
    with pytest.raises(LedgerError, match="made no sense") as caught:
        await client.execute(ACCOUNT, block(1), 5)
    assert caught.value.reason is Reason.INTERNAL


async def test_a_block_follows_redirects_and_is_sent_again_as_it_was(cluster: Cluster) -> None:
    async def loses_one(node: Node, request: Any) -> Any:
        if len(node.seen) == 1:
            return shard_pb2.ExecuteResponse(outcome=shard_pb2.OUTCOME_UNKNOWN)
        return await takes_blocks(node, request)

    client = await cluster.client(follows("c"), follows("c"), loses_one)
    assert isinstance(await client.execute(ACCOUNT, block(1), 5), TransfersView)
    first, second = cluster.nodes["c"].seen
    assert first == second == [encode_command(block(1))]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (shard_pb2.OUTCOME_NOT_LEADER, ShardUnavailableError),
        (shard_pb2.OUTCOME_UNKNOWN, OutcomeUnknownError),
        (None, OutcomeUnknownError),
    ],
)
async def test_a_block_without_a_result_ends_at_its_deadline(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    outcome: "shard_pb2.Outcome.ValueType | None",
    error: type[LedgerError],
) -> None:
    async def script(_node: Node, _request: Any) -> Any:
        if outcome is None:
            await asyncio.Event().wait()
        return shard_pb2.ExecuteResponse(outcome=outcome)

    # Longer than the deadline, which so falls into it, or into an attempt.
    monkeypatch.setattr(shard_client, "_BACKOFF_S_MIN", 2.0)
    client = await cluster.client(script, script, script)
    attempts = Attempts()
    began_at = time.monotonic()
    with pytest.raises(error, match=r"shard 0 gave no result within 0\.2 s"):
        await client.execute(ACCOUNT, block(1), 0.2, attempts)
    assert time.monotonic() - began_at >= 0.2
    assert attempts.reached_node is (error is OutcomeUnknownError)


async def test_a_block_for_which_nobody_waits_is_not_sent_again(cluster: Cluster) -> None:
    client = await cluster.client(follows(), follows(), follows())
    call = asyncio.ensure_future(client.execute(ACCOUNT, block(1), 5))
    await sent_to(cluster.nodes["b"])
    call.cancel()
    await asyncio.wait([call])
    seen = {node: len(cluster.nodes[node].seen) for node in NODES}
    await asyncio.sleep(0.06)
    assert {node: len(cluster.nodes[node].seen) for node in NODES} == seen


async def test_a_client_that_closes_waits_for_blocks_under_way(cluster: Cluster) -> None:
    held = asyncio.Event()

    async def slow(node: Node, request: Any) -> Any:
        await held.wait()
        return await takes_blocks(node, request)

    client = await cluster.client(slow, slow, slow)
    call = asyncio.ensure_future(client.execute(ACCOUNT, block(1), 5))
    await sent_to(cluster.nodes["a"])
    closing = asyncio.ensure_future(client.close())
    await asyncio.sleep(0.005)
    assert not closing.done()
    held.set()
    assert isinstance(await call, TransfersView)
    await closing
    with pytest.raises(ShardUnavailableError, match="stopping"):
        await client.execute(ACCOUNT, block(1), 5)


async def test_what_waits_is_bounded_in_bytes_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_client, "_WAITING_BYTES_MAX", 1 << 20)
    client = await cluster.client(leads, leads, leads)
    sent = charted(100)
    results = await asyncio.gather(
        *(client.execute(ACCOUNT, sent, 5) for _ in range(100)), return_exceptions=True
    )
    refused = [error for error in results if isinstance(error, BaseException)]
    taken = (1 << 20) // len(encode_command(sent)) + 1
    assert len(results) - len(refused) == taken
    assert all(isinstance(error, OverloadedError) for error in refused)
    # There is room again.
    await client.execute(ACCOUNT, sent, 5)


async def test_a_call_that_is_larger_than_a_batch_goes_alone(cluster: Cluster) -> None:
    client = await cluster.client(leads, leads, leads)
    large = charted(800)
    assert len(encode_command(large)) > EXECUTE_BYTES_MAX
    calls = [write("r1"), large, write("r2")]
    await asyncio.gather(*(client.execute(ACCOUNT, call, 5) for call in calls))
    sent = [
        [decode_command(data).request_id for data in batch] for batch in cluster.nodes["a"].seen
    ]
    assert sorted(sent) == [[large.request_id], ["r1"], ["r2"]]


async def test_a_call_that_gave_up_is_not_sent_again(cluster: Cluster) -> None:
    client = await cluster.client(follows(), follows(), follows())
    with pytest.raises((ShardUnavailableError, OutcomeUnknownError)):
        await client.execute(ACCOUNT, write("early"), 0.2)
    for node in cluster.nodes.values():
        node.seen.clear()
        node.script = leads
    await client.execute(ACCOUNT, write("late"), 5)
    sent = [decode_command(d).request_id for n in NODES for b in cluster.nodes[n].seen for d in b]
    assert sent == ["late"]


async def test_stale_reads_are_answered_by_any_replica_and_tell_their_age(
    cluster: Cluster,
) -> None:
    client = await cluster.client(leads, leads, leads)
    answers = [await client.query(ACCOUNT, GetAccount(ACCOUNT), 5, stale=True) for _ in range(60)]
    assert {(a.shard_id, a.applied_index, a.age_ms) for a in answers} == {(0, 5, 3)}
    assert all(cluster.nodes[n].seen for n in NODES)


async def test_a_closed_client_refuses_new_calls(cluster: Cluster) -> None:
    client = await cluster.client(leads, leads, leads)
    await client.close()
    with pytest.raises(ShardUnavailableError, match="stopping"):
        await client.execute(ACCOUNT, write(), 5)


async def test_serving_shards_asks_every_node_and_refreshes_the_leader(cluster: Cluster) -> None:
    def status(*, serving: bool) -> Script:
        async def script(node: Node, request: Any) -> Any:
            if not isinstance(request, shard_pb2.GetNodeStatusRequest):
                return await leads(node, request)
            replica = shard_pb2.ReplicaStatus(shard_id=0, serving=serving)
            return shard_pb2.NodeStatus(node_id=node.id, replicas=[replica])

        return script

    client = await cluster.client(status(serving=False), None, status(serving=True))
    assert await client.serving_shards() == {0: True}
    await client.execute(ACCOUNT, write(), 5)
    assert [len(cluster.nodes[n].seen) for n in ("a", "c")] == [0, 1]

    down = await cluster.client(None, None, None)
    assert await down.serving_shards() == {0: False}


async def test_a_node_whose_link_address_cannot_be_reached_does_not_serve(
    cluster: Cluster,
) -> None:
    """Its gRPC server says that it leads, but no call would reach it."""

    async def status(node: Node, _request: Any) -> Any:
        replica = shard_pb2.ReplicaStatus(shard_id=0, serving=True)
        return shard_pb2.NodeStatus(node_id=node.id, replicas=[replica])

    client = await cluster.client(status, None, None)
    cluster.nodes["a"].links.stop()
    assert await client.serving_shards() == {0: False}
