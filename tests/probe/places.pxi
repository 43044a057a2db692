# places: where an exchange may stand, and what may happen to it there. The fuzzers' target `exchange` starts at a place.
#
# An input is four bytes, the place, the settings, the table and the end, and then events of two bytes, which and how. Any bytes are an
# input. exchange_script() makes a script of the world of it: operations that lead to the place, those of the events, and those
# of the end. A place is reached by what clients and backends do, so that no exchange is in a state that it could not be in.

cdef enum:
    # What is true of an exchange beside its state; of a connection without one in the second group.
    MARK_UP_HELD = 1 << 0       # bytes wait for the upstream
    MARK_DOWN_HELD = 1 << 1     # bytes wait for the client
    MARK_UP_BROKEN = 1 << 2
    MARK_DEAF = 1 << 3
    MARK_FULL = 1 << 4          # the backlog that it connects to was full
    MARK_REUSED = 1 << 5        # its upstream had an exchange before
    MARK_SECOND = 1 << 6        # it is not the first upstream that it is tried on
    MARK_UNANSWERED = 1 << 7    # a backend took it and ended without a byte
    MARK_BODY = 1 << 8          # the request is not whole
    MARK_CONTENT = 1 << 9
    MARK_PART = 1 << 10         # of the answer's head is there
    MARK_BEHIND = 1 << 11       # bytes stand behind the request
    MARK_ORPHAN = 1 << 12
    MARK_CLIENT_FIN = 1 << 13
    MARK_UPSTREAM_FIN = 1 << 14
    MARK_DRAIN = 1 << 15
    MARK_STATUS = 1 << 16       # an answer has begun
    MARK_CLIENT_LINGERS = 1 << 20
    MARK_UPSTREAM_LINGERS = 1 << 21
    MARK_IDLE = 1 << 22         # an upstream
    NO_EXCHANGE = 255           # in the place of a state

cdef struct PlaceC:
    int state
    int marks

cdef PlaceC places[64]

cdef int place_marks(ExchangeC *x) noexcept nogil:
    cdef UpstreamC *upstream = x.upstream
    cdef int marks = 0
    marks |= MARK_UP_HELD if x.up.unsent else 0
    marks |= MARK_DOWN_HELD if x.down.unsent else 0
    marks |= MARK_UP_BROKEN if x.up_broken else 0
    marks |= MARK_DEAF if x.deaf else 0
    marks |= MARK_SECOND if x.attempts > 1 or x.addresses_tried else 0
    marks |= MARK_UNANSWERED if x.unanswered else 0
    marks |= MARK_BODY if not x.up_body.done else 0
    marks |= MARK_CONTENT if x.content else 0
    marks |= MARK_STATUS if x.status else 0
    if x.client is not NULL:
        marks |= MARK_BEHIND if x.client.pending.buf is not NULL or x.client.pending.long_head is not NULL else 0
        marks |= MARK_CLIENT_FIN if x.client.conn.hung_up else 0
    if upstream is not NULL:
        marks |= MARK_FULL if upstream.full else 0
        marks |= MARK_REUSED if upstream.reused else 0
        marks |= MARK_PART if upstream.pending.buf is not NULL or upstream.pending.long_head is not NULL else 0
        marks |= MARK_ORPHAN if upstream.orphan else 0
        marks |= MARK_UPSTREAM_FIN if upstream.conn.hung_up else 0
    return marks

cdef bint place_reached(WorkerC *w) noexcept nogil:
    # Whether there is an exchange, or a connection without one, at the place that the script leads to.
    cdef PlaceC *place = &places[world.place]
    cdef ConnC *conn = w.all
    cdef int marks
    while conn is not NULL:
        marks = MARK_DRAIN if w.draining else 0
        if conn.exchange is not NULL:
            marks |= place_marks(conn.exchange)
        elif conn.kind == CONN_CLIENT:
            marks |= MARK_CLIENT_LINGERS if (<ClientC *>conn).state == CLIENT_LINGER else 0
        else:
            marks |= MARK_UPSTREAM_LINGERS if (<UpstreamC *>conn).lingers else MARK_IDLE
        if (marks & place.marks) == place.marks and place.state == (
                NO_EXCHANGE if conn.exchange is NULL else conn.exchange.state):
            return True
        conn = conn.all_next
    return False

