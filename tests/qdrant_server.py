"""A server that speaks Qdrant's REST API, over the local mode of its own client.

Only the routes that links and tests ask for. Points, vectors, filters and searches are the local
mode's; settings of collections, payload indexes, metadata and keys, which that has not, are kept
here as the documentation says.
"""

import json
import sys
import threading
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel
from qdrant_client import QdrantClient, models

VERSION = "1.16.3"
HANG_S = 60.0
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
OPTIMIZER = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "flush_interval_sec": 5,
}


class QdrantServer:
    """Owns the engine, which stays over `stop` and `start`, and what the engine does not keep."""

    def __init__(self, api_key: str | None = None, version: str = VERSION) -> None:
        self.api_key = api_key
        self.version = version
        self.requests = list[str]()  # method and path of each
        self.is_hanging = threading.Event()
        self.status = models.CollectionStatus.GREEN
        self.before: Callable[[str], None] | None = None  # called with each of `requests`
        self._released = threading.Event()
        self._engine = QdrantClient(":memory:")
        self._lock = threading.Lock()
        self._created = dict[str, dict[str, Any]]()
        self._indexes = dict[str, dict[str, Any]]()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, where it did before."""
        server = _Server(("127.0.0.1", self._port), _handler_of(self))
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more; connections that are open are cut."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """End it, hanging requests too."""
        self._released.set()
        self.stop()
        self._engine.close()

    def client(self) -> QdrantClient:
        """An application's client."""
        headers = {} if self.api_key is None else {"api-key": self.api_key}
        return QdrantClient(url=self.url, headers=headers, check_compatibility=False)

    def answer(self, method: str, path: str, key: str | None, body: bytes) -> tuple[int, Any]:
        """Status and result of a request."""
        self.requests.append(f"{method} {path}")
        if self.before is not None:
            self.before(self.requests[-1])
        if self.is_hanging.is_set():
            self._released.wait(HANG_S)
        if self.api_key is not None and key != self.api_key:
            return 401, "Must provide an API key or an Authorization bearer token"
        if not self.is_listening:
            return 503, "closing"
        parts = [unquote(part) for part in path.strip("/").split("/") if part]
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # payload indexes have no effect in local mode
            try:
                return 200, self._routed(method, parts, body)
            except KeyError as missing:
                return 404, f"Not found: Collection `{missing.args[0]}` doesn't exist!"
            except ValueError as error:
                is_missing = "not found" in str(error)
                return (404 if is_missing else 400), str(error)

    @property
    def is_listening(self) -> bool:
        """Whether it still answers on connections that were kept open."""
        return self._server is not None

    def _routed(self, method: str, parts: list[str], body: bytes) -> Any:
        engine = self._engine
        match (method, parts):
            case ("GET", []):
                return {"title": "qdrant", "version": self.version}
            case ("GET", ["aliases"]):
                return engine.get_aliases()
            case ("GET", ["collections"]):
                return engine.get_collections()
            case ("POST", ["collections", "aliases"]):
                asked = models.ChangeAliasesOperation.model_validate_json(body)
                return engine.update_collection_aliases(asked.actions)
            case (_, ["collections", name]):
                return self._collection(method, name, body)
            case ("GET", ["collections", name, "aliases"]):
                return engine.get_collection_aliases(name)
            case ("PUT", ["collections", name, "index"]):
                index = models.CreateFieldIndex.model_validate_json(body)
                self._indexes[self._named(name)][index.field_name] = index.field_schema
                return _DONE
            case (_, ["collections", name, "points", *rest]):
                return self._points(method, name, rest, body)
        raise ValueError(f"no route {method} {parts}")

    def _collection(self, method: str, name: str, body: bytes) -> Any:
        engine = self._engine
        if method == "GET":
            return self._info(name)
        if method == "DELETE":
            self._created.pop(name, None)
            return engine.delete_collection(name)
        given = json.loads(body)
        if method == "PATCH":
            if self.version >= "1.16":  # an older one leaves out what it does not know
                kept = self._created[self._named(name)].setdefault("metadata", {})
                kept.update(given.get("metadata") or {})
            return True
        created = models.CreateCollection.model_validate(given)
        if self.version < "1.16":
            given.pop("metadata", None)
        done = engine.create_collection(
            name, vectors_config=created.vectors, sparse_vectors_config=created.sparse_vectors
        )
        self._created[name], self._indexes[name] = given, {}
        return done

    def _info(self, name: str) -> dict[str, Any]:
        found = json.loads(self._engine.get_collection(name).model_dump_json(exclude_none=True))
        given = self._created[self._named(name)]
        config = found["config"]
        for key in ("shard_number", "sharding_method", "replication_factor", "on_disk_payload"):
            if given.get(key) is not None:
                config["params"][key] = given[key]
        config["hnsw_config"] = HNSW | (given.get("hnsw_config") or {})
        config["optimizer_config"] = OPTIMIZER | (given.get("optimizers_config") or {})
        for key in ("quantization_config", "strict_mode_config", "metadata"):
            config[key] = given.get(key)
        found["payload_schema"] = {
            field: _schema(schema) for field, schema in self._indexes[self._named(name)].items()
        }
        found["status"] = self.status.value
        return found

    def _points(self, method: str, name: str, rest: list[str], body: bytes) -> Any:
        engine = self._engine
        match (method, rest):
            case ("PUT", []):
                engine.upsert(name, models.PointsList.model_validate_json(body).points)
                return _DONE
            case ("PUT", ["vectors"]):
                engine.update_vectors(name, models.UpdateVectors.model_validate_json(body).points)
                return _DONE
            case ("POST", []):
                asked = models.PointRequest.model_validate_json(body)
                return engine.retrieve(name, asked.ids, asked.with_payload, asked.with_vector)
            case ("POST", ["scroll"]):
                scroll = models.ScrollRequest.model_validate_json(body)
                points, following = engine.scroll(
                    name,
                    scroll_filter=scroll.filter,
                    limit=scroll.limit or 10,
                    offset=scroll.offset,
                    with_payload=scroll.with_payload,
                    with_vectors=scroll.with_vector,
                )
                return {"points": points, "next_page_offset": following}
            case ("POST", ["delete"]):
                engine.delete(name, models.PointIdsList.model_validate_json(body))
                return _DONE
            case ("POST" | "PUT", ["payload"]):
                change = models.SetPayload.model_validate_json(body)
                engine.set_payload(name, change.payload, change.points)
                return _DONE
            case ("POST", ["query"]):
                query = models.QueryRequest.model_validate_json(body)
                return engine.query_points(
                    name,
                    query=query.query,
                    using=query.using,
                    limit=query.limit or 10,
                    with_payload=query.with_payload,
                )
        raise ValueError(f"no route {method} points/{rest}")

    def _named(self, name: str) -> str:
        """A collection's own name, where that is an alias."""
        aliases = {
            each.alias_name: each.collection_name for each in self._engine.get_aliases().aliases
        }
        return aliases.get(name, name)


_DONE = {"operation_id": 0, "status": "completed"}


def _schema(schema: Any) -> dict[str, Any]:
    """What a collection says of an index that was made so."""
    if isinstance(schema, BaseModel):
        params = json.loads(schema.model_dump_json(exclude_none=True))
        return {"data_type": params["type"], "params": params, "points": 0}
    return {"data_type": schema.value if hasattr(schema, "value") else schema, "points": 0}


def _jsonable(result: Any) -> Any:
    if isinstance(result, BaseModel):
        return json.loads(result.model_dump_json())
    if isinstance(result, list):
        return [_jsonable(each) for each in result]
    if isinstance(result, dict):
        return {key: _jsonable(value) for key, value in result.items()}
    return result


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are killed or give up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler_of(owner: QdrantServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            path = urlsplit(self.path).path
            status, result = owner.answer(self.command, path, self.headers.get("api-key"), body)
            if status == 200 and path == "/":
                content = result
            elif status == 200:
                content = {"result": _jsonable(result), "status": "ok", "time": 0.0}
            else:
                content = {"status": {"error": result}, "time": 0.0}
            written = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
