"""Rules J1, J2 and K with real sockets: which pool a request goes to, and which backend of the pool."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import openai
import pytest
from engines import Engines
from harness import Backend, Connection, Stream, chunk, respond, split_head, wait_until

from llmpipe._pipe import OUTCOMES, REASONS
from llmpipe.config import PoolSettings, ProcessSettings, Settings
from llmpipe.routing import Member, Model, Pool, Routing, Rule

JSON = b"Content-Type: application/json\r\n"


class Server(Backend):
    """A backend that notes what it is asked, and says who it is."""

    def __init__(self, name: str) -> None:
        self.asked: list[tuple[bytes, bytes, bytes]] = []
        """(target, head, body) of each request."""
        self.ended = 0
        """Connections that ended, between two requests or within one."""
        self.name = name
        super().__init__(self.answer)

    def answer(self, connection: Connection) -> None:
        while True:
            try:
                request = connection.read_request()
            except EOFError:
                self.ended += 1
                return
            self.asked.append((request.line.split()[1], request.raw_head, request.body))
            respond(connection, self.name.encode())

    @property
    def place(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)


class Fleet(Engines):
    """Engines behind which servers stand in pools."""

    def route(self, servers: list[Server], routing: Routing | None) -> None:
        table = [(server.name.encode(), b"b", b"", [server.place], False, 0, b"") for server in servers]
        for engine in self.engines:
            engine.configure(table, routing)

    def ask(
        self, body: bytes, target: bytes = b"/v1/chat/completions", fields: bytes = JSON, pieces: int = 1
    ) -> tuple[int, bytes]:
        """Status and body of the answer to a POST, which is sent in so many pieces."""
        with Asker(self) as asker:
            return asker.ask(body, target, fields, pieces)

    def count(self, table: str, names: tuple[str, ...], name: str) -> int:
        return sum(engine.stats()[table][names.index(name)] for engine in self.engines)

    def outcome(self, name: str) -> int:
        return self.count("outcomes", OUTCOMES, name)

    def reason(self, name: str) -> int:
        return self.count("reasons", REASONS, name)


class Asker(Stream):
    """A client."""

    def __init__(self, fleet: Engines) -> None:
        super().__init__(socket.create_connection(fleet.address))

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self, body: bytes, target: bytes = b"/v1/chat/completions", fields: bytes = JSON, pieces: int = 1
    ) -> tuple[int, bytes]:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (target, fields, len(body))
        self.send(head)
        step = max(1, len(body) // pieces)
        for at in range(0, len(body), step):
            self.send(body[at : at + step])
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        head = self.read_head()
        _, fields = split_head(head)
        length = next(int(value) for name, value in fields if name.lower() == b"content-length")
        return int(head.split()[1]), self.read(length)


@pytest.fixture
def fleet() -> Iterator[Callable[..., Fleet]]:
    with ExitStack() as stack:

        def make(count: int = 1, process: ProcessSettings | None = None, **settings: object) -> Fleet:
            made = Fleet(count, Settings(process=process or ProcessSettings(), pool=PoolSettings(**settings)))
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def servers() -> Iterator[Callable[..., list[Server]]]:
    with ExitStack() as stack:
        yield lambda *names: [stack.enter_context(Server(name)) for name in names]


def pools(*names: bytes) -> list[Pool]:
    """A pool of one server for each name."""
    return [Pool(name, [Member(number)]) for number, name in enumerate(names)]


def body(model: str, **more: object) -> bytes:
    return json.dumps({**more, "model": model}).encode()


def error(answer: tuple[int, bytes]) -> tuple[int, str, str | None]:
    """(status, code, param) of an error answer."""
    said = json.loads(answer[1])["error"]
    return answer[0], said["code"], said["param"]


MODELS = [
    Model(b"llama-3.3-70b", 0),
    Model(b"llama-*", 1),
    Model(b"llama-3*", 0),
    Model(b"gpt-4o", 1, b"qwen3:8b"),
    Model(b"qwen3:8b", 1),
]


def test_j1_exact_then_alias_then_the_longest_wildcard_then_the_default(fleet, servers) -> None:
    made, (a, b, c) = fleet(), servers("a", "b", "c")
    made.route([a, b, c], Routing(pools(b"a", b"b", b"c"), MODELS, default_pool=2))
    for model, name in [
        ("llama-3.3-70b", b"a"),
        ("llama-3.2", b"a"),
        ("llama-2", b"b"),
        ("llama-", b"b"),
        ("gpt-4o", b"b"),
        ("qwen3:8b", b"b"),
        ("llama", b"c"),
        ("m" * 300, b"c"),
        ("", b"c"),
    ]:
        assert made.ask(body(model)) == (200, name), model
    assert [json.loads(asked[2])["model"] for asked in b.asked] == ["llama-2", "llama-", "qwen3:8b", "qwen3:8b"]


def test_j1_the_bytes_go_on_unchanged(fleet, servers) -> None:
    made, (a, b) = fleet(), servers("a", "b")
    made.route([a, b], Routing(pools(b"a", b"b"), [Model(b"x", 0), Model(b"y", 1)]))
    sent = b'\n { "messages" : [ "' + b"\\u0041 \\\\" * 9000 + b'" ],"mod\\u0065l":"\\u0079" , "n":1e2 }\r\n'
    for pieces in (1, 2, 7, 50):
        assert made.ask(sent, pieces=pieces) == (200, b"b")
    assert [asked[2] for asked in b.asked] == [sent] * 4
    assert a.asked == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("target", [b"a", b"much-longer-than-it-was", b"same"])
def test_j1_an_alias_is_replaced_however_the_body_is_cut(fleet, servers, framing: str, target: bytes) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"same", 0, target)]))
    sent = b'{"a":"same","model":"s\\u0061me","z":"same"}'
    want = sent.replace(b'"s\\u0061me"', b'"%s"' % target)
    cuts = list(range(1, len(sent)))
    with Asker(made) as asker:
        for at in cuts:
            if framing == "length":
                asker.send(
                    b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (JSON, len(sent)) + sent[:at]
                )
                asker.send(sent[at:])
            else:
                asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n")
                raw = chunk(sent[:at]) + chunk(sent[at:]) + b"0\r\n\r\n"
                asker.send(raw[: at + 3])
                asker.send(raw[at + 3 :])
            assert asker.answer() == (200, b"a")
    assert [asked[2] for asked in a.asked] == [want] * len(cuts)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_j1_an_alias_in_chunks_of_every_kind(fleet, servers, size: int) -> None:
    """Byte by byte, with extensions and trailers, and with the name behind more than a buffer."""
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"alias", 0, b"the-model")]))
    sent = b'{"x":"' + b"y" * (20 if size < 10 else 30_000) + b'","model":"alias","z":"' + b"z" * 50 + b'"}'
    parts = [sent[i : i + size] for i in range(0, len(sent), size)]
    raw = b"".join(b"%X;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nX-T: 1\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: x\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    steps = (1, 7, 40, len(raw)) if size < 10 else (len(raw) // 5, len(raw))
    with Asker(made) as asker:
        for step in steps:
            asker.send(head)
            for at in range(0, len(raw), step):
                asker.send(raw[at : at + step])
            assert asker.answer() == (200, b"a")
    assert [asked[2] for asked in a.asked] == [sent.replace(b'"alias"', b'"the-model"')] * len(steps)


@pytest.mark.parametrize(
    ("sent", "status", "code", "param", "reason"),
    [
        (b'{"model":"nobody"}', 404, "model_not_found", "model", "unknown model"),
        (b'{"model":"' + b"m" * (1 << 20) + b'"}', 404, "model_not_found", "model", "unknown model"),
        (b'{"messages":[]}', 400, "bad_request", "model", "no model"),
        (b'{"model":"x","model":"x"}', 400, "bad_request", "model", "two models"),
        (b'{"MODEL":"x"}', 400, "bad_request", "model", "model in another case"),
        (b'{"model":7}', 400, "bad_request", "model", "model is no string"),
        (b'["x"]', 400, "bad_request", None, "bad JSON"),
        (b"{", 400, "bad_request", None, "bad JSON"),
        (b"\0" * 1000, 400, "bad_request", None, "bad JSON"),
        (b'{"x":' + b"[" * 100_000, 400, "bad_request", None, "bad JSON"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes | str) else None,
)
def test_j2_what_leads_nowhere_is_refused_in_the_shape_of_the_api(
    fleet, servers, sent, status, code, param, reason
) -> None:
    made, (a, b) = fleet(), servers("a", "b")
    made.route([a, b], Routing(pools(b"a", b"b"), [Model(b"x", 0), Model(b"y", 1)]))
    assert error(made.ask(sent)) == (status, code, param)
    wait_until(lambda: made.outcome("bad_request") == 1)
    assert made.reason(reason) == 1
    assert a.asked == b.asked == []


def test_j2_a_connection_goes_on_behind_an_unknown_model(fleet, servers) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    with Asker(made) as asker:
        for _ in range(3):
            assert error(asker.ask(body("nobody"))) == (404, "model_not_found", "model")
            assert asker.ask(body("x")) == (200, b"a")


def test_j1_a_second_model_behind_what_was_sent_ends_the_request(fleet, servers) -> None:
    """The first was enough to begin; the backend must never have the whole of such a body."""
    made, (a, b) = fleet(), servers("a", "b")
    made.route([a, b], Routing(pools(b"a", b"b"), [Model(b"x", 0), Model(b"y", 1)]))
    sent = b'{"model":"x","a":"' + b"a" * 100_000 + b'","model":"y"}'
    with Asker(made) as asker:
        asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (JSON, len(sent)) + sent[:50_000])
        wait_until(lambda: made.total("upstreams") == 1)
        asker.send(sent[50_000:])
        assert error(asker.answer()) == (400, "bad_request", "model")
    wait_until(lambda: made.total("upstreams") == 0)
    wait_until(lambda: a.ended == 1)
    assert a.asked == b.asked == []


@pytest.mark.parametrize(
    ("fields", "sent", "answer"),
    [
        (b"Content-Type: application/json; charset=utf-8\r\n", b'{"model":"x"}', (200, b"a")),
        (b"Content-Type: application/vnd.api+json\r\n", b'{"model":"x"}', (200, b"a")),
        (b"Content-Type: application/x-www-form-urlencoded\r\n", b'{"model":"x"}', (200, b"a")),
        (b"", b'{"model":"x"}', (200, b"a")),
        (b"Content-Type: application/x-www-form-urlencoded\r\n", b"model=x", 404),
        (b"Content-Type: text/plain\r\n", b'{"model":"x"', 400),
        (b"Content-Type: multipart/form-data; boundary=x\r\n", b'--x\r\n\r\n{"model":"x"}', 404),
        (JSON + b"Content-Encoding: gzip\r\n", b"\x1f\x8b\x08", 404),
        (JSON, b"", 404),
    ],
)
def test_j2_where_a_model_can_be_read(fleet, servers, fields: bytes, sent: bytes, answer: object) -> None:
    made, (a, b) = fleet(), servers("a", "b")
    routing = Routing(pools(b"a", b"b"), [Model(b"x", 0)], [Rule(1, b"/b")])
    made.route([a, b], routing)
    status, said = made.ask(sent, fields=fields)
    assert (status, said) == answer if isinstance(answer, tuple) else status == answer
    made.route([a, b], routing._replace(default_pool=1))
    status, said = made.ask(sent, fields=fields)
    assert (status, said) == (answer if isinstance(answer, tuple) else (200, b"b") if answer == 404 else (400, said))


def test_j1_rules_come_first_and_in_their_order(fleet, servers) -> None:
    made, (a, b, c) = fleet(), servers("a", "b", "c")
    rules = [
        Rule(1, b"/v1/audio/"),
        Rule(2, b"/v1/", b"x-tier", b"gold"),
        Rule(2, b"", b"X-Batch"),
        Rule(0, b"/v1/audio/"),
    ]
    made.route([a, b, c], Routing(pools(b"a", b"b", b"c"), [Model(b"x", 0)], rules))
    assert made.ask(b"RIFF", b"/v1/audio/transcriptions", b"Content-Type: audio/wav\r\n") == (200, b"b")
    assert made.ask(body("nobody"), fields=JSON + b"X-TIER: gold\r\n") == (200, b"c")
    assert made.ask(body("x"), fields=JSON + b"X-Tier: silver\r\n") == (200, b"a")
    assert made.ask(body("x"), b"/other", JSON + b"x-batch: \r\n") == (200, b"c")
    assert made.ask(body("x"), b"/v1/audio", JSON) == (200, b"a")
    with Asker(made) as asker:
        asker.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert error(asker.answer()) == (404, "bad_request", None)


def test_j2_a_client_that_waits_for_100_gets_it_before_there_is_a_backend(fleet, servers) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    sent = body("x")
    with Asker(made) as asker:
        asker.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n%sContent-Length: %d\r\n\r\n" % (JSON, len(sent))
        )
        assert asker.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert made.total("connects") == 0
        asker.send(sent)
        assert asker.answer() == (200, b"a")
    assert b"expect" not in a.asked[0][1].lower()
    assert a.asked[0][2] == sent


def test_j1_a_long_body_with_the_model_behind_it(fleet, servers) -> None:
    """It is kept until the model is known, in the budget of what is kept, and then sent."""
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0), Model(b"alias", 0, b"x")]))
    for model in ("x", "alias"):
        sent = body(model, image="A" * (5 << 20))
        assert made.ask(sent, pieces=20) == (200, b"a")
        assert a.asked.pop()[2] == body("x", image="A" * (5 << 20))
    wait_until(lambda: made.total("kept") == 0)


def test_m_what_is_kept_for_the_model_has_a_limit(fleet, servers) -> None:
    made, (a,) = fleet(process=ProcessSettings(kept_memory=100_000)), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    answer = made.ask(body("x", image="A" * 500_000))
    assert error(answer)[0] == 503
    assert made.reason("kept memory over the limit") == 1
    assert made.ask(body("x", image="A" * 50_000)) == (200, b"a")
    wait_until(lambda: made.total("kept") == 0)


def test_a3_the_longest_body_is_that_of_the_pool(fleet, servers) -> None:
    made, (a, b) = fleet(), servers("a", "b")
    small, large = PoolSettings(max_body=1000), PoolSettings(max_body=100_000)
    both = [Pool(b"a", [Member(0)], small), Pool(b"b", [Member(1)], large)]
    made.route([a, b], Routing(both, [Model(b"x", 0), Model(b"y", 1)]))
    assert made.ask(body("y", text="t" * 50_000)) == (200, b"b")
    assert made.ask(body("x", text="t" * 50_000))[0] == 413
    assert made.ask(body("x", text="t" * 500)) == (200, b"a")
    assert made.ask(body("y", text="t" * 200_000))[0] == 413
    assert a.asked[0][2] == body("x", text="t" * 500)


def test_d_a_client_that_leaves_before_it_named_a_model(fleet, servers) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    for number, how in enumerate(("fin", "rst"), 1):
        asker = Asker(made)
        asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: 100\r\n\r\n" % JSON + b'{"mod')
        wait_until(lambda: made.engines[0].clients == 1)
        made.rest()  # an RST would overtake what was not read yet
        (asker.close if how == "fin" else asker.reset)()
        wait_until(lambda number=number: made.outcome("client_abort") == number and not made.engines[0].clients)
    assert made.total("connects") == 0


def test_f_a_client_that_never_names_a_model(fleet, servers) -> None:
    made, (a,) = fleet(idle_timeout=0.2), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    with Asker(made) as asker:
        asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: 100\r\n\r\n" % JSON + b'{"mod')
        assert asker.answer()[0] == 408
    wait_until(lambda: made.outcome("timeout_body") == 1)


# ------------------------------------------------------------------------------------------------------------- balancing


class Holder(Server):
    """A backend that keeps its requests until it is told."""

    def __init__(self, name: str) -> None:
        self.freed = threading.Event()
        super().__init__(name)

    def answer(self, connection: Connection) -> None:
        while True:
            request = connection.read_request()
            self.asked.append((request.line.split()[1], b"", request.body))
            assert self.freed.wait(60)
            respond(connection, self.name.encode())


def one_pool(*members: Member) -> Routing:
    return Routing([Pool(b"p", members)])


def asked_of(made: Fleet, n: int) -> list[Asker]:
    """So many clients that have asked and wait."""
    askers = []
    for _ in range(n):
        asker = Asker(made)
        asker.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        askers.append(asker)
    return askers


@pytest.mark.parametrize("weights", [(1, 1), (2, 1), (1, 3, 2), (5, 1, 1)])
def test_k_weights_are_honoured_one_after_the_other_and_at_once(fleet, weights: tuple[int, ...]) -> None:
    with ExitStack() as stack:
        holders = [stack.enter_context(Holder(str(number))) for number in range(len(weights))]
        made = fleet()
        made.route(holders, one_pool(*(Member(number, weight) for number, weight in enumerate(weights))))
        rounds = 4
        askers = asked_of(made, rounds * sum(weights))
        wait_until(lambda: sum(len(holder.asked) for holder in holders) == len(askers))
        assert [len(holder.asked) for holder in holders] == [rounds * weight for weight in weights]
        for holder in holders:
            holder.freed.set()
        for asker in askers:
            assert asker.answer()[0] == 200
            asker.close()
        wait_until(lambda: all(backend["in_flight"] == 0 for backend in made.engines[0].stats()["backends"].values()))
        got: Counter[bytes] = Counter()
        for _ in range(3 * sum(weights)):
            with Asker(made) as asker:
                asker.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                got[asker.answer()[1]] += 1
            wait_until(lambda: all(b["in_flight"] == 0 for b in made.engines[0].stats()["backends"].values()))
        assert got == {str(number).encode(): 3 * weight for number, weight in enumerate(weights)}


def test_k_a_higher_tier_is_asked_only_while_no_lower_one_is_usable(fleet, servers) -> None:
    made = fleet()
    (spare,) = servers("spare")
    with Server("one") as one, Server("two") as two:
        gone = [one, two]
        made.route([one, two, spare], one_pool(Member(0), Member(1), Member(2, 100, 1)))
        for _ in range(10):
            assert made.ask(b"")[1] in (b"one", b"two")
        assert len(one.asked) == len(two.asked) == 5
    del gone
    for _ in range(5):
        assert made.ask(b"") == (200, b"spare")
    assert len(spare.asked) == 5


def test_k_pools_take_turns_each_for_itself(fleet, servers) -> None:
    made, four = fleet(), servers("a", "b", "c", "d")
    both = [Pool(b"p", [Member(0), Member(1)]), Pool(b"q", [Member(2), Member(3)])]
    made.route(four, Routing(both, [Model(b"p", 0), Model(b"q", 1)]))
    for _ in range(6):
        made.ask(body("p"))
        made.ask(body("q"))
    assert [len(server.asked) for server in four] == [3, 3, 3, 3]


def test_k_a_server_in_two_pools_is_one_with_one_count(fleet) -> None:
    with Holder("shared") as shared, Holder("own") as own:
        made = fleet()
        both = [Pool(b"p", [Member(0)]), Pool(b"q", [Member(0), Member(1)])]
        made.route([shared, own], Routing(both, [Model(b"p", 0), Model(b"q", 1)]))
        askers = []
        for model in ("p", "p", "q", "q"):
            asker = Asker(made)
            sent = body(model)
            asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (JSON, len(sent)) + sent)
            askers.append(asker)
            wait_until(lambda: len(shared.asked) + len(own.asked) == len(askers))
        assert (len(shared.asked), len(own.asked)) == (2, 2)
        for holder in (shared, own):
            holder.freed.set()
        for asker in askers:
            asker.answer()
            asker.close()


def test_i4_a_reload_takes_pools_away_and_brings_others(fleet, servers) -> None:
    """A request whose model is not known yet goes by the names that there are when it is."""
    made, (a, b) = fleet(), servers("a", "b")
    before = Routing(pools(b"a", b"b"), [Model(b"x", 0), Model(b"y", 1)])
    after = Routing([Pool(b"other", [Member(0)]), Pool(b"b", [Member(1)])], [Model(b"x", 1), Model(b"z", 0)])
    alone = Routing([Pool(b"alone", [Member(1)])])
    for routing, answer in ((after, (200, b"b")), (alone, (200, b"b")), (before, (200, b"a"))):
        made.route([a, b], before)
        with Asker(made) as asker, Asker(made) as other:
            sent = body("x", pad="p" * 1000)
            asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (JSON, len(sent)) + sent[:100])
            assert other.ask(body("y")) == (200, b"b")  # by now the worker has the first half of the other one
            made.route([a, b], routing)
            assert other.ask(body("z" if routing is after else "y"))[0] == 200  # and the new table
            asker.send(sent[100:])
            assert asker.answer() == answer
    made.route([a, b], after)
    assert error(made.ask(body("y"))) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"application/json; charset=UTF-8", 200),
        (b'application/json;charset="utf-8" ; x=y', 200),
        (b"application/json; charset=us-ascii", 200),
        (b"application/json; charset=utf-7", 400),
        (b"application/json; x=y; Charset=shift_jis", 400),
        (b"text/plain; charset = utf-16", 400),
        (b"application/json\xa0", 400),
        (b"image/png", 200),
    ],
)
def test_j1_another_charset_is_another_text(fleet, servers, fields: bytes, status: int) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    assert made.ask(body("x"), fields=b"Content-Type: %s\r\n" % fields)[0] == status


@pytest.mark.parametrize(
    "sent", [b"\xef\xbb\xbf" + body("x"), body("x").decode().encode("utf-16"), body("x").decode().encode("utf-16-be")]
)
def test_j2_what_some_readers_take_for_json_is_none(fleet, servers, sent: bytes) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)], default_pool=0))
    assert error(made.ask(sent, fields=b"")) == (400, "bad_request", None)


def test_j2_an_empty_chunked_body_is_none(fleet, servers) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)], default_pool=0))
    with Asker(made) as asker:
        asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert asker.answer() == (200, b"a")


def test_j2_a_client_that_names_the_model_and_waits_for_100(fleet, servers) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    sent = body("x") + b" " * 100
    with Asker(made) as asker:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n%sContent-Length: %d\r\n\r\n" % (JSON, len(sent))
        asker.send(head + sent[:50])
        assert asker.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        asker.send(sent[50:])
        assert asker.answer() == (200, b"a")


def test_a3_a_chunk_over_the_limit_of_its_pool_is_not_begun(fleet, servers) -> None:
    made, (a, b) = fleet(), servers("a", "b")
    both = [Pool(b"a", [Member(0)], PoolSettings(max_body=1000)), Pool(b"b", [Member(1)])]
    made.route([a, b], Routing(both, [Model(b"x", 0), Model(b"y", 1)]))
    with Asker(made) as asker:
        asker.send(
            b"POST / HTTP/1.1\r\nHost: x\r\n" + JSON + b'Transfer-Encoding: chunked\r\n\r\n2000\r\n{"model":"x",'
        )
        assert asker.answer()[0] == 413
    assert made.total("connects") == 0


def test_j2_what_is_held_counts_until_the_backend_has_taken_it(fleet) -> None:
    """A backend that does not read: the body was read for its model, and stays in memory."""
    stop = threading.Event()

    def script(connection: Connection) -> None:
        assert stop.wait(60)
        request = connection.read_request()
        respond(connection, b"%d" % len(request.body))

    with Backend(script) as backend:
        made = fleet(failover_body=0)
        made.configure([(b"a", b"b", b"", [("127.0.0.1", backend.port)], False, 0, b"")])
        for engine in made.engines:
            engine.configure(
                [(b"a", b"b", b"", [("127.0.0.1", backend.port)], False, 0, b"")],
                Routing(pools(b"a"), [Model(b"x", 0)]),
            )
        sent = body("x", image="A" * (30 << 20))
        with Asker(made) as asker:
            asker.send(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (JSON, len(sent)))
            asker.send(sent)
            wait_until(lambda: made.total("connects") == 1)
            wait_until(lambda: 10 << 20 < made.total("kept") <= len(sent) + 1000)
            stop.set()
            assert asker.answer() == (200, b"%d" % len(sent))
        wait_until(lambda: made.total("kept") == 0)


@pytest.mark.parametrize(
    ("routing", "says"),
    [
        (Routing([Pool(b"p", [Member(0)]), Pool(b"p", [Member(1)])]), "named twice"),
        (Routing([Pool(b"p", [Member(0), Member(0)])]), "twice in the pool"),
        (Routing([Pool(b"p", [Member(2)])]), "the index of a backend"),
        (Routing([Pool(b"p", [Member(0, 0)])]), "weight"),
        (Routing([Pool(b"p", [Member(0, 1, -1)])]), "tier"),
        (Routing([Pool(b"p", [Member(0)])], [Model(b"x", 1)]), "the index of a pool"),
        (Routing([Pool(b"p", [Member(0)])], [Model(b"x", 0), Model(b"x", 0)]), "two pools have the model"),
        (Routing([Pool(b"p", [Member(0)])], [Model(b"", 0)]), "length of a model's name"),
        (Routing([Pool(b"p", [Member(0)])], [Model(b"x", 0, b'a"b')]), "cannot be put into JSON"),
        (Routing([Pool(b"p", [Member(0)])], [], [Rule(1, b"/")]), "the index of a pool"),
        (Routing([Pool(b"p", [Member(0)])], default_pool=1), "the index of the default pool"),
        (Routing([Pool(b"p", [Member(0)], PoolSettings(max_response_head=1 << 20))]), "max_response_head"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_table_that_cannot_work_changes_nothing(fleet, servers, routing: Routing, says: str) -> None:
    made, two = fleet(), servers("a", "b")
    made.route(two, Routing([Pool(b"p", [Member(1)])]))
    with pytest.raises(ValueError, match=says):
        made.route(two, routing)
    assert made.ask(b"{}") == (200, b"b")


@pytest.mark.parametrize("many", [False, True])
def test_j3_the_list_of_models_needs_no_backend(fleet, servers, many: bool) -> None:
    listing = b'{"object": "list"}' + b" " * (500_000 if many else 0)
    made, (a,) = fleet(), servers("a")
    routing = Routing([Pool(b"empty", []), Pool(b"a", [Member(0)])], [Model(b"x", 0)], listing=listing)
    made.route([a], routing)
    with Asker(made) as asker:
        asker.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        assert asker.answer() == asker.answer() == (200, listing)
        asker.send(b"GET /v1/models?limit=1 HTTP/1.0\r\nHost: x\r\n\r\n")
        assert asker.answer() == (200, listing)
    with Asker(made) as asker:
        asker.send(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/modelsx HTTP/1.1\r\nHost: x\r\n\r\n")
        head = asker.read_head()
        assert b"Content-Length: %d\r\n" % len(listing) in head
        assert asker.answer()[0] == 404
    wait_until(lambda: made.outcome("ok") == 4)
    assert a.asked == []
    made.route([a], routing._replace(rules=[Rule(1, b"/v1/models")]))
    with Asker(made) as asker:
        asker.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asker.answer() == (200, b"a")


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (b'{"model":"nobody"}', 404, "not_found_error"),
        (b"[]", 400, "invalid_request_error"),
        (b'{"model":"x"}', 503, "api_error"),
    ],
)
def test_rule_r_messages_have_errors_of_their_own_shape(fleet, servers, sent: bytes, status: int, kind: str) -> None:
    """Rule R."""
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing([Pool(b"empty", [])], [Model(b"x", 0)]))
    for request_id, shown in ((b"abc", "abc"), (b'a"b', None), (b"a\\b", None)):
        got, said = made.ask(sent, b"/v1/messages?beta=true", JSON + b"X-Request-ID: %s\r\n" % request_id)
        said = json.loads(said)
        assert (got, said["type"], said["error"]["type"], said.get("request_id")) == (status, "error", kind, shown)
        assert said["error"]["message"]


def test_the_openai_client_understands(fleet, servers) -> None:
    made, (a,) = fleet(), servers("a")
    made.route([a], Routing(pools(b"a"), [Model(b"x", 0)]))
    with openai.OpenAI(base_url="http://{}:{}/v1".format(*made.address), api_key="k", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