# ------------------------------------------------------------------------------------------------------------- to Python

Place = namedtuple("Place", "name state marks operations settings table may_set may_route")
Place.__doc__ = """Where an exchange may stand: its state and marks, the operations that lead there, the settings and the table of the
script in which they do, and which bits of both an input may choose.
"""

# By bit, as the first two bytes of a script have them.
_RETRY = 16
_TWO, _FINISH, _ADDRESSES, _FOUR, _UNIX = 1, 2, 8, 16, 64
_ANY_SETTINGS = 1 | 2 | 4 | 16 | 32 | 64        # but a small limit of bodies, and limits of clients
_ANY_TABLE = 1 | 2 | 8 | 16 | 32

HELLO, CHUNK, LAST = 4, 13, 14          # of REQUESTS: pieces of bodies
GET, POST, WAITS, UPGRADE, OLD, TWICE, LONG, CHUNKED, BEGINS = 0, 1, 3, 5, 6, 10, 11, 12, 17
ANSWER, EVENTS_BEGIN, EVENT, EVENTS_END, UNTIL_CLOSE, CONTINUE, SWITCH, BUSY, LENGTH = 0, 2, 3, 4, 5, 6, 8, 10, 12      # of RESPONSES


def _operation(str name, int who=0, n=0):
    if isinstance(n, bytes):
        return bytes([OPERATIONS.index(name), who, len(n)]) + n
    return bytes([OPERATIONS.index(name), who, n])


def _place(str name, int state, int marks, *steps, settings=0, table=0, may_set=_ANY_SETTINGS, may_route=_ANY_TABLE):
    # A step is (operation, who, n), or (operation, n) of the first client or upstream. A last "&": together with the next one.
    operations = b""
    for step in steps:
        together = OP_TOGETHER if "&" in step else 0
        step = [part for part in step if part != "&"]
        if len(step) == 2:
            step.insert(1, 0)
        operation = _operation(*step)
        operations += bytes([operation[0] | together]) + operation[1:]
    return Place(name, state, marks, operations, settings, table, may_set & ~settings, may_route & ~table)


_CLIENT = ("connect", 0)
_ANSWERED = (("backend_answer", 1), _CLIENT, ("client_say", GET), ("backend_answer", 0))    # once, so that an upstream is idle
_TUNNEL = (_CLIENT, ("client_say", UPGRADE), ("upstream_say", SWITCH))
_STREAM = (_CLIENT, ("client_say", GET), ("upstream_say", EVENTS_BEGIN), ("upstream_say", EVENT))
_UPLOAD = (_CLIENT, ("client_say", CHUNKED), ("client_say", CHUNK))
_ONE_AT_A_TIME = ("setting", SETTINGS.index("max_in_flight"), 1)
_ONE = _FINISH | 32         # of the table's bits: those with which there is one backend with one address
_HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Le"

