"""What each outcome and each reason means, and what to do, in a sentence for somebody who has never heard of it.

`llmpipe explain` says these sentences, and the tables of docs/explain.md are made of them (`tables`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Explanation(NamedTuple):
    """A sentence or two each."""

    meaning: str
    advice: str


_CLIENT_HTTP = "Correct the client, or what stands between it and the proxy."
_BACKEND_HTTP = "Correct the backend, or update it; its answers cannot be read safely."
_BACKEND_ENDS = "Correct the backend when you can: the client got its answer, only the connection is lost."
_EITHER_HTTP = "Correct the client if the status is 4xx, otherwise the backend."
_ALIVE = "Look whether the backend still runs, and at its log around this time: it may have crashed or been restarted."
_NETWORK = "Look at the backend's address, at routes and at firewalls between the proxy and it."
_CAPACITY = "Add a backend, raise max_in_flight if the backends have room, or send less at a time."

OUTCOMES: Mapping[str, Explanation] = {
    "ok": Explanation("The whole answer was forwarded.", "Nothing."),
    "client_abort": Explanation(
        "The client closed the connection before it had the whole answer.",
        "If it was not meant to: look at the client's own time-out, and at proxies before this one.",
    ),
    "upstream_abort": Explanation(
        "The backend broke off after a part of its answer had been forwarded.",
        "The reason says how it broke off. " + _ALIVE,
    ),
    "upstream_error": Explanation(
        "The backend closed the connection, or answered something that is no HTTP, before anything of its answer was forwarded.",
        "The reason says what was wrong. " + _ALIVE,
    ),
    "connect_error": Explanation(
        "No backend could be connected.", "Start a backend, or correct its address. " + _NETWORK
    ),
    "no_backend": Explanation(
        "No backend of the pool may be asked: each is drained or its name has no address; or all are down, and the request waited in vain.",
        "Look at /status, which says why each is not used.",
    ),
    "timeout_connect": Explanation(
        "The backend did not accept a connection within connect_timeout.",
        _NETWORK + " A backend that is overloaded may also be too slow to accept.",
    ),
    "timeout_ttft": Explanation(
        "The backend sent no content within ttft_timeout.",
        "It may have a long queue of its own or a very long prompt: give it less at a time with max_in_flight, or raise ttft_timeout.",
    ),
    "timeout_idle": Explanation(
        "The backend sent nothing for idle_timeout in the middle of its answer, or did not take the request for as long.",
        "It hangs, or it is paused. Look at its log; if long pauses are usual there, raise idle_timeout.",
    ),
    "timeout_total": Explanation(
        "The exchange took longer than total_timeout.", "Raise total_timeout, or ask for shorter answers."
    ),
    "timeout_send": Explanation(
        "The client took no byte of its answer for send_timeout.",
        "Look whether the client still reads, and at the network to it.",
    ),
    "timeout_head": Explanation(
        "The client did not send the whole head of its request within head_timeout.",
        "Look at the network to the client.",
    ),
    "timeout_body": Explanation(
        "The client stopped in the middle of the body of its request for idle_timeout.",
        "Look at the client and the network to it: the Content-Length may be larger than what it sends.",
    ),
    "bad_request": Explanation("The proxy refused the request.", "The reason says what is wrong with it."),
    "overload": Explanation(
        "The proxy had no room for the request: no descriptors, no memory, or as many connections as it may have.",
        "Raise the limit that the reason names, or run more proxies.",
    ),
    "shutdown": Explanation(
        "The proxy was ending, and its time for streams to finish was over.",
        "Raise drain_timeout, or use llmpipe upgrade for a new version.",
    ),
    "queue_full": Explanation(
        "Every backend was busy, and as many requests as may were waiting already.",
        _CAPACITY + " A larger queue.size only makes clients wait longer.",
    ),
    "queue_timeout": Explanation(
        "Every backend was busy for as long as the request may wait (queue.timeout, or what the client said).",
        _CAPACITY,
    ),
}
"""By the name of an outcome."""

REASONS: Mapping[str, Explanation] = {
    "FIN before the head": Explanation("The backend closed the connection without a byte of an answer.", _ALIVE),
    "FIN in the head": Explanation("The backend closed the connection within the head of its answer.", _ALIVE),
    "FIN in the body": Explanation("The backend closed the connection before its answer was complete.", _ALIVE),
    "ECONNRESET": Explanation("The backend reset the connection.", _ALIVE),
    "EPIPE": Explanation("The backend had closed the connection when the request was sent there.", _ALIVE),
    "ECONNREFUSED": Explanation(
        "Nothing listens at the backend's address.", "Start the backend, or correct its host and port."
    ),
    "ETIMEDOUT": Explanation("The backend's machine does not answer any more.", _NETWORK),
    "EHOSTUNREACH": Explanation("There is no way to the backend's machine.", _NETWORK),
    "ENETUNREACH": Explanation("There is no way to the backend's network.", _NETWORK),
    "other errno": Explanation(
        "The system refused to send or receive for a rare cause.", "The error beside it has the system's name for it."
    ),
    "deadline": Explanation(
        "A backend or a client was slower than a time-out allows.", "The outcome says which time-out that was."
    ),
    "broken first line": Explanation("The first line of a head is not that of HTTP/1.", _EITHER_HTTP),
    "head over the limit": Explanation(
        "A head is longer than max_head allows for a request, or max_response_head for an answer.",
        "Send fewer or shorter fields (cookies, most often), or raise the limit.",
    ),
    "bytes behind the end": Explanation("The backend sent bytes after the end of its answer.", _BACKEND_ENDS),
    "bytes before the request": Explanation("The backend sent bytes that nobody had asked for.", _BACKEND_HTTP),
    "101 without a request to upgrade": Explanation(
        "The backend changed the protocol, which the request had not asked for.", _BACKEND_HTTP
    ),
    "no memory": Explanation("The proxy had no memory left.", "Give it more memory, or fewer connections."),
    "no descriptors": Explanation(
        "The proxy had no file descriptors left.", "Raise the limit on open files (ulimit -n, LimitNOFILE)."
    ),
    "more fields than the limit": Explanation(
        "A head has more fields than max_fields allows for a request, or max_response_fields for an answer.",
        "Send fewer fields, or raise the limit.",
    ),
    "TLS": Explanation("Somebody spoke TLS to a port that has plain HTTP.", "Write http:// in the client's URL."),
    "bare LF": Explanation("A line of a head ends with LF instead of CRLF.", _EITHER_HTTP),
    "bare CR": Explanation("A head has a CR without an LF after it.", _EITHER_HTTP),
    "control character": Explanation("A head has a control character in it.", _EITHER_HTTP),
    "folded line": Explanation("A field of a head goes on in a second line, which HTTP/1.1 forbids.", _EITHER_HTTP),
    "space before the colon": Explanation("A head has white space between a field's name and its colon.", _EITHER_HTTP),
    "bad field name": Explanation(
        "A line of a head is no field, or its name has a character that none may have.", _EITHER_HTTP
    ),
    "bad Content-Length": Explanation("A Content-Length is not a number.", _EITHER_HTTP),
    "two Content-Lengths": Explanation("A head says its length twice.", _EITHER_HTTP),
    "bad Transfer-Encoding": Explanation("A Transfer-Encoding is something else than chunked.", _EITHER_HTTP),
    "two Transfer-Encodings": Explanation("A head has Transfer-Encoding twice.", _EITHER_HTTP),
    "Content-Length and Transfer-Encoding": Explanation(
        "A head has both Content-Length and Transfer-Encoding, so that two readers could see two messages.",
        _EITHER_HTTP,
    ),
    "Transfer-Encoding in HTTP/1.0": Explanation(
        "A message of HTTP/1.0 is chunked, which 1.0 does not know.", _EITHER_HTTP
    ),
    "bad Connection": Explanation(
        "The field Connection is no list of names, or names a field that must stay.", _EITHER_HTTP
    ),
    "bad Host": Explanation("The field Host is no host.", _CLIENT_HTTP),
    "two Hosts": Explanation("The request has two Host fields.", _CLIENT_HTTP),
    "no Host": Explanation("The request has no Host.", _CLIENT_HTTP),
    "request line over the limit": Explanation(
        "The first line of the request is longer than max_request_line.", "Ask with a shorter URL, or raise the limit."
    ),
    "bad target": Explanation("The request's target is neither a path nor an http URL.", _CLIENT_HTTP),
    "other version": Explanation(
        "The client speaks another version of HTTP than 1.0 and 1.1.", "Have it use HTTP/1.1."
    ),
    "CONNECT": Explanation(
        "The client took this for a forward proxy.", "Use this address as its base URL, not as its proxy."
    ),
    "other expectation": Explanation("The field Expect asks for something else than 100-continue.", _CLIENT_HTTP),
    "body over the limit": Explanation("The request's body is longer than max_body.", "Send less, or raise the limit."),
    "1xx with a body": Explanation(
        "The backend sent an interim answer that has a body, which none may have.", _BACKEND_HTTP
    ),
    "204 with a body": Explanation(
        "The backend sent a body with a status that has none; it was left out.", _BACKEND_ENDS
    ),
    "bad chunk size": Explanation("A chunk of a body does not begin with its size.", _EITHER_HTTP),
    "bad chunk extension": Explanation("What follows the size of a chunk cannot be read.", _EITHER_HTTP),
    "no line end behind a chunk": Explanation("A chunk is not as long as it says.", _EITHER_HTTP),
    "bad trailer": Explanation("What follows the last chunk is no field, or one that may not be there.", _EITHER_HTTP),
    "connections of one address": Explanation(
        "The client's address has as many connections as max_connections_per_ip allows.",
        "Raise it, or name the proxy before this one in trusted_proxies.",
    ),
    "connections of all": Explanation(
        "The proxy has as many connections as max_connections allows.", "Raise it, or run more proxies."
    ),
    "no route": Explanation(
        "No route, and no default pool, leads anywhere for this path.",
        "Name the model in the request's JSON, or configure a route or default_pool.",
    ),
    "kept memory over the limit": Explanation(
        "The proxy keeps as much of requests as kept_memory allows, and did not know yet where this one belongs.",
        "Raise kept_memory, or send fewer large requests at a time.",
    ),
    "other charset": Explanation("The request says that its JSON is not UTF-8.", "Send UTF-8."),
    "bad JSON": Explanation("The request's body is not a JSON object, so its model is not known.", "Correct the body."),
    "two models": Explanation("The request names a model twice; two readers would take two.", "Name it once."),
    "model in another case": Explanation(
        "The request has a key such as Model, which some servers would take for the model.", "Write model."
    ),
    "model is no string": Explanation("The model in the request is not a string.", "Write it as one."),
    "no model": Explanation("The request names no model, and needs one to find a backend.", "Name the model."),
    "unknown model": Explanation(
        "No pool has the model that the request names.", "Ask /v1/models for those there are, or add it to a pool."
    ),
    "queue full": Explanation("As many requests as queue.size allows were waiting already.", _CAPACITY),
    "its turn would come too late": Explanation(
        "The request would not have got a place within queue.timeout, or within the time that its client waits.",
        _CAPACITY,
    ),
    "5xx in a row": Explanation(
        "The backend answered with one 5xx after another, and is left out for a while.", "Look at the backend's log."
    ),
    "error event first": Explanation(
        "The backend's event stream began with an error instead of content.",
        "Look at the backend's log: out of memory, or a request that is too long for it, most often.",
    ),
    "end without an event": Explanation(
        "The backend's event stream ended without an event.", "Look at the backend's log."
    ),
}
"""By the name of a reason."""


def table(first: str, explanations: Mapping[str, Explanation]) -> str:
    """A table in Markdown, with the names in a column called `first`."""
    rows = [f"| `{name}` | {found.meaning} | {found.advice} |" for name, found in explanations.items()]
    return "\n".join([f"| {first} | what it means | what to do |", "|---|---|---|", *rows])


def tables() -> str:
    """What docs/explain.md has of them."""
    return f"{table('outcome', OUTCOMES)}\n\n{table('reason', REASONS)}\n"
