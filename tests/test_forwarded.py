"""Rule B1: what a peer tells of the hops before it, and who asked. Trusted peers are believed, others are not.

Addresses of 127.0.0.0/8 stand for machines: each test says which of them are trusted.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest
from harness import TIMEOUT, Backend, Client, Connection, Proxy, Request, respond

from llmpipe.config import TRUSTED_BY_DEFAULT, ProcessSettings, parse_trusted
from llmpipe.errors import UsageError

FOR, PROTO, HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"


class From(Client):
    """A client with an address of its own."""

    def __init__(self, proxy: Proxy, address: str) -> None:
        super(Client, self).__init__(
            socket.create_connection(("127.0.0.1", proxy.port), timeout=TIMEOUT, source_address=(address, 0))
        )


class Scene:
    """A proxy with some trusted peers, and the requests that its backend got."""

    def __init__(self, *trusted: str) -> None:
        self.requests: list[Request] = []
        self.backend = Backend(self.keep)
        options = [word for one in trusted for word in ("--trusted-proxies", one)]
        self.proxy = Proxy(self.backend.url, options=options)

    def keep(self, connection: Connection) -> None:
        while True:
            self.requests.append(connection.read_request())
            respond(connection)

    def get(self, *lines: bytes, address: str = "127.0.0.1", path: bytes = b"/") -> Request:
        """What the backend gets for a request with these fields from this address."""
        with From(self.proxy, address) as client:
            head = [b"GET " + path + b" HTTP/1.1", b"Host: asked.example:81", *lines, b"", b""]
            assert client.request(b"\r\n".join(head)).status == 200
        return self.requests[-1]

    def forwarded(self, *lines: bytes, address: str = "127.0.0.1") -> tuple[list[bytes], list[bytes], list[bytes]]:
        request = self.get(*lines, address=address)
        return request.values(FOR), request.values(PROTO), request.values(HOST)

    def client_of(self, *lines: bytes, address: str = "127.0.0.1") -> str:
        """The client in the access line."""
        path = b"/%d" % len(self.requests)
        self.get(*lines, address=address, path=path)
        return str(self.proxy.access(path=path.decode())[0]["client"])

    def close(self) -> None:
        self.proxy.close()
        self.backend.close()


@pytest.fixture(scope="module")
def by_default() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def nobody() -> Iterator[Scene]:
    scene = Scene("none")
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def some() -> Iterator[Scene]:
    """127.0.1.0/24 and 127.0.2.1 are trusted, and 10.0.0.0/8 and an IPv6 network behind them."""
    scene = Scene("127.0.1.0/24,127.0.2.1", "10.0.0.0/8 2001:db8::/32")
    yield scene
    scene.close()


TOLD = [b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: shown.example"]


def test_loopback_is_believed_by_default(by_default):
    assert by_default.forwarded(*TOLD) == ([b"1.2.3.4, 127.0.0.1"], [b"https"], [b"shown.example"])
    assert by_default.forwarded() == ([b"127.0.0.1"], [b"http"], [b"asked.example:81"])
    assert by_default.forwarded(*TOLD, address="127.9.8.7") == ([b"1.2.3.4, 127.9.8.7"], [b"https"], [b"shown.example"])


def test_others_are_not_believed(nobody, some):
    assert nobody.forwarded(*TOLD) == ([b"127.0.0.1"], [b"http"], [b"asked.example:81"])
    assert nobody.forwarded(*TOLD, *TOLD) == ([b"127.0.0.1"], [b"http"], [b"asked.example:81"])
    assert some.forwarded(*TOLD) == ([b"127.0.0.1"], [b"http"], [b"asked.example:81"])


@pytest.mark.parametrize(
    ("address", "trusted"),
    [("127.0.1.0", True), ("127.0.1.255", True), ("127.0.2.1", True), ("127.0.2.2", False), ("127.0.0.255", False)],
)
def test_networks_end_where_they_end(some, address, trusted):
    client = address.encode()
    made = ([client], [b"http"], [b"asked.example:81"])
    kept = ([b"1.2.3.4, " + client], [b"https"], [b"shown.example"])
    assert some.forwarded(*TOLD, address=address) == (kept if trusted else made)


def test_everybody_can_be_believed():
    scene = Scene("*")
    try:
        assert scene.forwarded(*TOLD) == ([b"1.2.3.4, 127.0.0.1"], [b"https"], [b"shown.example"])
    finally:
        scene.close()


@pytest.mark.parametrize(
    ("lines", "scheme"),
    [
        ([b"X-Forwarded-Proto: https"], b"https"),
        ([b"X-Forwarded-Proto: http"], b"http"),
        ([b"x-forwarded-PROTO:HTTPS "], b"https"),
        ([b"X-Forwarded-Proto: https, http"], b"http"),
        ([b"X-Forwarded-Proto: https,https"], b"http"),
        ([b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: https"], b"http"),
        ([b"X-Forwarded-Proto: wss"], b"http"),
        ([b"X-Forwarded-Proto:"], b"http"),
        ([b"X-Forwarded-Proto: https", b"Connection: x-forwarded-proto"], b"http"),
    ],
)
def test_a_scheme_is_kept_if_it_is_a_single_one(by_default, lines, scheme):
    assert by_default.get(*lines).values(PROTO) == [scheme]


def test_a_host_that_says_nothing_is_made_anew(by_default):
    assert by_default.get(b"X-Forwarded-Host:").values(HOST) == [b"asked.example:81"]
    named = by_default.get(b"X-Forwarded-Host: shown.example", b"Connection: x-forwarded-host")
    assert named.values(HOST) == [b"asked.example:81"]


OTHERS = [
    b"Forwarded: for=1.2.3.4;proto=https",
    b"X-Real-IP: 1.2.3.4",
    b"x_real_ip: 1.2.3.4",
    b"X_Forwarded_For: 1.2.3.4",
    b"X-Forwarded_For: 1.2.3.4",
    b"x_forwarded-proto: https",
    b"X_FORWARDED_PROTO: https",
    b"X_Forwarded_Host: evil.example",
    b"X_Request_ID: 1",
    b"Content_Length: 5",
    b"Transfer_Encoding: chunked",
    b"Proxy_Authorization: x",
    b"Content_Type: x",
]


@pytest.mark.parametrize("line", OTHERS)
def test_names_that_a_backend_may_take_for_ours_come_from_trusted_peers_only(by_default, nobody, line):
    name = line.partition(b":")[0]
    assert by_default.get(line).values(name) == [line.partition(b": ")[2]]
    request = nobody.get(b"X-Before: 1", line, b"X-After: 2")
    assert request.values(name) == []
    assert (request.values(b"x-before"), request.values(b"x-after")) == ([b"1"], [b"2"])


@pytest.mark.parametrize(
    "line", [b"X_Custom: 1", b"session_id: 1", b"X_Forwarded_Forx: 1", b"_: 1", b"x_forwarded_for_longer_than_any: 1"]
)
def test_other_names_with_underscores_are_kept(nobody, line):
    name, _, value = line.partition(b": ")
    assert nobody.get(line).values(name) == [value]


# Who asked


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([], "127.0.1.1"),
        ([b"X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
        ([b"X-Forwarded-For: 6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ([b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
        ([b"X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.1.2.3"], "1.2.3.4"),
        ([b"X-Forwarded-For: 6.6.6.6, 1.2.3.4 ,\t10.1.2.3", b"x-forwarded-for:127.0.2.1,, 10.0.0.1,"], "1.2.3.4"),
        ([b"X-Forwarded-For: 10.0.0.9, 10.0.0.8"], "10.0.0.9"),
        ([b"X-Forwarded-For: unknown, 10.0.0.8"], "10.0.0.8"),
        ([b"X-Forwarded-For: 6.6.6.6, unknown"], "127.0.1.1"),
        ([b"X-Forwarded-For: 6.6.6.6, 1.2.3.4, sk-secret, 10.0.0.8"], "10.0.0.8"),
        ([b"X-Forwarded-For: 1.2.3.4:5678"], "1.2.3.4"),
        ([b"X-Forwarded-For: 2001:db9::1, [2001:db8::7]:443"], "2001:db9::1"),
        ([b"X-Forwarded-For: ::ffff:1.2.3.4"], "1.2.3.4"),
        ([b"X-Forwarded-For: 6.6.6.6, ::ffff:10.0.0.1"], "6.6.6.6"),
        ([b"X-Forwarded-For: 1.2.3.4", b"Connection: x-forwarded-for"], "127.0.1.1"),
    ],
)
def test_the_client_of_the_access_line(some, lines, client):
    assert some.client_of(*lines, address="127.0.1.1") == client


def test_nobody_names_a_client_for_an_untrusted_peer(some, nobody):
    assert some.client_of(*TOLD, address="127.0.3.1") == "127.0.3.1"
    assert nobody.client_of(*TOLD) == "127.0.0.1"


@pytest.mark.parametrize("option", ["", "?on-abort=finish"])
def test_the_client_of_an_abort_is_the_one_who_left(option):
    leave, gone = threading.Event(), threading.Event()

    def answer(connection: Connection) -> None:
        connection.read_request()
        leave.set()
        if option:
            gone.wait(60)
            respond(connection)
        connection.wait_eof()

    with Backend(answer) as backend, Proxy(backend.url + option) as proxy:
        with Client(proxy) as client:
            client.send(b"GET /left HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
            assert leave.wait(TIMEOUT)
        proxy.wait_metric("llmpipe_finishing" if option else "llmpipe_clients", bool(option))
        gone.set()
        line = proxy.access(path="/left")[0]
        assert (line["client"], line["status"]) == ("1.2.3.4", 499)


MEMBERS = {
    b"1.2.3.4": b"1.2.3.4",
    b"1.2.3.4:0": b"1.2.3.4",
    b"[::1]": b"::1",
    b"[::1]:65535": b"::1",
    b"2001:DB8:0:0::1": b"2001:db8::1",
    b"::ffff:9.8.7.6": b"9.8.7.6",
    b"1.2.3.4:": b"",
    b"1.2.3.4:x": b"",
    b"1.2.3.4:-1": b"",
    b"1.2.3": b"",
    b"1.2.3.256": b"",
    b"01.2.3.4x": b"",
    b"[::1": b"",
    b"[]": b"",
    b"[": b"",
    b"]": b"",
    b":": b"",
    b"::1]": b"",
    b"[::1]x": b"",
    b"[::1]:": b"",
    b"[::1]:8x": b"",
    b"fe80::1%eth0": b"",
    b"_hidden": b"",
    b'"1.2.3.4"': b"",
    b"1.2.3.4 5.6.7.8": b"",
    b"x" * 63: b"",
    b"x" * 64: b"",
    b"1" * 500: b"",
}


@pytest.mark.parametrize("member", MEMBERS, ids=repr)
def test_what_a_member_can_be(probe: ModuleType, member: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, %s\r\n\r\n"
    assert probe.origin(head % member, []) == MEMBERS[member]


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.0.0.0/8", b"10.255.0.1", b"11.0.0.0"),
        ("10.1.2.0/23", b"10.1.3.255", b"10.1.4.0"),
        ("10.1.2.3", b"10.1.2.3", b"10.1.2.2"),
        ("0.0.0.0/0", b"9.9.9.9", b"2001:db8::1"),
        ("::/0", b"2001:db8::1", b"9.9.9.9"),
        ("2001:db8::/33", b"2001:db8:7fff::1", b"2001:db8:8000::1"),
        ("::1", b"::1", b"::2"),
        ("::ffff:10.0.0.0/104", b"10.9.9.9", b"11.9.9.9"),
    ],
)
def test_what_is_in_a_network(probe: ModuleType, network: str, inside: bytes, outside: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, %s\r\n\r\n"
    networks = parse_trusted([network]).networks
    assert probe.origin(head % inside, networks) == b"6.6.6.6"
    assert probe.origin(head % outside, networks) == outside


def test_a_peer_without_an_address_appends_none(probe: ModuleType) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n"
    written = probe.rewrite_request(head, client=b"", trusted=True)
    assert written.count(b"X-Forwarded-For: 1.2.3.4\r\n") == 1
    assert b"X-Forwarded-Proto: https\r\n" in written
    written = probe.rewrite_request(head, client=b"", trusted=False)
    assert b"X-Forwarded-For" not in written
    assert b"X-Forwarded-Proto: http\r\n" in written


# The limit for each address, and the option


def test_trusted_peers_are_not_counted_in_their_address():
    with Backend(lambda connection: connection.wait_eof()) as backend:
        options = ["--max-connections-per-ip", "2", "--trusted-proxies", "127.0.1.1"]
        with Proxy(backend.url, options=options) as proxy:
            clients = [From(proxy, "127.0.1.1") for _ in range(6)]
            clients += [From(proxy, "127.0.0.1") for _ in range(2)]
            proxy.wait_metric("llmpipe_clients", 8)
            with From(proxy, "127.0.0.1") as refused:
                assert refused.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 429
            for client in clients:
                client.close()


def test_what_the_option_says():
    assert parse_trusted(["none"]) == parse_trusted([""]) == parse_trusted([" , "])
    assert parse_trusted([]).networks == ()
    assert not parse_trusted(["none"]).unix
    assert parse_trusted(["*"]) == parse_trusted(["0.0.0.0/0", "::/0", "unix"])
    assert parse_trusted(["10.0.0.0/8, ::1", "unix"]).networks == ((bytes([10, 0, 0, 0]), 8), (bytes(15) + b"\1", 128))
    assert parse_trusted(TRUSTED_BY_DEFAULT) == ProcessSettings().trusted_proxies


@pytest.mark.parametrize(
    "text", ["none,10.0.0.1", "localhost", "10.0.0.1/8", "10.0.0.0/33", "::1/129", "1.2.3", "10.0.0.0/8;::1"]
)
def test_what_the_option_cannot_be(text):
    with pytest.raises(UsageError, match="trusted prox"):
        parse_trusted([text])