PLACES = (
    _place("head", STATE_HEAD, 0, _CLIENT, ("client_say", BEGINS)),
    _place("connect", STATE_CONNECT, 0, ("backend_connect", 2), _CLIENT, ("client_say", POST)),
    _place("connect, upload", STATE_CONNECT, MARK_BODY, ("backend_connect", 2), *_UPLOAD),
    _place("connect, full backlog", STATE_CONNECT, MARK_FULL, ("backend_connect", 2), _CLIENT, ("client_say", POST),
           table=_UNIX),
    _place("connect, second address", STATE_CONNECT, MARK_SECOND, ("backend_connect", 0, 4), ("backend_connect", 2, 2), _CLIENT,
           ("client_say", POST), table=_ADDRESSES),
    _place("connect, second backend", STATE_CONNECT, MARK_SECOND, ("backend_connect", 0, 3), ("backend_connect", 1, 2), _CLIENT,
           ("client_say", POST), table=_TWO, may_route=_ONE),
    _place("connect, orphan", STATE_CONNECT, MARK_ORPHAN, ("backend_connect", 2), _CLIENT, ("client_say", GET),
           ("configure", 128)),
    _place("wait", STATE_WAIT, 0, _CLIENT, ("client_say", GET)),
    _place("wait, expects", STATE_WAIT, MARK_BODY, _CLIENT, ("client_say", WAITS)),
    _place("wait, upload", STATE_WAIT, MARK_BODY, *_UPLOAD),
    _place("wait, held up", STATE_WAIT, MARK_BODY | MARK_UP_HELD, *_UPLOAD, ("upstream_room", 0), ("client_say", CHUNK)),
    _place("wait, held up and whole", STATE_WAIT, MARK_UP_HELD, *_UPLOAD, ("upstream_room", 0), ("client_say", LAST)),
    _place("wait, behind", STATE_WAIT, MARK_BEHIND, _CLIENT, ("client_say", TWICE)),
    _place("wait, reused", STATE_WAIT, MARK_REUSED, *_ANSWERED, ("client_say", GET), may_route=_ONE | _ADDRESSES),
    _place("wait, stale", STATE_WAIT, MARK_UNANSWERED, *_ANSWERED, ("client_say", GET), ("upstream_fin", 0),
           may_route=_ONE | _ADDRESSES),
    _place("wait, second backend", STATE_WAIT, MARK_UNANSWERED | MARK_SECOND, _CLIENT, ("client_say", GET), ("upstream_reset", 0),
           table=_TWO),
    _place("wait, retried", STATE_WAIT, MARK_SECOND, _CLIENT, ("client_say", POST), ("upstream_say", BUSY), settings=_RETRY,
           table=_TWO),
    _place("wait, retried upload", STATE_WAIT, MARK_SECOND | MARK_BODY, *_UPLOAD, ("upstream_say", BUSY), settings=_RETRY,
           table=_TWO),
    _place("wait, orphan", STATE_WAIT, MARK_ORPHAN, _CLIENT, ("client_say", GET), ("configure", 128)),
    _place("wait, half a head", STATE_WAIT, MARK_PART, _CLIENT, ("client_say", GET), ("upstream_send", _HALF_HEAD)),
    _place("wait, interim held", STATE_WAIT, MARK_DOWN_HELD | MARK_BODY, _CLIENT, ("client_say", WAITS), ("client_room", 0),
           ("upstream_say", CONTINUE)),
    _place("wait, broken up", STATE_WAIT, MARK_UP_BROKEN | MARK_DOWN_HELD, *_UPLOAD, ("client_room", 0), ("upstream_say", CONTINUE),
           ("upstream_say", ANSWER, "&"), ("upstream_fin", 0, "&"), ("upstream_reset", 0, "&"), ("client_say", CHUNK)),
    _place("stream, silent", STATE_STREAM, 0, _CLIENT, ("client_say", GET), ("upstream_say", EVENTS_BEGIN)),
    _place("stream", STATE_STREAM, MARK_CONTENT, *_STREAM),
    _place("stream, held down", STATE_STREAM, MARK_DOWN_HELD, *_STREAM, ("client_room", 0), ("upstream_say", EVENT)),
    _place("stream, upload", STATE_STREAM, MARK_BODY, *_UPLOAD, ("upstream_say", EVENTS_BEGIN)),
    _place("stream, held both ways", STATE_STREAM, MARK_BODY | MARK_UP_HELD | MARK_DOWN_HELD, *_UPLOAD,
           ("upstream_say", EVENTS_BEGIN), ("upstream_room", 0), ("client_say", CHUNK), ("client_room", 0), ("upstream_say", EVENT)),
    _place("stream, broken up", STATE_STREAM, MARK_UP_BROKEN | MARK_DOWN_HELD, *_UPLOAD, ("client_room", 0),
           ("upstream_say", EVENTS_BEGIN), ("upstream_say", EVENT, "&"), ("upstream_reset", 0, "&"), ("client_say", CHUNK)),
    _place("stream, length", STATE_STREAM, 0, _CLIENT, ("client_say", GET), ("upstream_say", LENGTH)),
    _place("stream, until close", STATE_STREAM, MARK_CONTENT, _CLIENT, ("client_say", GET), ("upstream_say", UNTIL_CLOSE)),
    _place("stream, without chunks", STATE_STREAM, MARK_CONTENT, _CLIENT, ("client_say", OLD), ("upstream_say", EVENTS_BEGIN),
           ("upstream_say", EVENT)),
    _place("stream, drain", STATE_STREAM, MARK_CONTENT | MARK_DRAIN, *_STREAM, ("drain", 0)),
    _place("flush", STATE_FLUSH, MARK_DOWN_HELD, _CLIENT, ("client_say", GET), ("client_room", 0), ("upstream_say", ANSWER)),
    _place("flush, behind", STATE_FLUSH, MARK_BEHIND, _CLIENT, ("client_say", TWICE), ("client_room", 0),
           ("upstream_say", ANSWER)),
    _place("flush, upload", STATE_FLUSH, MARK_BODY | MARK_DOWN_HELD, *_UPLOAD, ("client_room", 0), ("upstream_say", ANSWER)),
    _place("flush, truncated", STATE_FLUSH, MARK_DOWN_HELD | MARK_CONTENT, *_STREAM, ("client_room", 0),
           ("upstream_send", b"5\r\nhello\r\nzz\r\n")),
    _place("tunnel", STATE_TUNNEL, 0, *_TUNNEL),
    _place("tunnel, held up", STATE_TUNNEL, MARK_UP_HELD, *_TUNNEL, ("upstream_room", 0), ("client_fill", 1)),
    _place("tunnel, held down", STATE_TUNNEL, MARK_DOWN_HELD, *_TUNNEL, ("client_room", 0), ("upstream_fill", 1)),
    _place("tunnel, held both ways", STATE_TUNNEL, MARK_UP_HELD | MARK_DOWN_HELD, *_TUNNEL, ("upstream_room", 0),
           ("client_fill", 1), ("client_room", 0), ("upstream_fill", 1)),
    _place("tunnel, held both ways, client's FIN", STATE_TUNNEL, MARK_UP_HELD | MARK_DOWN_HELD | MARK_CLIENT_FIN, *_TUNNEL,
           ("upstream_room", 0), ("client_fill", 1), ("client_room", 0), ("upstream_fill", 1), ("client_fin", 0)),
    _place("tunnel, held both ways, backend's FIN", STATE_TUNNEL, MARK_UP_HELD | MARK_DOWN_HELD | MARK_UPSTREAM_FIN, *_TUNNEL,
           ("upstream_room", 0), ("client_fill", 1), ("client_room", 0), ("upstream_fill", 1), ("upstream_fin", 0)),
    _place("tunnel, deaf", STATE_TUNNEL, MARK_UP_HELD | MARK_DEAF, *_TUNNEL, ("upstream_room", 0), ("client_fill", 1),
           ("client_fin", 0), ("client_reset", 0), ("upstream_fill", 1)),
    _place("tunnel, broken up", STATE_TUNNEL, MARK_UP_BROKEN | MARK_DOWN_HELD, *_TUNNEL, ("client_room", 0), ("upstream_fill", 1),
           ("upstream_fin", 0), ("upstream_reset", 0), ("client_fill", 1)),
    _place("detached", STATE_DETACHED, 0, _CLIENT, ("client_say", GET), ("client_fin", 0), table=_FINISH),
    _place("detached, half a head", STATE_DETACHED, MARK_PART, _CLIENT, ("client_say", GET), ("upstream_send", _HALF_HEAD),
           ("client_reset", 0), table=_FINISH),
    _place("detached, stream", STATE_DETACHED, MARK_CONTENT | MARK_STATUS, *_STREAM, ("client_fin", 0), table=_FINISH),
    _place("detached, held down", STATE_DETACHED, MARK_STATUS, *_STREAM, ("client_room", 0), ("upstream_say", EVENT),
           ("client_fin", 0), table=_FINISH),
    _place("detached, orphan", STATE_DETACHED, MARK_ORPHAN, _CLIENT, ("client_say", GET), ("client_fin", 0),
           ("configure", 128), table=_FINISH),
    _place("client lingers", NO_EXCHANGE, MARK_CLIENT_LINGERS, *_UPLOAD, ("upstream_say", ANSWER)),
    _place("client lingers, tunnel", NO_EXCHANGE, MARK_CLIENT_LINGERS, *_TUNNEL, ("upstream_fin", 0)),
    _place("upstream lingers", NO_EXCHANGE, MARK_UPSTREAM_LINGERS, *_TUNNEL, ("client_fin", 0)),
    _place("idle", NO_EXCHANGE, MARK_IDLE, *_ANSWERED),
    # One exchange at a time, of all backends; and no backend that can be connected.
    _place("queue", STATE_QUEUE, 0, _ONE_AT_A_TIME, _CLIENT, ("client_say", GET), _CLIENT, ("client_say", 1, POST)),
    _place("queue, upload", STATE_QUEUE, MARK_BODY, _ONE_AT_A_TIME, _CLIENT, ("client_say", GET), _CLIENT,
           ("client_say", 1, CHUNKED), ("client_say", 1, CHUNK)),
    _place("queue, behind", STATE_QUEUE, MARK_BEHIND, _ONE_AT_A_TIME, _CLIENT, ("client_say", GET), _CLIENT,
           ("client_say", 1, TWICE)),
    _place("queue, cold", STATE_QUEUE, 0, ("setting", SETTINGS.index("cold_timeout"), len(_TIMES) - 1), ("backend_connect", 3),
           _CLIENT, ("client_say", POST), may_route=_ONE),
)

