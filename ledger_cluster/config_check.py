"""Checks of a cluster configuration file: every fault, each with its path.

A check goes on after a fault wherever what follows can still be judged; it stays silent where a
fault already reported would only be repeated in other words.
"""

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import Any, TypeVar

KEY_MAX = 2**32 - 1
"""The last shard key."""
NODES_MAX = 128
SHARDS_MAX = 1024
SHARD_ID_MAX = 65_535
REPLICA_COUNTS = (1, 3, 5, 7)
"""Odd, for an even count needs one more node for a majority and survives no more failures."""
FILE_BYTES_MAX = 8 * 2**20

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")
_ID_RULE = (
    "must be 1 to 64 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit"
)
_BOUND = re.compile(r"[0-9a-f]{8}\Z")
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*\Z"
)
_DOTTED_DIGITS = re.compile(r"[0-9.]+\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")

_ADVICE = {
    "link_address": "write where the node listens for the other nodes and for gateways: a "
    "host:port of its own, such as 127.0.0.1:7003, open to them and to nobody else",
}
"""What to write where a key is missing."""

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong, and where: ``path`` is like ``shards[3].replicas[0].node_id``."""

    path: str
    message: str


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys that were given more than once."""

    repeated: list[str]


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    keys = [key for key, _ in pairs]
    result.repeated = sorted({key for key in keys if keys.count(key) > 1})
    return result


def parse_document(data: str | bytes) -> tuple[Any, list[Fault]]:
    """Parse JSON; of a text that is no JSON there is one fault, with its line and column."""
    if len(data) > FILE_BYTES_MAX:
        return None, [Fault("", f"the file is larger than {FILE_BYTES_MAX // 2**20} MiB")]
    try:
        text = data.decode() if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_object), []
    except UnicodeDecodeError as error:
        return None, [Fault("", f"not UTF-8 text: wrong byte at offset {error.start}")]
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return None, [Fault("", f"not JSON: {error.msg} at {where}")]
    except RecursionError:
        return None, [Fault("", "not a cluster configuration: nested too deeply")]
    except ValueError:  # an integer of more digits than Python converts
        return None, [Fault("", "not a cluster configuration: a number is too long")]


def check_document(document: Any) -> list[Fault]:
    """Return everything that is wrong with a parsed configuration, in the order of the file."""
    check = _Check()
    check.whole(document)
    return check.faults


def split_address(address: str) -> tuple[str, int]:
    """Return host (IPv6 without its brackets) and port; ValueError says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise ValueError("must be host:port, such as 127.0.0.1:7000")
    if not _PORT.match(port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"has port {port!r}; a port is a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"has {host!r} in brackets, which is no IPv6 address") from None
    elif ":" in host:
        raise ValueError("must have an IPv6 host in brackets, such as [::1]:7000")
    elif _DOTTED_DIGITS.match(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"has host {host!r}, which is no IPv4 address") from None
    elif not _HOST_NAME.match(host):
        raise ValueError(f"has host {host!r}, which is neither an IP address nor a host name")
    return host, int(port)


def _kind(value: Any) -> str:
    """Name a JSON value's type as people do."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        str: "a string",
        int: "a number",
        float: "a number",
        list: "a list",
    }
    return names.get(type(value), "an object")


@dataclass(frozen=True, slots=True)
class _Range:
    path: str
    shard: str
    lower: int
    upper: int


