"""The review on localhost: who may ask, what they may ask for, and what is refused.

Everything lies under a random token, so that other users and other pages cannot guess an address.
A page in the same browser could still send requests blindly: so the `Host` must be ours (no DNS
rebinding), an `Origin` must be ours, and whatever changes something must be JSON that carries the
token in a header, which no form and no other origin can send.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from shardsieve.data.decision_log import DecisionLog
from shardsieve.data.decisions import Decision
from shardsieve.errors import ConfigError, DataError, ShardError
from shardsieve.review.samples import Filter, Samples, queue_json

ADDRESS = "127.0.0.1"
TOKEN_HEADER = "X-Shardsieve-Token"
MOST_BODY_BYTES = 64 * 1024
_PAGE_ITEMS = 120
_IDLE_SECONDS = 30
_STATIC = {
    "": ("review.html", "text/html; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A request that is not answered, with the status and the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Asked(BaseModel):
    """The body of a decision."""

    model_config = ConfigDict(extra="forbid", strict=True)
    row: int
    key: str
    decision: str
    label: str | None = None


class ReviewServer(ThreadingHTTPServer):
    """Serves the galleries of one run to this machine."""

    daemon_threads = True

    def __init__(self, run: Path, port: int = 0) -> None:
        """Opens the run and takes a port; 0 for a free one.

        Raises:
            StaleArtefact: There is nothing to review.
            DataError: The decisions cannot be read or written.
            ConfigError: The port is taken.
        """
        self.samples = Samples(run)
        self.log = DecisionLog(run)
        self.token = secrets.token_urlsafe(32)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"port {port}: {error.strerror}; choose another one with --port, or none"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is; whoever has this may decide."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[str, int, Iterable[bytes]]:
        """Returns media type, size and content of what lies under the token.

        Raises:
            Refused: There is nothing of that name.
        """
        if path in _STATIC:
            name, media_type = _STATIC[path]
            data = files("shardsieve.review").joinpath("static", name).read_bytes()
            return media_type, len(data), [data]
        if path == "about":
            return _as_json(self._about())
        if path == "items":
            return _as_json(self._items(query))
        if image := re.fullmatch(r"image/([0-9]{1,12})", path):
            return self._image(int(image[1]))
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def change(self, path: str, body: bytes) -> dict[str, Any]:
        """Takes a decision, or takes one back; it is on the disk when this returns.

        Raises:
            Refused: It makes no sense.
        """
        try:
            if path == "undo":
                undone = self.log.undo()
                restored = undone.model_dump(include={"key", "decision", "label"}) if undone else {}
                return {"undone": bool(undone), **restored, "decided": len(self.log.standing)}
            if path != "decide":
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
            asked = _Asked.model_validate_json(body)
            self.log.add([self._decision(asked)])
        except ValidationError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, error.errors()[0]["msg"]) from error
        except DataError as error:
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error
        return {"row": asked.row, "decided": len(self.log.standing)}

    def _decision(self, asked: _Asked) -> Decision:
        samples = self.samples
        if not 0 <= asked.row < len(samples.index):
            raise Refused(HTTPStatus.BAD_REQUEST, "there is no such row")
        name = samples.name_of(asked.row)
        if name.key != asked.key:
            raise Refused(HTTPStatus.CONFLICT, "that row is another sample; load the page anew")
        if not samples.judged_N[asked.row]:
            raise Refused(HTTPStatus.BAD_REQUEST, "a sample that cannot be read is never kept")
        if asked.decision == "relabel" and asked.label not in samples.index.classes:
            raise Refused(HTTPStatus.BAD_REQUEST, "there is no such class")
        fields: dict[str, Any] = {"decision": asked.decision, "label": asked.label}
        return Decision(**name._asdict(), **fields, given=samples.given(asked.row))

    def _about(self) -> dict[str, Any]:
        standing = self.log.standing
        decided = {
            "name": "decided",
            "title": "Decided",
            "explanation": "What you decided, the last decision first.",
            "count": len(standing),
        }
        return {
            "galleries": [*map(queue_json, self.samples.queues.values()), decided],
            "classes": list(self.samples.index.classes),
            "reasons": self.samples.reason_words(),
            "decided": len(standing),
            "samples": len(self.samples.index),
        }

    def _items(self, query: dict[str, list[str]]) -> dict[str, Any]:
        def number(name: str) -> int | None:
            text = query.get(name, [""])[0]
            if text and not re.fullmatch("[0-9]{1,12}", text):
                raise Refused(HTTPStatus.BAD_REQUEST, f"{name}: not a number")
            return int(text) if text else None

        wanted = Filter(number("label"), query.get("reason", [""])[0], query.get("text", [""])[0])
        standing = self.log.standing
        try:
            rows = self.samples.rows(query.get("gallery", [""])[0], wanted, standing)
        except KeyError as error:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such gallery") from error
        start = number("start") or 0
        items = self.samples.describe(rows[start : start + _PAGE_ITEMS], standing)
        return {"total": len(rows), "start": start, "items": items}

    def _image(self, row: int) -> tuple[str, int, Iterator[bytes]]:
        if row >= len(self.samples.index):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such row")
        try:
            return self.samples.image(row)
        except (ShardError, ValueError) as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from error


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version = "shardsieve"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Page, galleries, images."""

        def work() -> None:
            path, query = self._admit()
            self._send(HTTPStatus.OK, *self.server.answer(path, query))

        self._guarded(work)

    def do_POST(self) -> None:
        """Decisions and undo."""

        def work() -> None:
            path, _ = self._admit()
            body = self._body()
            self._send(HTTPStatus.OK, *_as_json(self.server.change(path, body)))

        self._guarded(work)

    def log_message(self, *_: Any) -> None:
        """Says nothing: addresses hold the token."""

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Refused as refusal:
            # What was not read of the request must not be taken for the next one.
            self.close_connection = True
            self._send(refusal.status, *_as_json({"error": str(refusal)}))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except ShardError:
            # The shard ended while its image was on the way: too late for another status.
            self.close_connection = True

    def _admit(self) -> tuple[str, dict[str, list[str]]]:
        """Lets nobody pass but our own page; returns what it asks for."""
        port = self.server.server_port
        ours = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        if self.headers.get("Host") not in ours:
            raise Refused(HTTPStatus.FORBIDDEN, "another host was asked for")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in ours}:
            raise Refused(HTTPStatus.FORBIDDEN, "the request comes from another origin")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "the request comes from another site")
        parts = urlsplit(self.path)
        token, slash, path = parts.path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "the token is missing or wrong")
        return path, parse_qs(parts.query, max_num_fields=10)

    def _body(self) -> bytes:
        if self.headers.get("Origin") is None:
            raise Refused(HTTPStatus.FORBIDDEN, "the request does not say where it comes from")
        sent = self.headers.get(TOKEN_HEADER, "")
        if not hmac.compare_digest(sent.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, f"{TOKEN_HEADER} is missing or wrong")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only JSON is taken")
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not re.fullmatch("[0-9]{1,15}", length):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the size of the body must be said")
        if int(length) > MOST_BODY_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BODY_BYTES:,} bytes"
            )
        body: bytes = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is not whole")
        return body

    def _send(
        self, status: HTTPStatus, media_type: str, size: int, content: Iterable[bytes]
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(size))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        for piece in content:
            self.wfile.write(piece)


def _as_json(value: Any) -> tuple[str, int, list[bytes]]:
    data = json.dumps(value).encode()
    return "application/json", len(data), [data]
