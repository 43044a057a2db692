"""Behind a front that ends TLS on the same machine: what it says of its clients reaches the application, and what others say does not.

The application is FastAPI under uvicorn, both as they are by default: uvicorn believes X-Forwarded-For and X-Forwarded-Proto of
127.0.0.1, which is where we stand, so whatever we let through is believed (rule B1).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import servers
import trustme
from harness import TIMEOUT, Client, Proxy, free_port, shut, wait_until
from servers import Server
from tools import tool

pytestmark = pytest.mark.slow

CLIENT = "203.0.113.9"
"""Where the front says that its client is."""

NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {pem};
        ssl_certificate_key {pem};
        location / {{
            proxy_pass http://{backend};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For {client};
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""

HAPROXY = """\
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port} ssl crt {pem}
    http-request set-header X-Forwarded-For {client}
    http-request set-header X-Forwarded-Proto https
    default_backend proxies
backend proxies
    server proxy {backend}
"""


class Relay:
    """A front of a few lines: one request a connection, its fields of forwarding set."""

    def __init__(self, pem: Path, backend: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self.backend = backend.split(":")
        self.listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except ssl.SSLError:
                continue
            except OSError:
                return
            with client:
                client.settimeout(TIMEOUT)
                with contextlib.suppress(OSError):
                    self.relay(client)

    def relay(self, client: ssl.SSLSocket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = client.recv(65536)
            if not data:
                return
            head += data
        set_here = f"Connection: close\r\nX-Forwarded-For: {CLIENT}\r\nX-Forwarded-Proto: https\r\n\r\n".encode()
        with socket.create_connection(self.backend, TIMEOUT) as upstream:
            upstream.sendall(head.replace(b"Connection: keep-alive\r\n", b"").removesuffix(b"\r\n") + set_here)
            while data := upstream.recv(65536):
                client.sendall(data)

    def close(self) -> None:
        shut(self.listener, reset=False)
        self.thread.join(TIMEOUT)
        self.listener.close()


@contextlib.contextmanager
def relay(pem: Path, backend: str) -> Iterator[int]:
    front = Relay(pem, backend)
    try:
        yield front.port
    finally:
        front.close()


@contextlib.contextmanager
def program(command: Callable[[Path], list[str]], text: str, pem: Path, backend: str) -> Iterator[int]:
    """A front that is a program of its own with a file of settings."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llmpipe-") as folder:
        settings = Path(folder) / "settings"
        settings.write_text(text.format(port=port, pem=pem, backend=backend, folder=folder, client=CLIENT))
        process = subprocess.Popen(command(settings), stderr=subprocess.PIPE, env=servers.plain_environment())
        assert process.stderr
        try:
            wait_until(lambda: listens(port) or process.poll() is not None, what="the front listens")
            assert process.poll() is None, process.stderr.read()
            yield port
        finally:
            process.terminate()
            process.communicate(timeout=TIMEOUT)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def nginx(pem: Path, backend: str) -> contextlib.AbstractContextManager[int]:
    path = tool("nginx", "nginx")
    return program(lambda settings: [path, "-e", "stderr", "-c", str(settings)], NGINX, pem, backend)


def haproxy(pem: Path, backend: str) -> contextlib.AbstractContextManager[int]:
    path = tool("haproxy", "haproxy")
    return program(lambda settings: [path, "-db", "-f", str(settings)], HAPROXY, pem, backend)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost, with its key."""
    path = tmp_path_factory.mktemp("front") / "localhost.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with servers.fastapi() as server:
        yield server


@pytest.fixture
def browser(authority: trustme.CA) -> Iterator[httpx.Client]:
    """A client that trusts the front's certificate."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
        yield client


fronts = pytest.mark.parametrize("front", [relay, nginx, haproxy])


@fronts
def test_b1_a_redirect_behind_tls_leads_back_to_tls(server, pem, browser, front):
    with Proxy(server.url) as proxy, front(pem, proxy.address) as port:
        answer = browser.get(f"https://localhost:{port}/items?a=1")
        assert answer.status_code == 307
        assert answer.headers["location"] == f"https://localhost:{port}/items/?a=1"
        answer = browser.get(answer.headers["location"])
        assert answer.json() == {"client": CLIENT, "scheme": "https", "host": f"localhost:{port}"}


@fronts
def test_b1_a_front_that_is_not_trusted_is_not_believed(server, pem, browser, front):
    with Proxy(server.url, options=["--trusted-proxies", "192.0.2.0/24"]) as proxy, front(pem, proxy.address) as port:
        answer = browser.get(f"https://localhost:{port}/items")
        assert answer.headers["location"] == f"http://localhost:{port}/items/"
        answer = browser.get(f"https://localhost:{port}/items/")
        assert answer.json() == {"client": "127.0.0.1", "scheme": "http", "host": f"localhost:{port}"}


@pytest.mark.parametrize("trusted", ["192.0.2.0/24", "127.0.0.0/8"])
def test_b1_the_application_believes_what_the_proxy_lets_through(server, trusted):
    fields = {
        "X-Forwarded-For": CLIENT,
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "other.example",
        "X_Forwarded_Proto": "https",
        "X-Forwarded_For": CLIENT,
        "Forwarded": f"for={CLIENT};proto=https",
        "X-Real-IP": CLIENT,
    }
    with Proxy(server.url, options=["--trusted-proxies", trusted]) as proxy:
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        with Client(proxy) as client:
            answer = client.request(f"GET /items/ HTTP/1.1\r\nHost: llm.example\r\n{lines}\r\n".encode())
        believed = trusted == "127.0.0.0/8"
        expected = {"client": CLIENT, "scheme": "https"} if believed else {"client": "127.0.0.1", "scheme": "http"}
        assert httpx.Response(200, content=answer.body).json() == {**expected, "host": "llm.example"}
        assert proxy.access()[0]["client"] == expected["client"]