class _Check:
    """Walks the document from the top and collects faults."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.node_ids: dict[str, str] = {}
        self.nodes_readable = True
        self.addresses: dict[tuple[str, int], str] = {}
        self.shard_ids: dict[int, str] = {}
        self.replica_ids: dict[str, str] = {}
        self.ranges: list[_Range] = []
        self.ranges_readable = True
        self.replica_counts: list[tuple[str, int]] = []

    def fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(path, message))

    def whole(self, document: Any) -> None:
        top = self.record(document, "", ("cluster_id", "nodes", "shards"))
        if top is None:
            return
        if "cluster_id" in top:
            self.name(top["cluster_id"], "cluster_id")
        nodes = self.items(top, "nodes", "", NODES_MAX)
        self.nodes_readable = bool(nodes)
        for path, node in nodes:
            self.node(node, path)
        shards = self.items(top, "shards", "", SHARDS_MAX)
        for path, shard in shards:
            self.shard(shard, path)
        if shards:
            self.coverage()
            self.equal_replica_counts()

    def node(self, value: Any, path: str) -> None:
        node = self.record(value, path, ("id", "address", "link_address"))
        if node is None:
            self.nodes_readable = False
            return
        node_id = self.name(node["id"], f"{path}.id") if "id" in node else None
        if node_id is None:
            self.nodes_readable = False
        else:
            self.unique(self.node_ids, node_id, f"{path}.id", f"node id {node_id!r}")
        for key in ("address", "link_address"):
            if key in node:
                self.address(node[key], f"{path}.{key}")

    def address(self, value: Any, path: str) -> None:
        if not isinstance(value, str):
            self.fault(path, f"must be a string, host:port, not {_kind(value)}")
            return
        try:
            host, port = split_address(value)
        except ValueError as error:
            self.fault(path, f"{value!r} {error}")
            return
        try:
            host = str(ipaddress.ip_address(host))
        except ValueError:
            host = host.lower()
        self.unique(self.addresses, (host, port), path, f"address {value!r}")

    def shard(self, value: Any, path: str) -> None:
        shard = self.record(value, path, ("id", "lower_bound", "upper_bound", "replicas"))
        if shard is None:
            self.ranges_readable = False
            return
        name = path
        if "id" in shard:
            shard_id = shard["id"]
            if type(shard_id) is not int or not 0 <= shard_id <= SHARD_ID_MAX:
                self.fault(f"{path}.id", f"must be a whole number from 0 to {SHARD_ID_MAX}")
            else:
                name = f"shard {shard_id}"
                self.unique(self.shard_ids, shard_id, f"{path}.id", f"shard id {shard_id}")
        self.bounds(shard, path, name)
        replicas = self.items(shard, "replicas", path, REPLICA_COUNTS[-1])
        if replicas:
            self.replicas(replicas, path, name)

    def bounds(self, shard: dict[str, Any], path: str, name: str) -> None:
        lower = self.bound(shard, "lower_bound", path)
        upper = self.bound(shard, "upper_bound", path)
        if lower is None or upper is None:
            self.ranges_readable = False
        elif lower > upper:
            self.ranges_readable = False
            self.fault(
                f"{path}.lower_bound",
                f"{name} begins at {lower:08x}, which is after its upper_bound {upper:08x}",
            )
        else:
            self.ranges.append(_Range(path, name, lower, upper))

    def bound(self, shard: dict[str, Any], key: str, path: str) -> int | None:
        if key not in shard:
            return None
        value = shard[key]
        if not isinstance(value, str) or not _BOUND.match(value):
            self.fault(f"{path}.{key}", "must be a string of 8 lower-case hex digits")
            return None
        return int(value, 16)

    def replicas(self, replicas: list[tuple[str, Any]], path: str, name: str) -> None:
        if len(replicas) in REPLICA_COUNTS:
            self.replica_counts.append((f"{path}.replicas", len(replicas)))
        else:
            allowed = ", ".join(map(str, REPLICA_COUNTS))
            self.fault(
                f"{path}.replicas",
                f"{name} has {len(replicas)} replicas; it must have one of {allowed}",
            )
        seen: dict[str, str] = {}
        for replica_path, value in replicas:
            replica = self.record(value, replica_path, ("id", "node_id"))
            if replica is None:
                continue
            if "id" in replica:
                replica_id = self.name(replica["id"], f"{replica_path}.id")
                if replica_id is not None:
                    self.unique(
                        self.replica_ids,
                        replica_id,
                        f"{replica_path}.id",
                        f"replica id {replica_id!r}",
                    )
            if "node_id" in replica:
                self.placement(replica["node_id"], f"{replica_path}.node_id", name, seen)

    def placement(self, value: Any, path: str, shard: str, seen: dict[str, str]) -> None:
        node_id = self.name(value, path)
        if node_id is None:
            return
        if self.nodes_readable and node_id not in self.node_ids:
            known = ", ".join(self.node_ids)
            self.fault(path, f"there is no node {node_id!r}; the nodes are {known}")
        if node_id in seen:
            self.fault(
                path,
                f"{shard} already has a replica on node {node_id!r} ({seen[node_id]}); "
                "two on one node would fail together",
            )
        else:
            seen[node_id] = path

    def coverage(self) -> None:
        """Every key must be in exactly one range. Gaps are judged only if all ranges are known."""
        last: _Range | None = None
        for item in sorted(self.ranges, key=lambda item: (item.lower, item.upper)):
            begin = last.upper + 1 if last else 0
            if item.lower < begin and last:
                self.fault(
                    f"{item.path}.lower_bound",
                    f"keys {item.lower:08x}..{min(item.upper, last.upper):08x} are in both "
                    f"{last.shard} and {item.shard}",
                )
            elif item.lower > begin and self.ranges_readable:
                before = f"{last.shard} ends at {last.upper:08x}" if last else "it is the first one"
                self.fault(
                    f"{item.path}.lower_bound",
                    f"keys {begin:08x}..{item.lower - 1:08x} are in no shard: {item.shard} begins "
                    f"at {item.lower:08x} and {before}",
                )
            if last is None or item.upper > last.upper:
                last = item
        if last and last.upper < KEY_MAX and self.ranges_readable:
            self.fault(
                f"{last.path}.upper_bound",
                f"keys {last.upper + 1:08x}..{KEY_MAX:08x} are in no shard: "
                f"{last.shard} is the last one and ends at {last.upper:08x}",
            )

    def equal_replica_counts(self) -> None:
        counts = [count for _, count in self.replica_counts]
        usual = max(set(counts), key=lambda count: (counts.count(count), count), default=0)
        for path, count in self.replica_counts:
            if count != usual:
                self.fault(
                    path,
                    f"has {count} {'replica' if count == 1 else 'replicas'} where most shards "
                    f"have {usual}; all must have the same number",
                )

    # Building blocks. Each returns None, or an empty list, after it has reported a fault.

    def record(self, value: Any, path: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
        """Check that the value is an object of exactly these keys."""
        if not isinstance(value, dict):
            self.fault(path, f"must be an object with {', '.join(keys)}, not {_kind(value)}")
            return None
        prefix = f"{path}." if path else ""
        for key in keys:
            if key not in value:
                advice = f"; {_ADVICE[key]}" if key in _ADVICE else ""
                self.fault(f"{prefix}{key}", f"is missing{advice}")
        for key in value:
            if key not in keys:
                shown = key if key.isidentifier() else ascii(key)
                self.fault(f"{prefix}{shown}", f"is unknown here; known are {', '.join(keys)}")
        for key in getattr(value, "repeated", ()):
            self.fault(f"{prefix}{key}", "is given more than once")
        return value

    def items(
        self, parent: dict[str, Any], key: str, path: str, limit: int
    ) -> list[tuple[str, Any]]:
        """Return the members of a list that must not be empty, each with its path."""
        if key not in parent:
            return []
        value, path = parent[key], f"{path}.{key}" if path else key
        if not isinstance(value, list):
            self.fault(path, f"must be a list, not {_kind(value)}")
            return []
        if not value:
            self.fault(path, "is empty; it must have at least one member")
        elif len(value) > limit:
            self.fault(path, f"has {len(value)} members; the most is {limit}")
            return []
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]

    def name(self, value: Any, path: str) -> str | None:
        if not isinstance(value, str):
            self.fault(path, f"must be a string, not {_kind(value)}")
            return None
        if not _ID.match(value):
            self.fault(path, _ID_RULE)
            return None
        return value

    def unique(self, seen: dict[_Key, str], value: _Key, path: str, what: str) -> None:
        if value in seen:
            self.fault(path, f"{what} is already used at {seen[value]}")
        else:
            seen[value] = path
