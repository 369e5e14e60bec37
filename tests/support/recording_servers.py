"""HTTP servers on loopback that want a password, lead elsewhere, and note what they are sent."""

from __future__ import annotations

import base64
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER, PASSWORD = "admin", "geheim"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass(frozen=True)
class Reply:
    body: bytes = b""
    kind: str = "application/octet-stream"
    leads_to: str = ""  # a URL
    code: int = 200
    cookie: str = ""


@dataclass
class Recorder:
    """What a server answers, and what came."""

    replies: Mapping[str, Reply] = field(default_factory=dict)
    host: str = "127.0.0.1"
    wants_password: bool = True
    tls: ssl.SSLContext | None = None
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path, headers

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer((self.host, 0), self._handler())
        self._server.daemon_threads = True
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str, *, password: bool = False) -> str:
        user = f"{USER}:{PASSWORD}@" if password else ""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{user}{self.host}:{self._server.server_address[1]}{path}"

    def sent(self, name: str) -> list[str]:
        """The values of a header in all requests that had it."""
        return [headers[name] for _, headers in self.asked if name in headers]

    def kill(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(recorder) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                recorder.asked.append((self.path, dict(self.headers)))
                reply = recorder.replies.get(self.path, Reply(code=404))
                if recorder.wants_password and "Authorization" not in self.headers:
                    reply = Reply(code=401)
                self.send_response(reply.code)
                if reply.code == 401:
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                if reply.leads_to:
                    self.send_header("Location", reply.leads_to)
                if reply.cookie:
                    self.send_header("Set-Cookie", reply.cookie)
                self.send_header("Content-Type", reply.kind)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