_SIZES = (1, 0, 2, 4, 16, 64, 255)
_PIECES = (b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"zz\r\n", b"\0", b"ngth: 7\r\n\r\n", b"st: a\r\n\r\n", b"data: x\n\n",
           b"8\r\n: ping\n\n\r\n", b"HTTP/1.1 200 OK\r\n", b"1", b"5\r\n", b"hello", b"\r\n0\r\n")
_ROOM = (0, 255, 1, 2, 3, 4, 8)
_CUT = (0, 0, 16, 112)          # in `who`: said in pieces

# An event: the operation, whom it may happen to, and how. Several rows for one operation make it more frequent.
_EVENTS = (
    ("client_fill", (0,), _SIZES),
    ("client_say", (0, 0, 16, 112), (HELLO, CHUNK, LAST, 19)),
    ("client_say", (0, 1), tuple(range(len(REQUESTS)))),
    ("client_send", (0,), _PIECES),
    ("client_fin", (0, 0, 0, 1), (0,)),
    ("client_reset", (0, 0, 0, 1), (0,)),
    ("client_room", (0, 0, 0, 1), _ROOM),
    ("client_room", (0,), (0, 255)),
    ("client_urgent", (0,), (1, 0, 31)),
    ("client_cork", (0,), (1, 0)),
    ("client_lazy", (0,), (1, 0)),
    ("upstream_fill", (0, 0, 0, 1), _SIZES),
    ("upstream_chunk", (0,), _SIZES),
    ("upstream_say", (0, 0, 16, 112, 1), tuple(range(len(RESPONSES)))),
    ("upstream_say", (0, 0, 16, 112), (EVENT, EVENTS_END, ANSWER, SWITCH, CONTINUE)),
    ("upstream_send", (0, 0, 1), _PIECES),
    ("upstream_fin", (0, 0, 0, 1), (0,)),
    ("upstream_reset", (0, 0, 0, 1), (0,)),
    ("upstream_room", (0, 0, 0, 1), _ROOM),
    ("upstream_room", (0,), (0, 255)),
    ("upstream_urgent", (0,), (1, 0, 31)),
    ("upstream_cork", (0,), (1, 0)),
    ("upstream_lazy", (0,), (1, 0)),
    ("upstream_settle", (0, 1), (0, 1, 2, 3)),
    ("backend_connect", (0, 1, 2, 8), (0, 1, 2, 3, 4)),
    ("backend_answer", (0, 1, 2, 16, 32, 48), (0, 1, 2, 11, 65)),
    ("time", (0,), (1, 20, 99, 100, 101, 102)),
    ("time", (0,), (100, 5, 99)),
    ("configure", (0, 0, 2, 1), (0, 1, 128, 4, 2, 9, 64, 130)),
    ("connect", (0,), (0, 1, 4)),
    ("short", (1, 2, 3), (0, 1, 7, 100)),
    ("fault", tuple(range(len(CALLS))), tuple(range(256))),
    ("setting", tuple(range(len(SETTINGS))), tuple(range(24))),
    ("drain", (0,), (0,)),
    ("stop", (0,), (0,)),
    ("end_listening", (0,), (0,)),
)

