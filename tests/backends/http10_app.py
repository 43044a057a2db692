"""The standard library's http.server as it is by default: HTTP/1.0, an answer ends where the connection does.

With --protocol HTTP/1.1 it keeps connections and answers `Expect: 100-continue`; answers without a length still close.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import common

gates: defaultdict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(0))


class Handler(BaseHTTPRequestHandler):
    """Each path is a method; `do_*` only finds it."""

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        _, name, *self.words = parts.path.split("/")
        getattr(self, f"on_{name}")()

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def log_message(self, *_: object) -> None:
        """No access log."""

    def answer(self, body: bytes, kind: str, *fields: tuple[str, str], status: int = 200) -> None:
        """A whole answer with its length."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in fields:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, kind: str) -> None:
        """The head of an answer that ends with the connection."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if self.protocol_version > "HTTP/1.0":
            self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def read_body(self) -> tuple[str, int]:
        if self.headers.get("Transfer-Encoding") == "chunked":  # as it is written, like many small servers
            body = self.read_chunks()
            return hashlib.sha256(body).hexdigest(), len(body)
        digest, length = hashlib.sha256(), int(self.headers.get("Content-Length", 0))
        left = length
        while left:
            data = self.rfile.read(min(left, 65536))
            if not data:
                raise ConnectionError("the body is short")
            digest.update(data)
            left -= len(data)
        return digest.hexdigest(), length

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return body

    def on_early(self) -> None:
        """Does not look at the body."""
        self.close_connection = True
        refusal = b'{"error": {"message": "not you"}}'
        self.answer(refusal, "application/json", ("Connection", "close"), status=int(self.words[0]))

    def on_upload(self) -> None:
        sha256, length = self.read_body()
        self.answer(json.dumps({"sha256": sha256, "length": length}).encode(), "application/json")

    def on_echo(self) -> None:
        length = self.read_body()[1]
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        version = self.request_version.removeprefix("HTTP/")
        echo = common.echo_answer(self.command, self.path, version, fields, length)
        self.answer(json.dumps(echo).encode(), "application/json")

    def on_gzip(self) -> None:
        self.answer(common.zipped(), "text/plain", ("Content-Encoding", "gzip"))

    def on_events(self) -> None:
        self.begin("text/event-stream")
        for part in common.EVENT_PIECES:
            self.wfile.write(part)
            time.sleep(0.002)

    def on_big(self) -> None:
        data = common.content(int(self.query["n"]))
        if "length" in self.query:
            self.answer(data, "application/octet-stream")
        else:
            self.begin("application/octet-stream")
            self.wfile.write(data)

    def on_gated(self) -> None:
        name = self.words[0]
        self.begin("text/event-stream")
        for index in range(int(self.query["n"])):
            gates[name].acquire()
            self.wfile.write(common.piece(name, index))

    def on_gate(self) -> None:
        gates[self.words[0]].release(int(self.query["n"]))
        self.answer(b"", "text/plain")

    def on_status(self) -> None:
        self.answer(b"", "text/plain", ("Location", "/elsewhere"), ("X-Own", "1"), status=int(self.words[0]))

    def on_broken(self) -> None:
        self.begin("text/plain")
        self.wfile.write(b"x" * 500)
        time.sleep(0.05)
        # Here only a reset can tell an end from a break.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.reset.add(self.connection)


class Server(ThreadingHTTPServer):
    """Closes with a reset what a handler wants to break; the usual way would send a FIN first."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_name, self.server_port = "localhost", sock.getsockname()[1]
        self.reset: set[socket.socket] = set()

    def shutdown_request(self, request: socket.socket) -> None:
        if request in self.reset:
            self.reset.discard(request)
            request.close()
        else:
            super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """A client that left is no news."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", default="HTTP/1.0")


if __name__ == "__main__":
    listener, options = common.start(configure)
    Handler.protocol_version = options.protocol
    Server(listener).serve_forever()