# How an input ends, before the world does: silence, or one of these.
_ENDS = (
    (),
    (("client_fin", 0),),
    (("client_reset", 0),),
    (("upstream_fin", 0),),
    (("upstream_reset", 0),),
    (("client_fin", 0, "&"), ("upstream_fin", 0)),
    (("client_room", 255, "&"), ("upstream_room", 255)),
    (("drain", 0),),
    (("stop", 0),),
)

cdef enum:
    EXCHANGE_HEAD = 4           # bytes of an input before its events
    EVENT_SIZE = 2
    EVENT_TOGETHER = 128

EVENTS = len(_EVENTS)
ENDS = len(_ENDS)
STATE_NAMES = {
    STATE_HEAD: "head", STATE_MODEL: "model", STATE_ROUTE: "route", STATE_QUEUE: "queue", STATE_CONNECT: "connect",
    STATE_WAIT: "wait", STATE_STREAM: "stream", STATE_FLUSH: "flush", STATE_TUNNEL: "tunnel", STATE_DETACHED: "detached",
    NO_EXCHANGE: "none",
}
cdef list _END_OPERATIONS = [_place("", 0, 0, *end).operations for end in _ENDS]


cdef bytes _happening(int what, int how):
    # What happens at once with the next event is marked in the upper bit.
    name, whos, ns = _EVENTS[(what & ~EVENT_TOGETHER) % len(_EVENTS)]
    n = ns[how // len(whos) % len(ns)]
    operation = _operation(name, whos[how % len(whos)], n)
    return bytes([operation[0] | (OP_TOGETHER if what & EVENT_TOGETHER else 0)]) + operation[1:]


def exchange_script(bytes data not None):
    """The script of an input of the target `exchange`, and the number of its place."""
    head = data[:EXCHANGE_HEAD] + bytes(EXCHANGE_HEAD - len(data[:EXCHANGE_HEAD]))
    number = head[0] % len(PLACES)
    place = PLACES[number]
    parts = [bytes([place.settings | head[1] & place.may_set, place.table | head[2] & place.may_route]), place.operations]
    for at in range(EXCHANGE_HEAD, len(data) - 1, EVENT_SIZE):
        parts.append(_happening(data[at], data[at + 1]))
    parts.append(_END_OPERATIONS[head[3] % len(_END_OPERATIONS)])
    return b"".join(parts), number


def run_exchange(bytes data not None, bint aborts=False):
    """Runs an input of the target `exchange`: what run() gives, and the script that it was. Nothing is told to stop before it has
    ended by itself."""
    script, place = exchange_script(data)
    return run(script, aborts=aborts, settles=True, place=place), script


for _i, _one in enumerate(PLACES):
    places[_i].state = _one.state
    places[_i].marks = _one.marks
