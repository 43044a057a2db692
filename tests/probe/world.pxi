# world: one engine on the simulated kernel, and the script that plays its clients, its backends and its control plane.
#
# A script is bytes: how the engine is set up, the routing table, then operations of three bytes, (what, who, n), some with
# n bytes behind them. Any bytes are a script. Each time the engine would sleep, world_idle() looks whether it has done all
# that it could, and carries out the next operation; after the last one the clients leave and the engine is stopped. The
# engine's loop is the product's own and knows nothing of this.

from collections import namedtuple
from copy import copy

cdef extern from "kernel.h" nogil:
    enum:
        SIM_ENDS
        SIM_FIRST
        SIM_FAULTS
        SIM_CALLS
        SIM_CONNECT
        SIM_UNLIMITED
        END_LISTENER
        END_CLIENT
        END_UPSTREAM
        CONNECT_SOON
        CONNECT_NOW
        CONNECT_MODES
        SIM_FOR_EVER
        CLIENT_FAMILIES
    const char **SIM_CALL_NAMES
    cdef struct sim_bytes:
        uint8_t *data
        size_t n
        size_t size
    cdef struct sim_end:
        uint8_t kind
        uint8_t closed
        uint8_t accepted
        uint8_t connecting
        uint8_t connected
        uint8_t fin
        uint8_t dead
        uint8_t ended
        uint8_t woken
        uint16_t port
        uint8_t origin
        sim_bytes rx
        size_t taken
        sim_bytes told
        size_t room
        uint8_t shut
        uint8_t starved
        uint8_t watched
        uint8_t lazy
        size_t seen
        size_t lost
        size_t destroyed
        size_t in_time
        size_t shown
        int64_t fed_at
        int64_t left_at
        int64_t took_at
        int64_t told_at
        int64_t shut_at
        int64_t closed_at
        int64_t freed_at
        uint64_t count
    cdef struct sim_fault:
        int call
        uint64_t nth
        uint64_t row
        int error
    cdef struct sim_kernel:
        sim_end *ends
        int count
        int64_t now
        uint64_t *calls
        uint64_t work
        uint64_t injected
        uint64_t short_calls
        sim_fault *faults
        int fault_count
        size_t most_recv
        size_t most_send
        int interrupts
        int64_t allocations
        int runaway
        int aborts
        char *failure
        int (*idle)(int64_t until) noexcept nogil
        void (*runs_away)() noexcept nogil
        void (*step)() noexcept nogil
        void (*connects)(const sim_end *end) noexcept nogil
    sim_kernel sim
    uint8_t *sim_connects
    void sim_reset()
    void sim_fail(const char *what, const char *name, int64_t number)
    int sim_open(int kind)
    bint sim_ready(int epfd)
    void sim_append(sim_bytes *to, const void *data, size_t n)
    size_t sim_unread(const sim_end *end)
    sim_end *sim_arrive(size_t room)
    void sim_feed(sim_end *end, const void *data, size_t n)
    void sim_feed_fin(sim_end *end)
    void sim_feed_reset(sim_end *end)
    void sim_feed_room(sim_end *end, size_t room)
    void sim_settle(sim_end *end, int error)
    size_t sim_readable(const sim_end *end)
    void sim_see(sim_end *end, bint lazy)
    void sim_feed_urgent(sim_end *end, const void *data, size_t n)
    void sim_listener_shut()

# The operations, in the lower bits of their byte; OPERATIONS has their names. Those marked * have n bytes behind them.
cdef enum:
    OP_CONNECT = 0              # a client from address `who`, CLIENT_*; it takes n * 64 bytes until told otherwise, 0 is any number
    OP_CLIENT_SEND = 1          # * client `who` sends them
    OP_CLIENT_SAY = 2           # client `who & 15` sends request n of REQUESTS, in pieces of `who >> 4` bytes, 0 at once
    OP_CLIENT_FILL = 3          # n * 256 bytes
    OP_CLIENT_FIN = 4
    OP_CLIENT_RESET = 5
    OP_CLIENT_ROOM = 6          # it takes n * 64 bytes more, 255 any number
    OP_UPSTREAM_SEND = 7        # * the same for the `who`th open upstream
    OP_UPSTREAM_SAY = 8         # answer n of RESPONSES
    OP_UPSTREAM_FILL = 9
    OP_UPSTREAM_CHUNK = 10      # a chunk of n * 64 bytes
    OP_UPSTREAM_FIN = 11
    OP_UPSTREAM_RESET = 12
    OP_UPSTREAM_ROOM = 13
    OP_UPSTREAM_SETTLE = 14     # the `who`th connect that hangs ends: 0 well, else with an error
    OP_BACKEND_CONNECT = 15     # how connects to server `who & 15` end from now on, CONNECT_*
    OP_BACKEND_ANSWER = 16      # it answers each whole request by response (n & 63) - 1 from now on, in pieces by n >> 6, or dies of
    # it by `who >> 4`: 1 a FIN, 2 an RST, both without a byte, 3 half an answer and an RST
    OP_TIME = 17                # n ms pass; from 100 on 2.5 s each
    OP_CONFIGURE = 18           # see world_table()
    OP_DRAIN = 19
    OP_STOP = 20
    OP_END_LISTENING = 21
    OP_SHORT = 22               # recv (who & 1), send (who & 2) give and take no more than n bytes a call; 0 ends it
    OP_FAULT = 23               # call `who`, (n & 15) calls later, fails with one of its errors
    OP_SETTING = 24             # before the engine is made, wherever it stands: setting `who` of EDGES has value n there
    OP_CLIENT_LAZY = 25         # client `who`'s program reads what came, and then (n & 1) nothing more, or all at once again
    OP_UPSTREAM_LAZY = 26       # the same for an upstream
    OP_CLIENT_URGENT = 27       # n * 8 bytes, the last of which is urgent data
    OP_UPSTREAM_URGENT = 28
    OP_CLIENT_EDGE = 29         # a request whose line (n & 1: whose head) is as long as LENGTHS[n >> 1] says
    OP_UPSTREAM_EDGE = 30       # an answer whose head (n & 1: whose body) is
    OP_FAULT_ROW = 31           # as "fault", but 16 in a row (n & 8), or from then on
    OP_LISTENER_SHUT = 32       # another process shuts the listening socket down
    OP_CLIENT_CORK = 33         # what client `who` says from now on (n & 1) is kept and comes at once when that ends
    OP_UPSTREAM_CORK = 34
    OP_COUNT = 35
    OP_MASK = 127
    OP_TOGETHER = 128           # the next operation is carried out too, before the engine looks

OPERATIONS = (
    "connect", "client_send", "client_say", "client_fill", "client_fin", "client_reset", "client_room", "upstream_send",
    "upstream_say", "upstream_fill", "upstream_chunk", "upstream_fin", "upstream_reset", "upstream_room",
    "upstream_settle", "backend_connect", "backend_answer", "time", "configure", "drain", "stop", "end_listening",
    "short", "fault", "setting", "client_lazy", "upstream_lazy", "client_urgent", "upstream_urgent", "client_edge",
    "upstream_edge", "fault_row", "listener_shut", "client_cork", "upstream_cork",
)

CONNECTS = ("soon", "now", "hangs", "refused_soon", "refused_now")

# What each call can fail with in a correct program, by its man page of section 2 (tcp(7) and socket(7) for connections).
# EAGAIN of recv, send and accept4 is what the simulated kernel gives where there is nothing, or no room; with bytes there Linux does
# not. EINTR in front of every call: run(interrupts=True).
ERRORS = {
    # "Linux accept() passes already-pending network errors on the new socket as an error code": as EAGAIN, by retrying
    "accept4": (103, 71, 92, 112, 64, 113, 95, 100, 101, 110, 24, 23, 105, 12, 1, 4),
    "recv": (104, 110, 111, 113, 101, 12, 4),       # ECONNRESET ETIMEDOUT ECONNREFUSED EHOSTUNREACH ENETUNREACH ENOMEM EINTR
    "send": (32, 104, 110, 113, 101, 105, 12, 4),   # EPIPE ECONNRESET ETIMEDOUT EHOSTUNREACH ENETUNREACH ENOBUFS ENOMEM EINTR
    "socket": (24, 23, 105, 12, 13, 97),            # EMFILE ENFILE ENOBUFS ENOMEM EACCES EAFNOSUPPORT
    # ECONNREFUSED ENETUNREACH EHOSTUNREACH ETIMEDOUT EADDRNOTAVAIL EADDRINUSE EAFNOSUPPORT EACCES EPERM EAGAIN EINTR ENOBUFS
    "connect": (111, 101, 113, 110, 99, 98, 97, 13, 1, 11, 4, 105),
    "close": (4, 5),                                # EINTR EIO; the descriptor is closed all the same
    "shutdown": (107, 105),                         # ENOTCONN ENOBUFS
    "getsockopt": (105, 12),                        # ENOBUFS ENOMEM: by socket(7), of the protocol
    "setsockopt": (12, 105, 95),                    # ENOMEM ENOBUFS EOPNOTSUPP (a Unix socket's TCP_NODELAY)
    "epoll_create1": (24, 23, 12),                  # EMFILE ENFILE ENOMEM
    "epoll_ctl": (12, 28),                          # ENOMEM ENOSPC
    "epoll_wait": (4,),                             # EINTR
    "eventfd": (24, 23, 12, 19),                    # EMFILE ENFILE ENOMEM ENODEV
    "read": (11,),                                  # EAGAIN
    "write": (),                                    # EAGAIN only where an eventfd's counter would overflow: never
    "getrandom": (4, 38),                           # EINTR ENOSYS
    "malloc": (12,),
    "calloc": (12,),
    "realloc": (12,),
    "mmap": (12, 11),                               # ENOMEM EAGAIN
    "madvise": (11, 12),                            # EAGAIN ENOMEM
    "buf_get": (12,),                               # the engine's own, which ask the system only once in a while
    "slab_get": (12,),
    "ioctl": (22,),                                 # EINVAL: SIOCOUTQ of a socket that listens (tcp(7))
}

# Lengths around those of buffers and limits, in both worlds.
LENGTHS = (64, 65, 66, 254, 255, 256, 257, 258, 511, 512, 513, 1024, 8190, 8191, 8192, 8193, 8194, 16383, 16384, 16385, 32766,
           32767, 32768, 32769)

_TIMES = (0.0, 1e-6, 1e-3, *(at + beside for at in (1, 2, 3, 4, 5, 6) for beside in (-1e-6, 0.0, 1e-6)), 30.0)
_ROOMS = (64, 65, 254, 255, 256, 257, 258, 8190, 8191, 8192, 8193, 8194, 16384, 32768)
_BODIES = (0, 1, 4, 5, 6, 10, 11, 12, 63, 64, 65, 255, 256, 257, 1000, 8191, 8192, 8193, 65279, 65280, 65281)

# What the operation "setting" may say: every time around every other, every length around those of buffers and bodies.
EDGES = {
    "head_timeout": _TIMES, "keepalive_timeout": _TIMES, "connect_timeout": _TIMES, "ttft_timeout": _TIMES,
    "idle_timeout": _TIMES, "total_timeout": _TIMES, "send_timeout": _TIMES, "upstream_idle_timeout": _TIMES,
    "max_request_line": _ROOMS, "max_head": tuple(n for n in _ROOMS if n >= 256), "max_fields": (1, 2, 3, 4, 8, 128, 256),
    "max_body": _BODIES, "failover_body": _BODIES,
    "max_in_flight": (0, 1, 2, 3), "queue_size": (0, 1, 2, 256), "queue_timeout": _TIMES, "cold_timeout": _TIMES,
    "on_error_event": (True, False), "policy": POLICIES, "slow_start": _TIMES, "include_usage": ("off", "force"),
}

# "q-@@@@-" becomes a number of its own in each request, and in an answer that of the request last received.
REQUESTS = (
    b"GET /q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world",
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    b"hello",
    b"GET /q-@@@@- HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /q-@@@@- HTTP/1.0\r\n\r\n",
    b"GET /q-@@@@- HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"HEAD /q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /q-@@@@- HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\nGET /q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nContent-Length: 65280\r\n\r\n",
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"10\r\n0123456789abcdef\r\n",
    b"0\r\n\r\n",
    b"GET /q-@@@@- HTTP/1.1\r\nHost: a\r\nX-Long: " + b"v" * 9000 + b"\r\n\r\n",
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /q-@@@@- HTTP/1.1\r\nHo",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"0\r\nX-Trailer: t\r\n\r\n",
    # Those that a table by model reads; elsewhere they are like others.
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n"
    b'{"a":"@@@@","model":"m"}',
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'8\r\n{"model"\r\n5\r\n:"m"}\r\n0\r\n\r\n',
    b"POST /q-@@@@- HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 16\r\n\r\n",
    b'{"model": "nil"}',
    # One whose stream is made to tell its usage, where that is forced.
    b"POST /chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 42\r\n\r\n"
    b'{"id":"q-@@@@-","model":"m","stream":true',
    b"}",
    b"POST /chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'1a\r\n{"id":"q-@@@@-","stream":t\r\n1d\r\nrue,"stream_options":{"x":1}}\r\n0\r\n\r\n',
    # For the list of models, which a table may have.
    b"GET /v1/models?/q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /v1/models?/q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/models?/q-@@@@- HTTP/1.1\r\nHost: a\r\n\r\n",
)
LISTING = b"".join(b"%07d\n" % n for n in range(4000))
"""The list of models of a table that has one: a few buffers long, and nowhere the same."""
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nq-@@@@-",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"11\r\ndata: q-@@@@-\n\n\n\n\r\n9\r\n: ping\n\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"11\r\ndata: q-@@@@-\n\n\n\n\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nq-@@@@-",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nq-@@@@-",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nq-@@@@-",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 7\r\n\r\nq-@@@@-",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\nq-@@@@-",
    b"HTTP/1.1 200 OK\r\nContent-Length: 65280\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 16391\r\n\r\nq-@@@@-" + b"z" * 16384,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4007\r\nq-@@@@-" + b"z" * 16384 + b"\r\n0\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nq-@@@@-q-@@@@-",
    # An event stream that begins with an error, one that ends without an event, and the piece of one whose chunk is not over.
    b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n'
    b'9\r\n: ping\n\n\n\r\n1b\r\ndata: {"error":"q-@@@@-"}\n\n\r\n0\r\n\r\n',
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n: ping\n\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: err",
    b"or\n\n",
    # One that tells its usage, and pieces of such an event.
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'f\r\ndata: q-@@@@-\n\n\r\n26\r\ndata: {"choices":[],"usage":{"a":1}}\n\n\r\n'
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: q-@@@@-\n\n",
    b'data: {"choices":[],"usag',
    b'e":{"a":1}}\n\n',
)

cdef enum:
    MOST_CLIENTS = 16           # a script
    MOST_WORLD_WORKERS = 4
    WORLD_BACKENDS = 4          # of a table
    KEPT_SLACK = BUF_SIZE * 4   # each worker may be at one request when the budget is used up
    SERVERS = 16                # SIM_SERVERS, which is no constant to Cython
    MOST_MESSAGES = 32
    MOST_ERRORS = 20

cdef struct MessageC:
    const uint8_t *data
    size_t n
    bint closes                 # an automatic answer ends by a FIN
    bint good                   # it is a whole answer, that says no more than that the request was carried out

# Bytes of a peer that go out in pieces, one each time the engine has done what it could.
cdef struct QueuedC:
    sim_bytes bytes
    size_t at
    size_t piece
    bint fin
    bint corked

# Where an exchange stands in what its peers sent and got, for the account of its bytes; by its client's place in sim.ends.
cdef struct LedgerC:
    uint8_t forwards            # STATE_STREAM or STATE_TUNNEL, once an answer is forwarded
    bint released               # the upstream was, and `stop` is how far it had been received
    int upstream                # its place in sim.ends, -1 for none
    size_t asks                 # in the client's rx: where the request begins
    size_t answers              # in the client's told
    size_t up_asks              # in the upstream's told
    size_t up_answers           # in the upstream's rx
    size_t stop
    uint64_t discarded          # what the engine had counted as thrown away when the exchange began

cdef struct WorldC:
    WorkerC *worker             # the first, which accepts
    WorkerC *workers[MOST_WORLD_WORKERS]
    int worker_count
    const uint8_t *script
    size_t n
    size_t at
    int64_t until               # the operation "time" goes on until then
    int stage                   # after the last operation
    uint32_t serial             # of the last request said
    int clients[MOST_CLIENTS]   # places in sim.ends
    int client_count
    uint8_t answers[SERVERS]    # by server
    uint8_t dies[SERVERS]
    size_t answered[512]        # bytes of an upstream's `told` that were answered; SIM_ENDS of them
    QueuedC pending[512]
    bint stayed[512]
    size_t filled[512]          # bytes that "fill" and "chunk" gave so far
    LedgerC ledgers[512]
    uint64_t accounted          # exchanges whose account was held
    TableC *limits_at           # the table whose limits hold ...
    int64_t over[4]             # ... and what each backend had when it came; WORLD_BACKENDS of them
    int tables                  # that came behind the first one
    uint64_t begun              # exchanges
    uint64_t ended
    bint checks
    bint probing                # the connect that begins is for no exchange
    bint settles                # after the last operation nobody is told to stop before all has ended by itself
    int place                   # that the script's first operations lead to, as far as `placed_at`; see places.pxi
    size_t placed_at
    bint placed                 # it was reached

cdef MessageC requests[MOST_MESSAGES]
cdef MessageC responses[MOST_MESSAGES]
cdef int errors[32][MOST_ERRORS]
cdef int error_counts[32]
cdef size_t lengths[32]
cdef int LENGTH_COUNT = len(LENGTHS)
cdef const uint8_t *listing
cdef size_t listing_length
cdef WorldC world
cdef const char **world_names = [b"d", b"c", b"b", b"a"]    # of backends by slot
cdef HeadC answer_head          # what automatic answers read requests into

FOR_EVER = SIM_FOR_EVER
GOOD_RESPONSES = (0, 1, 5, 7, 9, 11, 14, 15)

CALLS = tuple(SIM_CALL_NAMES[i].decode() for i in range(SIM_CALLS))


cdef void _load_tables():
    global listing, listing_length
    cdef int i
    data = LISTING
    listing = data
    listing_length = len(LISTING)
    for i, message in enumerate(REQUESTS):
        requests[i].data = message
        requests[i].n = len(message)
    for i, message in enumerate(RESPONSES):
        responses[i].data = message
        responses[i].n = len(message)
        responses[i].good = i in GOOD_RESPONSES
        responses[i].closes = message.startswith(b"HTTP/1.1 200 OK\r\n\r\n") or b"Connection: close" in message
    for i, name in enumerate(CALLS):
        error_counts[i] = len(ERRORS[name])
        for j, error in enumerate(ERRORS[name]):
            errors[i][j] = error
    for i, length in enumerate(LENGTHS):
        lengths[i] = length

_load_tables()
cdef int REQUEST_COUNT = len(REQUESTS)
cdef int RESPONSE_COUNT = len(RESPONSES)

# --------------------------------------------------------------------------------------------- what the script does

cdef sim_end *world_client(int who) noexcept nogil:
    return &sim.ends[world.clients[who % world.client_count]] if world.client_count else NULL

cdef bint world_is(sim_end *end, bint connecting) noexcept nogil:
    # Whether it is an open upstream, or one whose connect hangs.
    if end.kind != END_UPSTREAM or end.closed:
        return False
    return end.connecting if connecting else end.connected

cdef sim_end *world_upstream(int who, bint connecting) noexcept nogil:
    # The `who`th of those.
    cdef int count = 0
    cdef int i
    for i in range(sim.count):
        count += world_is(&sim.ends[i], connecting)
    if not count:
        return NULL
    who %= count
    for i in range(sim.count):
        if world_is(&sim.ends[i], connecting):
            if who == 0:
                return &sim.ends[i]
            who -= 1
    return NULL

cdef void world_say(sim_end *end, const void *data, size_t n, size_t piece, bint fin) noexcept nogil:
    # Has the peer send, at once or in pieces; in order behind what it has not sent yet.
    cdef QueuedC *pending
    if end is NULL:
        return
    pending = &world.pending[end - sim.ends]
    if piece == 0 and pending.at == pending.bytes.n and not pending.fin and not pending.corked:
        sim_feed(end, data, n)
        if fin:
            sim_feed_fin(end)
        return
    sim_append(&pending.bytes, data, n)
    if not pending.corked:
        pending.piece = piece if piece else 1000
    pending.fin |= fin

cdef void world_say_message(sim_end *end, MessageC *message, const uint8_t *token, size_t piece, bint fin) noexcept nogil:
    # With a token in the place of each "@@@@": the one given, or a new one.
    cdef sim_bytes copy
    cdef uint8_t *found
    cdef uint8_t digits[8]
    if end is NULL:
        return
    memset(&copy, 0, sizeof(copy))
    sim_append(&copy, message.data, message.n)
    while True:
        found = <uint8_t *>memmem(copy.data, copy.n, b"@@@@", 4)
        if found is NULL:
            break
        if token is not NULL:
            memcpy(found, token, 4)
        else:
            world.serial += 1
            text_digits(digits, world.serial, 8)
            memcpy(found, digits + 4, 4)
            trace_said(world.serial)
    world_say(end, copy.data, copy.n, piece, fin)
    world_free(&copy)

cdef extern from *:
    """
    /* The kernel's own memory is not counted. */
    static inline void world_free_bytes(struct sim_bytes *bytes) { (free)(bytes->data); memset(bytes, 0, sizeof(*bytes)); }
    """
    void world_free "world_free_bytes"(sim_bytes *bytes) noexcept nogil

cdef const uint8_t *world_token(sim_end *end) noexcept nogil:
    # The number of the request that an upstream received last.
    cdef size_t i = end.seen
    while i >= 7:
        if end.told.data[i - 1] == c"-" and memcmp(end.told.data + i - 7, b"q-", 2) == 0:
            return end.told.data + i - 5
        i -= 1
    return b"none"

cdef bint world_request_whole(const uint8_t *data, size_t n, size_t *used) noexcept nogil:
    # Whether a whole request stands at the start of what an upstream got.
    cdef uint32_t scanned = 0
    cdef size_t length = 0
    cdef size_t body_length = 0
    cdef const uint8_t *body = NULL
    cdef ChunkC chunk
    cdef int rc = RC_OK
    if n == 0 or head_scan(data, n, &scanned, &length) != RC_DONE:
        return False
    if head_read_request(&answer_head, data, length, 1 << 20, HEAD_MAX_FIELDS) != RC_OK:
        return False
    used[0] = length
    if answer_head.framing == FRAMING_LENGTH:
        used[0] += <size_t>answer_head.content_length
        return used[0] <= n
    if answer_head.framing == FRAMING_CHUNKED:
        memset(&chunk, 0, sizeof(chunk))
        while rc == RC_OK:
            rc = chunk_next(&chunk, data, n, used, &body, &body_length)
        return rc == RC_DONE
    return True

cdef void world_answer() noexcept nogil:
    # Automatic answers to requests that are whole.
    cdef sim_end *end
    cdef MessageC *message
    cdef size_t used = 0
    cdef int i
    cdef int n
    for i in range(sim.count):
        end = &sim.ends[i]
        n = world.answers[end.port % SERVERS]
        if end.kind != END_UPSTREAM or end.closed or not end.connected or n & 63 == 0:
            continue
        while world_request_whole(end.told.data + world.answered[i], end.seen - world.answered[i], &used):
            world.answered[i] += used
            message = &responses[((n & 63) - 1) % RESPONSE_COUNT]
            if head_is(answer_head.method, answer_head.method_length, b"HEAD"):
                trace_spoil(end)            # it has a body all the same
            if world.dies[end.port % SERVERS]:
                world_die(end, message, world.dies[end.port % SERVERS])
                break
            world_say_message(end, message, world_token(end), 0 if n >> 6 == 0 else 1 if n >> 6 == 1 else
                              7 if n >> 6 == 2 else 1500, message.closes)

cdef void world_die(sim_end *end, MessageC *message, int how) noexcept nogil:
    # A server dies of a request.
    if how == 1:
        world_say(end, NULL, 0, 0, True)
        return
    if how == 3:
        world_say(end, message.data, message.n // 2, 0, False)
    sim_feed_reset(end)

cdef bint world_feed() noexcept nogil:
    # One piece of all that goes out in pieces. Whether there is more.
    cdef QueuedC *pending
    cdef size_t n
    cdef bint more = False
    cdef int i
    for i in range(sim.count):
        pending = &world.pending[i]
        if (pending.at == pending.bytes.n and not pending.fin) or pending.corked:
            continue
        n = pending.bytes.n - pending.at
        if n > pending.piece:
            n = pending.piece
        sim_feed(&sim.ends[i], pending.bytes.data + pending.at, n)
        pending.at += n
        if pending.at == pending.bytes.n and pending.fin:
            sim_feed_fin(&sim.ends[i])
            pending.fin = False
        if sim.ends[i].closed:
            pending.at = pending.bytes.n
            pending.fin = False
        more = True
    return more

cdef void world_fill(sim_end *end, uint8_t first, size_t n, bint chunk) noexcept nogil:
    # Bytes that are nowhere the same: words of four letters that count, so that none can be missing, doubled or moved unseen.
    cdef uint8_t block[65536]
    cdef char size[16]
    cdef size_t i
    cdef size_t at
    if end is NULL:
        return
    for i in range(n):
        at = world.filled[end - sim.ends] + i
        block[i] = first if at & 3 == 0 else <uint8_t>(c"a" + (at >> 2) // (1 if at & 3 == 3 else 16 if at & 3 == 2 else 256) % 16)
    world.filled[end - sim.ends] += n
    if chunk:
        snprintf(size, sizeof(size), "%x\r\n", <unsigned int>n)
        world_say(end, size, strlen(size), 0, False)
    world_say(end, block, n, 0, False)
    if chunk:
        world_say(end, b"\r\n", 2, 0, False)

cdef int world_server(int slot, int i, bint moved) noexcept nogil:
    # Which server stands behind address `i` of a backend. A table in which everything moved leaves the second address.
    return (slot & 1) + 2 * i + 4 * (slot >> 1) + (8 if moved and i == 0 else 0)

cdef void world_address(AddressC *to, int server, int family) noexcept nogil:
    # The address of a server.
    cdef sockaddr_in *v4 = <sockaddr_in *>&to.address
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&to.address
    cdef sockaddr_un *local = <sockaddr_un *>&to.address
    if family == AF_UNIX:
        local.sun_family = AF_UNIX
        snprintf(local.sun_path, sizeof(local.sun_path), "/run/backend-%d", 8000 + server)
        to.length = sizeof(sockaddr_un)
    elif family == AF_INET6:
        v6.sin6_family = AF_INET6
        v6.sin6_port = htons(<uint16_t>(8000 + server))
        to.length = sizeof(sockaddr_in6)
    else:
        v4.sin_family = AF_INET
        v4.sin_port = htons(<uint16_t>(8000 + server))
        to.length = sizeof(sockaddr_in)

cdef void world_table(int n, int how) noexcept nogil:
    # A new routing table: bit 0 a second backend, bit 1 finish on abort, bit 2 none at all, bit 3 two addresses for each,
    # bit 4 two backends more, bit 5 the first address is of IPv6, bit 6 it is a Unix socket, bit 7 it is another.
    # `how`: bit 0 the addresses stand in the other order, bit 1 the first backend is gone, bit 2 requests are routed by their
    # model, whatever it is, to the default pool, bit 3 each backend works on one exchange at a time, bit 4 with bit 2 it has a list
    # of models.
    cdef TableC *tables[MOST_WORLD_WORKERS]
    cdef PoolStateC *state
    cdef PoolC *pool
    cdef RouteC *route
    cdef int server
    cdef int slot
    cdef int i
    cdef int k
    cdef int masks[WORLD_BACKENDS]
    cdef int mask = 0
    cdef int count = 0 if n & 4 else 1 + (n & 1) + (n & 16) // 8
    memset(masks, 0, sizeof(masks))
    for slot in range(how >> 1 & 1, count):
        for i in range(2 if n & 8 else 1):
            masks[slot] |= 1 << world_server(slot, i, (n & 128) != 0)
        mask |= masks[slot]
    for k in range(world.worker_count):
        tables[k] = table_make(&world.workers[k].limits, WORLD_BACKENDS, 1, WORLD_BACKENDS)
        if tables[k] is NULL:
            for i in range(k):
                table_free(tables[i])
            return
    trace.table = trace_count()
    trace_add(NOTE_TABLE, count, mask, -1)
    for slot in range(count):
        trace_add(NOTE_ROUTE, slot, masks[slot] | (how & 1) << SERVERS, -1)
    for k in range(world.worker_count):
        for slot in range(how >> 1 & 1, count):
            route = &tables[k].routes[slot]
            route.backend = backend_find(world.worker.shared, world_names[slot], 1)
            if route.backend is NULL:
                break           # no memory: the table ends here
            route.backend.id = slot     # a name, a slot
            route.finish_on_abort = (n & 2) != 0
            route.max_in_flight = how >> 3 & 1
            route.upstream_idle_timeout = -1
            route.address_count = 2 if n & 8 else 1
            memcpy(route.authority, b"backend", 7)
            for i in range(route.address_count):
                server = world_server(slot, i, (n & 128) != 0)
                world_address(&route.addresses[route.address_count - 1 - i if how & 1 else i], server,
                              AF_INET if i else AF_UNIX if n & 64 else AF_INET6 if n & 32 else AF_INET)
            tables[k].count = slot + 1
        state = pool_state_find(world.worker.shared, b"", 0)
        if state is not NULL:
            pool = pool_add(tables[k], state, &world.workers[k].limits)
            sys_add_shared(&state.users, <uint32_t>-1)      # the table's is left
            pool.series = series_find(&world.workers[k].series, b"", 0, -1)
            for slot in range(tables[k].count):
                if tables[k].routes[slot].backend is not NULL:
                    pool_put(tables[k], pool, slot, 1, 0)
                    pool.members[pool.count - 1].series = series_find(&world.workers[k].series, b"", 0, slot)
            if not pool_order(pool):
                pool.limits.policy = POLICY_LEAST_IN_FLIGHT     # where the control plane says that there is no memory
            if how & 4:
                table_choose(tables[k])
                tables[k].reads_model = True
                tables[k].default_pool = 0
            if how & 16:
                tables[k].listing = listing
                tables[k].listing_length = listing_length
        tables[k].tokens = tokens_find(&world.workers[k].tokens, b"", 0)
        table_free(<TableC *>sys_exchange_pointer(&world.workers[k].new_table, tables[k]))
        series_sweep(&world.workers[k].series, False)
        tokens_sweep(&world.workers[k].tokens, False)
        io_wake_post(world.workers[k].mail.in_fd, &world.workers[k].mail.in_wake_pending)

cdef void world_do(int what, int who, int n, const uint8_t *data) noexcept nogil:
    # One operation.
    cdef WorkerC *w = world.worker
    cdef sim_end *end
    cdef int i
    if what >= OP_SETTING:
        world_do_edge(what, who, n)
    elif what == OP_CONNECT:
        if world.client_count < MOST_CLIENTS:
            end = sim_arrive(<size_t>n * 64 if n else SIM_UNLIMITED)
            if end is not NULL:
                end.origin = <uint8_t>(who % CLIENT_FAMILIES)
                world.clients[world.client_count] = <int>(end - sim.ends)
                world.client_count += 1
    elif what <= OP_CLIENT_ROOM:
        end = world_client(who & 15)
        if end is NULL:
            return
        if what == OP_CLIENT_SEND:
            world_say(end, data, n, 0, False)
        elif what == OP_CLIENT_SAY:
            world_say_message(end, &requests[n % REQUEST_COUNT], NULL, who >> 4, False)
        elif what == OP_CLIENT_FILL:
            world_fill(end, c"x", <size_t>n * 256, False)
        elif what == OP_CLIENT_FIN:
            world_say(end, NULL, 0, 0, True)
        elif what == OP_CLIENT_RESET:
            sim_feed_reset(end)
        else:
            sim_feed_room(end, SIM_UNLIMITED if n == 255 else <size_t>n * 64)
    elif what == OP_UPSTREAM_SETTLE:
        end = world_upstream(who, True)
        if end is not NULL:
            sim_settle(end, errors[SIM_CONNECT][(n - 1) % 5] if n else 0)
            trace_spoil(end)
    elif what <= OP_UPSTREAM_ROOM:
        end = world_upstream(who & 15, False)
        if end is NULL:
            return
        trace_spoil(end)
        if what == OP_UPSTREAM_SEND:
            world_say(end, data, n, 0, False)
        elif what == OP_UPSTREAM_SAY:
            world_say_message(end, &responses[n % RESPONSE_COUNT], world_token(end), who >> 4, False)
        elif what == OP_UPSTREAM_FILL:
            world_fill(end, c"y", <size_t>n * 256, False)
        elif what == OP_UPSTREAM_CHUNK:
            world_fill(end, c"y", <size_t>n * 64, True)
        elif what == OP_UPSTREAM_FIN:
            world_say(end, NULL, 0, 0, True)
        elif what == OP_UPSTREAM_RESET:
            sim_feed_reset(end)
        else:
            sim_feed_room(end, SIM_UNLIMITED if n == 255 else <size_t>n * 64)
    elif what == OP_BACKEND_CONNECT:
        sim_connects[who % SERVERS] = <uint8_t>(n % CONNECT_MODES)
        trace_add(NOTE_CONNECTS, who % SERVERS, n % CONNECT_MODES, -1)
    elif what == OP_BACKEND_ANSWER:
        world.answers[who % SERVERS] = <uint8_t>n
        world.dies[who % SERVERS] = <uint8_t>(who >> 4 & 3)
        trace_add(NOTE_ANSWERS, who % SERVERS, n & 63 and not who >> 4 & 3 and responses[
            ((n & 63) - 1) % RESPONSE_COUNT].good, -1)
    elif what == OP_TIME:
        world.until = sim.now + (n * 1000 if n < 100 else (n - 99) * 2500000)
    elif what == OP_CONFIGURE:
        fleet.gives_way = True
        world.tables += 1
        world_table(n, who)
        fleet.gives_way = False
    elif what == OP_SHORT:
        if who & 1:
            sim.most_recv = n
        if who & 2:
            sim.most_send = n
    elif what == OP_FAULT:
        who %= SIM_CALLS
        if error_counts[who]:
            world_fault(who, sim.calls[who] + 1 + (n & 15), 1, errors[who][(n >> 4) % error_counts[who]])
    else:
        fleet.gives_way = True
        if what == OP_STOP:
            for i in range(world.worker_count):
                fleet_tell(COMMAND_STOP, i)
        elif what == OP_END_LISTENING:
            fleet_tell(COMMAND_END_LISTENING, 0)
        elif world.worker_count > 1:
            fleet_drain()
        else:
            fleet_tell(COMMAND_DRAIN, 0)
        fleet.gives_way = False

cdef void world_do_edge(int what, int who, int n) noexcept nogil:
    # An operation at an edge: of lengths, of a peer that does not read, of the kernel.
    cdef sim_end *end = NULL
    cdef uint8_t block[2048]
    cdef int error
    if what == OP_CLIENT_LAZY or what == OP_CLIENT_URGENT or what == OP_CLIENT_EDGE or what == OP_CLIENT_CORK:
        end = world_client(who & 15)
    elif what == OP_UPSTREAM_LAZY or what == OP_UPSTREAM_URGENT or what == OP_UPSTREAM_EDGE or what == OP_UPSTREAM_CORK:
        end = world_upstream(who & 15, False)
        if end is not NULL:
            trace_spoil(end)
    if what == OP_LISTENER_SHUT:
        sim_listener_shut()
    elif what == OP_FAULT_ROW:
        who %= SIM_CALLS
        error = errors[who][(n >> 4) % error_counts[who]] if error_counts[who] else 0
        # A call that is interrupted for ever is repeated for ever: of those, 16.
        if error and not (error == EINTR or n & 8):
            world_fault(who, sim.calls[who] + 1 + (n & 7), SIM_FOR_EVER, error)
        elif error:
            world_fault(who, sim.calls[who] + 1 + (n & 7), 16, error)
    elif end is NULL:
        return
    elif what == OP_CLIENT_LAZY or what == OP_UPSTREAM_LAZY:
        sim_see(end, n & 1)
    elif what == OP_CLIENT_CORK or what == OP_UPSTREAM_CORK:
        world.pending[end - sim.ends].corked = n & 1
        world.pending[end - sim.ends].piece = SIM_UNLIMITED
    elif what == OP_CLIENT_EDGE:
        world_say_edge(end, lengths[(n >> 1) % LENGTH_COUNT], n & 1, False)
    elif what == OP_UPSTREAM_EDGE:
        world_say_edge(end, lengths[(n >> 1) % LENGTH_COUNT], n & 1, True)
    elif world.pending[end - sim.ends].at == world.pending[end - sim.ends].bytes.n:
        memset(block, c"u", sizeof(block))
        sim_feed_urgent(end, block, <size_t>(n if n else 1) * 8)

cdef void world_say_edge(sim_end *end, size_t length, bint second, bint answer) noexcept nogil:
    # A request whose line or (second) head has a length, without its last line end; an answer whose head or (second) body has.
    cdef const char *start
    cdef const char *rest
    cdef sim_bytes text
    cdef MessageC message
    cdef char room[64]
    cdef size_t fixed
    memset(&text, 0, sizeof(text))
    memset(&message, 0, sizeof(message))
    if answer:
        snprintf(room, sizeof(room), b"HTTP/1.1 200 OK\r\nContent-Length: %u\r\n%s", <unsigned int>(length if second else 7),
                 b"\r\nq-@@@@-" if second else b"X-Long: ")
        start = room
        rest = b"" if second else b"\r\n\r\nq-@@@@-"
        fixed = 7 if second else strlen(start) + 4
    else:
        start = b"GET /q-@@@@- HTTP/1.1\r\nHost: a\r\nX-Long: " if second else b"GET /q-@@@@-"
        rest = b"\r\n\r\n" if second else b" HTTP/1.1\r\nHost: a\r\n\r\n"
        fixed = strlen(start) + (4 if second else 9)
    sim_append(&text, start, strlen(start))
    while fixed < length:
        sim_append(&text, b"v", 1)
        fixed += 1
    sim_append(&text, rest, strlen(rest))
    message.data = text.data
    message.n = text.n
    world_say_message(end, &message, world_token(end) if answer else NULL, 0, False)
    world_free(&text)

cdef void world_runs_away() noexcept nogil:
    # The engine turns without end: that was noted, and the run ends here.
    cdef int i
    for i in range(world.worker_count):
        world.workers[i].stopping = True

cdef void world_fault(int call, uint64_t nth, uint64_t row, int error) noexcept nogil:
    if sim.fault_count < SIM_FAULTS:
        sim.faults[sim.fault_count].call = call
        sim.faults[sim.fault_count].nth = nth
        sim.faults[sim.fault_count].row = row
        sim.faults[sim.fault_count].error = error
        sim.fault_count += 1

cdef bint world_next() noexcept nogil:
    # Carries out the next operation, and what is to happen together with it. False after the last.
    cdef const uint8_t *op
    cdef int what
    cdef int n
    if world.at + 3 > world.n:
        return False
    while world.at + 3 <= world.n:
        op = world.script + world.at
        what = (op[0] & OP_MASK) % OP_COUNT
        n = op[2]
        world.at += 3
        if what == OP_CLIENT_SEND or what == OP_UPSTREAM_SEND:
            if world.at + n > world.n:
                n = <int>(world.n - world.at)
            world.at += n
        world_do(what, op[1], n, op + 3)
        if not op[0] & OP_TOGETHER:
            break
    return True

cdef bint world_uncork() noexcept nogil:
    # The script is over: whether somebody still kept what it said.
    cdef bint any_ = False
    cdef int i
    for i in range(sim.count):
        any_ |= world.pending[i].corked and world.pending[i].at < world.pending[i].bytes.n
        world.pending[i].corked = False
        world.pending[i].piece = SIM_UNLIMITED
    return any_

cdef int world_idle(int64_t until) noexcept nogil:
    # The engine would sleep until then (-1: until something happens). 0: that time has come; 1: something may have happened.
    cdef sim_end *end
    cdef int i
    trace_requests()
    if world.checks:
        world_check_idle()
    if world.stage > (4 if world.settles else 2):
        sim_fail("the engine sleeps though it was told to stop", "", sim.now)
        world.worker.stopping = True
        world.stage += 1
        return 0
    world_answer()
    if world_feed() and world.until <= sim.now:
        # Other operations go on while bytes come in pieces; only "time" waits for the last one.
        if world.at + 3 > world.n or (world.script[world.at] & OP_MASK) % OP_COUNT == OP_TIME:
            return 1
    elif sim.now < world.until:
        if 0 <= until < world.until:
            if until > sim.now:
                sim.now = until
            return 0
        sim.now = world.until
        return 1
    if world.placed_at and world.at == world.placed_at:
        world.placed |= place_reached(world.worker)
    if world_next():
        return 1
    if world.stage == 0 and world_uncork():
        return 1
    if world.settles:
        return world_settle()
    if world.stage == 0:
        for i in range(world.client_count):
            end = &sim.ends[world.clients[i]]
            world.stayed[world.clients[i]] = not end.fin and not end.dead
            sim_see(end, False)
            world_say(&sim.ends[world.clients[i]], NULL, 0, 0, True)
    elif world.stage == 1:
        world.until = sim.now + 3000000
    else:
        world_do(OP_STOP, 0, 0, NULL)
    world.stage += 1
    return 1

cdef enum:
    SETTLED = 900000000         # us in which every time-out ends, one after the other

cdef int world_settle() noexcept nogil:
    # The script is over. Silence ends whatever has a time-out; then the clients leave and the backends, and nothing is left.
    cdef WorkerC *w = world.worker
    cdef sim_end *end
    cdef int i
    if world.stage == 0:
        world.until = sim.now + SETTLED
    elif world.stage == 1:
        if (w.settings.head_timeout and w.settings.send_timeout and w.limits.connect_timeout and w.limits.ttft_timeout
                and w.limits.idle_timeout and w.exchange_count):
            sim_fail("never ended, though every time-out is on", "exchanges", w.exchange_count)
        for i in range(world.client_count):
            end = &sim.ends[world.clients[i]]
            world.stayed[world.clients[i]] = not end.fin and not end.dead
            sim_see(end, False)
            sim_feed_fin(end)
    elif world.stage == 2:
        for i in range(sim.count):
            end = &sim.ends[i]
            if end.kind == END_UPSTREAM and not end.closed:
                trace_spoil(end)
                sim_settle(end, ECONNREFUSED)
                sim_feed_fin(end)
        world.until = sim.now + SETTLED
    elif world.stage == 3:
        # Where the send time-out is off, two peers that have sent their FIN and take nothing may stay for as long as they like.
        for i in range(sim.count):
            end = &sim.ends[i]
            if not end.closed and (end.kind == END_UPSTREAM or end.accepted):
                sim_feed_reset(end)
        world.until = sim.now + SETTLED
    else:
        world_check_settled(w)
        world_do(OP_STOP, 0, 0, NULL)
    world.stage += 1
    return 1

# ------------------------------------------------------------------------------------------------------- what must be true

cdef bint conn_resets(ConnC *conn) noexcept nogil:
    # A client that will be reset when it has read all: its FIN alone does not end that.
    cdef LingerC *linger = (<ClientC *>conn).linger if conn.kind == CONN_CLIENT else NULL
    return linger is not NULL and linger.resets

cdef void world_check_conn(WorkerC *w, ConnC *conn) noexcept nogil:
    # A connection of an engine that sleeps: nothing may be left that it could do.
    cdef sim_end *end = &sim.ends[conn.fd - SIM_FIRST]
    cdef ExchangeC *x = conn.exchange
    cdef const char *name = b"client" if conn.kind == CONN_CLIENT else b"upstream"
    cdef bint waits = sim_unread(end) > 0 or end.fin or end.dead
    cdef uint8_t outcome = 0
    cdef int64_t deadline
    if end.closed:
        sim_fail("an open connection has a closed descriptor", name, conn.fd)
    if end.woken or end.connecting:
        return
    if waits and not conn.readable:
        sim_fail("forgotten: there is something to read", name, conn.fd)
    if (end.fin or end.dead) and end.watched and not conn.hung_up:
        sim_fail("forgotten: its peer has left", name, conn.fd)
    if (end.connected and end.watched and end.room and not end.starved and not end.dead and not end.shut and not conn.writable
            and not (x is not NULL and (x.deaf if conn.kind == CONN_CLIENT else x.up_broken))):
        sim_fail("forgotten: there is room, and no event will tell of it", name, conn.fd)
    if x is NULL:
        if waits and not (sim_unread(end) == 0 and not end.dead and conn_resets(conn)):
            sim_fail("not read, and no exchange", name, conn.fd)
        deadline = (client_deadline(w, <ClientC *>conn) if conn.kind == CONN_CLIENT else
                    upstream_deadline(w, <UpstreamC *>conn))
        if deadline and (not conn.due or conn.due > deadline):
            sim_fail("no timer for its deadline, and no exchange", name, conn.fd)
        return
    if conn.kind == CONN_CLIENT:
        if waits and (x.state == STATE_HEAD or (not x.up.unsent and (x.state == STATE_TUNNEL or (
                not x.up_body.done and not x.up_broken and (x.state == STATE_WAIT or x.state == STATE_STREAM))))):
            sim_fail("not read, and nothing is in its way", name, conn.fd)
        # In a tunnel a FIN stands behind the bytes that came before it, whatever follows it; nothing else excuses an RST.
        if (end.fin or end.dead) and not (x.state == STATE_TUNNEL and x.up.unsent and end.fin):
            sim_fail("it left, and nobody noticed", name, conn.fd)
        if (x.down.unsent or x.unlisted) and end.room:
            sim_fail("not sent, though there is room", name, conn.fd)
        if x.unlisted and not 0 < x.down.unsent <= BUF_SIZE:
            sim_fail("the list of models is more than one buffer", name, x.down.unsent)
        deadline = exchange_deadline(w, x, &outcome)
        if deadline and (not conn.due or conn.due > deadline):
            sim_fail("no timer for its deadline", name, conn.fd)
    else:
        if waits and not x.down.unsent and x.state != STATE_CONNECT:
            sim_fail("not read, and nothing is in its way", name, conn.fd)
        # What came before an RST is for the client, and is read when it takes more; a tunnel passes an RST on at once, unless a
        # FIN came before it: then all was sent.
        if end.dead and not end.fin and x.state == STATE_TUNNEL:
            sim_fail("it left, and nobody noticed", name, conn.fd)
        if x.up.unsent and end.room and end.connected and not x.up_broken and x.state != STATE_DETACHED:
            sim_fail("not sent, though there is room", name, conn.fd)
        deadline = exchange_deadline(w, x, &outcome)
        if x.client is NULL and deadline and (not conn.due or conn.due > deadline):
            sim_fail("no timer for its deadline, and no client", name, conn.fd)

cdef int64_t world_in_flight(int slot) noexcept nogil:
    # As all workers count it for a backend; 0 where it was never configured.
    cdef BackendC *backend = world.worker.shared.backends
    while backend is not NULL:
        if backend.name[0] == world_names[slot][0]:
            return backend.in_flight
        backend = backend.next
    return 0

cdef enum:
    WHEEL_SLACK = 100000        # us: the wheel looks at a deadline up to two of its slots later

cdef int64_t world_latest(int64_t a, int64_t b) noexcept nogil:
    return a if a > b else b

cdef void world_overdue(const char *what, int64_t since, int64_t after) noexcept nogil:
    if after and sim.now > since + after + WHEEL_SLACK:
        sim_fail("its time is up, and nothing happened", what, sim.now - since - after)

cdef void world_check_time(WorkerC *w, ExchangeC *x) noexcept nogil:
    # An exchange waits no longer than it may (rule F), by what the kernel has seen of either peer and not by what the engine
    # remembers: the time that counts for one direction is not renewed by bytes of the other.
    cdef sim_end *client = &sim.ends[x.client.conn.fd - SIM_FIRST]
    cdef sim_end *upstream = &sim.ends[x.upstream.conn.fd - SIM_FIRST] if x.upstream is not NULL else NULL
    cdef int64_t down
    if client.woken or (upstream is not NULL and upstream.woken):
        return
    if x.down.unsent:
        world_overdue(b"send time-out", world_latest(client.told_at, x.client_at), w.settings.send_timeout)
    if upstream is NULL or x.state == STATE_CONNECT:
        return
    down = world_latest(upstream.took_at, client.told_at)
    if x.state == STATE_TUNNEL and x.up.unsent:
        world_overdue(b"send time-out", world_latest(upstream.told_at, x.request_at), w.settings.send_timeout)
    elif x.state == STATE_TUNNEL and not x.down.unsent:
        world_overdue(b"idle time-out, tunnel", world_latest(down, world_latest(client.took_at, upstream.told_at)),
                      w.limits.idle_timeout)
    elif x.state == STATE_STREAM and x.content and not x.down.unsent:
        world_overdue(b"idle time-out, answer", down, w.limits.idle_timeout)
    elif x.state == STATE_WAIT and x.up.unsent and not x.up_broken and not x.down.unsent:
        # From its connect, if it had to wait for a place.
        world_overdue(b"idle time-out, request", world_latest(world_latest(upstream.told_at, client.took_at), x.upstream.since),
                      w.limits.idle_timeout)
    elif x.state == STATE_WAIT and x.up_body.done and not x.down.unsent:
        down = world_latest(down, x.upstream.since)
        world_overdue(b"TTFT time-out", world_latest(down, world_latest(upstream.told_at, client.took_at)),
                      w.limits.ttft_timeout)

# The account of an exchange's bytes (rule C1): what was received of either peer has been forwarded or is held, or there is a
# reason for which it was thrown away. It is taken from what both peers' kernels have, byte by byte, when the exchange ends.

cdef uint64_t world_discarded(WorkerC *w) noexcept nogil:
    # Bytes that the engine has counted as thrown away, for whatever reason.
    cdef uint64_t total = 0
    cdef int i
    for i in range(DISCARD_COUNT):
        total += w.stats.discarded[i]
    return total

cdef void exchange_set_state(WorkerC *w, ExchangeC *x, uint8_t state) noexcept nogil:
    # In front of the engine's own: notes where in its peers' bytes the exchange stands.
    cdef sim_end *upstream
    cdef LedgerC *ledger
    cdef sim_end *client
    if x.client is not NULL:
        client = &sim.ends[x.client.conn.fd - SIM_FIRST]
        ledger = &world.ledgers[x.client.conn.fd - SIM_FIRST]
        if state == STATE_HEAD:
            world.begun += 1
            ledger.answers = client.told.n
            ledger.discarded = world_discarded(w)
            ledger.upstream = -1
            ledger.forwards = 0
            ledger.released = False
        elif (state == STATE_CONNECT or state == STATE_WAIT) and x.upstream is not NULL:
            upstream = &sim.ends[x.upstream.conn.fd - SIM_FIRST]
            ledger.upstream = x.upstream.conn.fd - SIM_FIRST
            ledger.up_asks = upstream.told.n
            ledger.up_answers = upstream.taken
        elif state == STATE_STREAM or state == STATE_TUNNEL:
            ledger.forwards = state
        elif state == STATE_FLUSH and ledger.upstream >= 0:
            ledger.stop = sim.ends[ledger.upstream].taken
            ledger.released = True
    engine_exchange_set_state(w, x, state)

cdef void probe_open(WorkerC *w, int slot, int address, uint8_t tried) noexcept nogil:
    world.probing = True
    engine_probe_open(w, slot, address, tried)
    world.probing = False

cdef bint outcome_has_reason(uint8_t outcome) noexcept nogil:
    # Where the outcome alone does not say why (rule E4). Those of clients, of a drain and of a pool without backends do.
    return outcome not in (
        OUTCOME_OK, OUTCOME_CLIENT_ABORT, OUTCOME_NO_BACKEND, OUTCOME_SHUTDOWN, OUTCOME_TIMEOUT_SEND, OUTCOME_TIMEOUT_HEAD,
        OUTCOME_TIMEOUT_BODY,
    )

cdef void exchange_end(WorkerC *w, ExchangeC *x, uint8_t phase, uint8_t outcome) noexcept nogil:
    # In front of the engine's own, while it still has all that it holds.
    cdef size_t asks = 0
    cdef LedgerC *ledger = NULL
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    cdef uint64_t missing = 0
    if x.client is not NULL:
        ledger = &world.ledgers[x.client.conn.fd - SIM_FIRST]
        pending_holds(&x.client.pending, &data, &n)
        asks = sim.ends[x.client.conn.fd - SIM_FIRST].taken - n
        if ledger.upstream >= 0 and world.checks:
            missing = world_account_down(w, x, ledger, outcome) + world_account_up(w, x, ledger, outcome)
        if outcome == OUTCOME_OK and x.unlisted:
            sim_fail("it ended well, and lacks of the list of models", b"bytes", x.unlisted)
        if outcome == OUTCOME_OK and x.state == STATE_TUNNEL and (x.up_broken or x.deaf):
            sim_fail("a tunnel of which one side took no more ends well", b"state", x.state)
        if x.reason == REASON_NONE and outcome_has_reason(outcome):
            sim_fail("ended badly for no reason", outcome_words[outcome].name, x.state)
    engine_exchange_end(w, x, phase, outcome)
    world.ended += 1
    # Its pointers may not be used any more: AddressSanitizer tells of it.
    sys_poison(&x.counted, sizeof(x.counted) + sizeof(x.quota) + sizeof(x.host))
    sys_poison(&x.up, sizeof(x.up) + sizeof(x.down))
    if ledger is not NULL:
        if missing > world_discarded(w) - ledger.discarded:
            sim_fail("account: thrown away, and not counted", b"bytes",
                     <int64_t>(missing - (world_discarded(w) - ledger.discarded)))
        ledger.asks = asks

cdef void world_hold(sim_bytes *to, ChainC *chain) noexcept nogil:
    # Appends what a chain has not sent.
    cdef BufC *buf = chain.at
    cdef int at = chain.at_pos
    if not chain.unsent:
        return
    while buf is not NULL:
        sim_append(to, buf.data + at, buf.end - at)
        buf = buf.next
        at = buf.start if buf is not NULL else 0

cdef size_t world_head(const uint8_t *data, size_t n, bint answer, bint to_head) noexcept nogil:
    # The length of the head at the start, of an answer with those of 1xx before it; 0 where there is none whole.
    cdef size_t total = 0
    cdef size_t length
    cdef uint32_t scanned
    if n >= 2 and not answer and memcmp(data, b"\r\n", 2) == 0:
        total = 2
    while True:
        length = 0
        scanned = 0
        if total == n or head_scan(data + total, n - total, &scanned, &length) != RC_DONE:
            return 0
        total += length
        if not answer:
            return total
        if head_read_response(&answer_head, data + total - length, length, HEAD_MAX_FIELDS, to_head) != RC_OK:
            return 0
        if answer_head.status >= 200 or answer_head.status == 101:
            return total

cdef bint world_framing_ends(ExchangeC *x, const uint8_t *data, size_t n, size_t at) noexcept nogil:
    # Whether a response's body, of which data[0:n] came, ends or breaks its framing at `at`: what stands there is no body.
    cdef const uint8_t *body = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef ChunkC chunk
    cdef int rc = RC_OK
    if x.down_body.framing == FRAMING_LENGTH:
        return x.down_body.chunk.left == 0
    if x.down_body.framing != FRAMING_CHUNKED:
        return x.down_body.framing == FRAMING_NONE
    memset(&chunk, 0, sizeof(chunk))
    while rc == RC_OK:
        rc = chunk_next(&chunk, data, n, &used, &body, &length)
    return rc != RC_AGAIN and used == at

cdef bint world_only_ends(ExchangeC *x, const uint8_t *data, size_t n, size_t at) noexcept nogil:
    # Whether a client that left had all the data of a chunked response, and what stands at `at` is its end (rule D).
    cdef const uint8_t *body = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef ChunkC chunk
    cdef int rc = RC_OK
    if x.down_body.framing != FRAMING_CHUNKED or not x.client.conn.hung_up:
        return False
    memset(&chunk, 0, sizeof(chunk))
    while rc == RC_OK:
        rc = chunk_next(&chunk, data, n, &used, &body, &length)
        if rc == RC_OK and used > at:
            return False
    return rc == RC_DONE

cdef uint64_t world_account_down(WorkerC *w, ExchangeC *x, LedgerC *ledger, uint8_t outcome) noexcept nogil:
    cdef sim_end *client = &sim.ends[x.client.conn.fd - SIM_FIRST]
    cdef sim_end *upstream = &sim.ends[ledger.upstream]
    cdef const uint8_t *came = upstream.rx.data + ledger.up_answers
    cdef size_t n = (ledger.stop if ledger.released else upstream.taken) - ledger.up_answers
    cdef size_t sent = client.told.n - ledger.answers
    cdef size_t head
    cdef size_t same = 0
    cdef size_t length
    cdef size_t shown
    cdef sim_bytes went
    if not ledger.forwards or x.unframed or client.lost:
        return 0
    memset(&went, 0, sizeof(went))
    sim_append(&went, client.told.data + ledger.answers, sent)
    world_hold(&went, &x.down)
    # What a look has shown may have been forwarded before it is taken.
    shown = n if ledger.released or upstream.shown < upstream.taken else upstream.shown - ledger.up_answers
    head = world_head(came, shown, True, x.to_head)
    came += head
    shown -= head
    n = n - head if n > head else 0
    sent = world_head(went.data, went.n, True, x.to_head)
    length = went.n - sent
    while same < shown and same < length and came[same] == went.data[sent + same]:
        same += 1
    if not head or not sent:
        # The send of the head may have found it gone, or no memory for the rest.
        if outcome != OUTCOME_CLIENT_ABORT and outcome != OUTCOME_OVERLOAD:
            sim_fail("account: no head was forwarded", b"outcome", outcome)
    elif same < length and not (outcome != OUTCOME_OK and w.limits.midstream_error_event and memmem(
            went.data + sent + same, length - same, b'data: {"error"', 14) is not NULL):
        sim_fail("account: the client got what never came", b"bytes", <int64_t>(length - same))
    elif (same < n and outcome != OUTCOME_CLIENT_ABORT and outcome != OUTCOME_OVERLOAD and not x.deaf
            and not (x.state != STATE_TUNNEL and (
                world_framing_ends(x, came, n, same) or world_only_ends(x, came, n, same)))):
        # A send that finds the client gone, or no memory to hold a piece, are the reasons; and what stands behind the body.
        sim_fail("account: dropped for no reason", b"down", <int64_t>(n - same))
    if outcome == OUTCOME_OK and x.down.unsent:
        sim_fail("account: it ended well, and bytes are held", b"down", x.down.unsent)
    world.accounted += 1
    world_free(&went)
    # What has gone down, without what is held.
    same = length if same > length else same
    length = length - x.down.unsent if length > x.down.unsent else 0
    return n - (same if same < length else length) if n > (same if same < length else length) else 0

cdef uint64_t world_account_up(WorkerC *w, ExchangeC *x, LedgerC *ledger, uint8_t outcome) noexcept nogil:
    cdef sim_end *client = &sim.ends[x.client.conn.fd - SIM_FIRST]
    cdef sim_end *upstream = &sim.ends[ledger.upstream]
    cdef const uint8_t *came = client.rx.data + ledger.asks
    cdef size_t n = client.taken - ledger.asks
    cdef uint8_t *data = NULL
    cdef size_t more = 0
    cdef size_t head
    cdef size_t sent
    cdef sim_bytes went
    if (x.upstream is NULL or x.up_broken or upstream.lost or x.adds_usage
            or outcome == OUTCOME_BAD_REQUEST or outcome == OUTCOME_OVERLOAD
            or (x.state != STATE_WAIT and x.state != STATE_STREAM and x.state != STATE_TUNNEL)):
        return 0    # it takes no more, or the request was broken or could not be held: what came since is thrown away
    memset(&went, 0, sizeof(went))
    sim_append(&went, upstream.told.data + ledger.up_asks, upstream.told.n - ledger.up_asks)
    world_hold(&went, &x.up)
    head = world_head(came, n, False, False)
    sent = world_head(went.data, went.n, False, False)
    if pending_holds(&x.client.pending, &data, &more):
        sim_append(&went, data, more)
    came += head
    n -= head
    if not head or not sent:
        sim_fail("account: no head went up", b"outcome", outcome)
    elif memcmp(came, went.data + sent, n if n < went.n - sent else went.n - sent) != 0:
        sim_fail("account: the backend got other bytes than came", b"outcome", outcome)
    elif went.n - sent > n:
        sim_fail("account: bytes that never came", b"up", <int64_t>(went.n - sent - n))
    elif went.n - sent < n and not x.error:
        # A send that finds the backend gone is the reason.
        sim_fail("account: dropped for no reason", b"up", <int64_t>(n - (went.n - sent)))
    if outcome == OUTCOME_OK and x.state == STATE_TUNNEL and x.up.unsent:
        sim_fail("account: it ended well, and bytes are held", b"up", x.up.unsent)
    world.accounted += 1
    world_free(&went)
    sent = went.n - sent - x.up.unsent
    return n - sent if n > sent else 0

cdef void world_check_idle() noexcept nogil:
    # Engines that sleep have done all that they can, and their counters say what is.
    cdef int64_t in_flight[WORLD_BACKENDS]
    cdef int i
    cdef int k
    memset(in_flight, 0, sizeof(in_flight))
    for k in range(world.worker_count):
        world_check_worker(world.workers[k], in_flight)
        trace_check_idle(world.workers[k])
    for i in range(WORLD_BACKENDS):
        world_same("exchanges in flight", in_flight[i], world_in_flight(i))
    world_check_queue()
    world_check_bounds()

cdef void world_check_queue() noexcept nogil:
    # Who waits for a place is counted, and waits for a reason: no backend has room for it, or none is up (rule M1).
    cdef WorkerC *w = world.worker
    cdef PoolStateC *state = w.shared.pools
    cdef int64_t waiting = 0
    cdef int64_t counted = 0
    cdef int64_t tickets
    cdef ConnC *conn
    cdef ExchangeC *x
    cdef RouteC *route
    cdef int64_t total
    cdef bint blameless
    cdef int k
    cdef int i
    while state is not NULL:
        counted += state.queue.waiting
        state = state.next
    for k in range(world.worker_count):
        w = world.workers[k]
        conn = w.all
        tickets = 0
        while conn is not NULL:
            x = conn.exchange
            if conn.kind == CONN_CLIENT and x is not NULL and x.ticket is not NULL:
                tickets += 1
                waiting += x.ticket.state == TICKET_WAITS
                if (x.ticket.state == TICKET_WAITS) != (x.state == STATE_QUEUE) and x.ticket.heap.key > sim.now:
                    sim_fail("a ticket and its exchange differ", "state", x.state)
                if x.state == STATE_QUEUE and sim.now - WHEEL_SLACK > x.ticket.heap.key:
                    sim_fail("its time is up, and nothing happened", "queue", sim.now - x.ticket.heap.key)
                if x.ticket.state == TICKET_WAITS and w.new_table is NULL:
                    total = 0
                    blameless = False
                    for i in range(w.table.count):
                        route = &w.table.routes[i]
                        if route.backend is not NULL:
                            total += route.backend.in_flight
                            blameless |= not route.backend.failures and (
                                not route.max_in_flight or route.backend.in_flight < route.max_in_flight)
                    if blameless and (not w.limits.max_in_flight or total < w.limits.max_in_flight):
                        sim_fail("it waits, though there is a place", "in flight", total)
            conn = conn.all_next
        world_same("tickets", tickets, w.tickets_out)
        world_same("tickets that nobody took", 0, w.orphans)
    world_same("tickets that wait", waiting, counted)
    world_same("tickets that wait, of all pools", waiting, world.worker.shared.waiting)
    world_check_limits()

cdef void world_check_limits() noexcept nogil:
    # No backend and no pool works on more than it may: a limit that came later holds from then on.
    cdef TableC *table = world.worker.table
    cdef int64_t total = 0
    cdef int i
    if world.limits_at != table:
        world.limits_at = table
        memset(world.over, 0, sizeof(world.over))
        for i in range(table.count):
            world.over[i] = table.routes[i].backend.in_flight if table.routes[i].backend is not NULL else 0
    for i in range(table.count):
        if table.routes[i].backend is not NULL:
            total += table.routes[i].backend.in_flight
            if table.routes[i].max_in_flight and table.routes[i].backend.in_flight > world_latest(
                    world.over[i], table.routes[i].max_in_flight):
                sim_fail("more than a backend may have", "in flight", table.routes[i].backend.in_flight)
    if world.worker.limits.max_in_flight and not world.tables and total > world.worker.limits.max_in_flight:
        sim_fail("more than a pool may have", "in flight", total)

cdef void world_check_bounds() noexcept nogil:
    # What all exchanges of the process hold, those included whose client has left.
    cdef ListenerC *listener = world.worker.listener
    cdef int64_t clients = 0        # that are served
    cdef int64_t finishing = 0
    cdef int64_t upstreams = 0
    cdef int64_t idle = 0
    cdef int64_t open_clients = 0
    cdef int64_t open_upstreams = 0
    cdef uint64_t kept = 0
    cdef WorkerC *w
    cdef ConnC *conn
    cdef ExchangeC *x
    cdef int i
    for i in range(world.worker_count):
        w = world.workers[i]
        conn = w.all
        while conn is not NULL:
            x = conn.exchange
            if conn.kind == CONN_CLIENT:
                open_clients += 1
                clients += not (<ClientC *>conn).refuse_status
            elif conn.kind == CONN_UPSTREAM:
                upstreams += 1
                idle += x is NULL
                finishing += x is not NULL and x.client is NULL
            if x is not NULL and (conn.kind == CONN_CLIENT or x.client is NULL):
                kept += x.kept
            conn = conn.all_next
    if upstreams > open_clients + finishing + idle:
        sim_fail("more than there are exchanges", "upstreams", upstreams)
    if listener is not NULL and listener.max_connections and clients + finishing > listener.max_connections:
        sim_fail("more than the limit, with those whose client has left", "exchanges", clients + finishing)
    world_same("bytes of requests that are kept", <int64_t>kept, <int64_t>world.worker.shared.kept)
    if world.worker.shared.kept_most and kept > world.worker.shared.kept_most + KEPT_SLACK:
        sim_fail("more than the budget", "bytes of requests that are kept", <int64_t>kept)
    for i in range(sim.count):
        if not sim.ends[i].closed:
            open_upstreams += sim.ends[i].kind == END_UPSTREAM
            open_clients -= sim.ends[i].accepted
    world_same("descriptors of upstreams", open_upstreams, upstreams)
    world_same("descriptors of clients", 0, open_clients)

cdef void world_check_worker(WorkerC *w, int64_t *in_flight) noexcept nogil:
    # One of them; adds its exchanges in flight.
    cdef ConnC *conn = w.all
    cdef ExchangeC *x
    cdef int64_t clients = 0
    cdef int64_t exchanges = 0
    cdef uint64_t streams = 0
    cdef uint64_t upstreams = 0
    while conn is not NULL:
        world_check_conn(w, conn)
        x = conn.exchange
        if x is not NULL and x.client is not NULL and conn.kind == CONN_CLIENT:
            world_check_time(w, x)
        clients += conn.kind == CONN_CLIENT
        upstreams += conn.kind == CONN_UPSTREAM
        if x is not NULL and (conn.kind == CONN_CLIENT or x.client is NULL):
            exchanges += 1
            streams += state_streams(x.state)
            if x.counted is not NULL:
                in_flight[x.backend % WORLD_BACKENDS] += 1
        conn = conn.all_next
    world_same("clients", clients, w.client_count)
    world_same("exchanges", exchanges, w.exchange_count)
    world_same("streams", streams, w.stats.streaming_active)
    world_same("upstreams", upstreams, w.stats.upstreams)

cdef void world_same(const char *what, int64_t is_, int64_t counted) noexcept nogil:
    if is_ != counted:
        sim_fail("counted wrongly", what, counted - is_)

cdef int64_t world_slab_missing(WorkerC *w, SlabC *slab, uint8_t kind) noexcept nogil:
    # Structs of a slab that were neither given back nor closed in the last turn.
    cdef void *block = slab.blocks
    cdef void *item = slab.available
    cdef ConnC *conn = w.parked if kind else NULL
    cdef int64_t count = 0
    while conn is not NULL:
        count -= conn.kind == kind
        conn = conn.all_next
    while block is not NULL:
        block = (<void **>block)[0]
        count += ITEMS_A_BLOCK
    while item is not NULL:
        item = (<void **>item)[0]
        count -= 1
    return count

cdef void world_check_settled(WorkerC *w) noexcept nogil:
    # Everybody has left, and all time is over: a worker that goes on holds nothing, before it is told to stop.
    world_same("exchanges, with nobody there", 0, w.exchange_count)
    world_same("clients, with nobody there", 0, w.client_count)
    world_same("upstreams, with nobody there", 0, w.stats.upstreams)
    world_same("upstreams that linger, with nobody there", 0, w.lingering)
    world_same("places of clients, with nobody there", w.stats.accepted, w.stats.closed)
    world_same("buffers, with nobody there", 1, w.bufs.held)
    world_same("areas for long heads, with nobody there", 0, w.long_heads_held)
    world_same("client structs, with nobody there", 0, world_slab_missing(w, &w.clients, CONN_CLIENT))
    world_same("upstream structs, with nobody there", 0, world_slab_missing(w, &w.upstreams, CONN_UPSTREAM))
    world_same("exchange structs, with nobody there", 0, world_slab_missing(w, &w.exchanges, 0))
    world_same("linger structs, with nobody there", 0, world_slab_missing(w, &w.lingers, 0))
    world_same("tickets, with nobody there", 0, world_slab_missing(w, &w.tickets, 0))
    if w.all is not NULL:
        sim_fail("a connection, with nobody there", "", w.all.fd)

cdef void world_check_end() noexcept nogil:
    # As world_check_engine_end, and its records are all in the ring.
    cdef WorkerC *w = world.worker
    cdef uint64_t outcomes = 0
    cdef uint64_t records = 0
    cdef uint32_t at
    cdef int i
    world_check_engine_end()
    for i in range(OUTCOME_COUNT):
        outcomes += w.stats.outcomes[i]
    world_same("exchanges that began", <int64_t>world.begun, <int64_t>world.ended)
    world_same("exchanges that ended", <int64_t>world.ended, <int64_t>outcomes)
    for at in range(w.mail.out_tail):
        records += w.mail.records[at & (MAIL_OUT - 1)].kind == RECORD_EXCHANGE
    world_same("records of exchanges", outcomes, records + w.stats.records_dropped)

cdef void world_check_engine_end() noexcept nogil:
    # An engine whose loop has ended holds nothing, and has counted everything once.
    cdef WorkerC *w = world.worker
    cdef ConnC *conn
    cdef int i
    cdef int slot
    world_same("clients", 0, w.client_count)
    world_same("exchanges", 0, w.exchange_count)
    world_same("buffers", 1, w.bufs.held)
    world_same("streams", 0, w.stats.streaming_active)
    for i in range(MAX_BACKENDS):
        world_same("streams that wait for a backend", 0, w.stats.backends[i].flowing)
    world_same("upstreams", 0, w.stats.upstreams)
    world_same("accepted and closed", w.stats.accepted, w.stats.closed)
    for i in range(MAX_BACKENDS):
        world_same("exchanges in flight", 0, world_in_flight(i) if i < WORLD_BACKENDS else 0)
        world_same("idle upstreams", 0, w.stats.backends[i].idle)
    loop_reap(w)        # the last turn has none
    world_same("client structs", 0, world_slab_missing(w, &w.clients, CONN_CLIENT))
    world_same("upstream structs", 0, world_slab_missing(w, &w.upstreams, CONN_UPSTREAM))
    world_same("exchange structs", 0, world_slab_missing(w, &w.exchanges, 0))
    world_same("linger structs", 0, world_slab_missing(w, &w.lingers, 0))
    world_same("tickets", 0, world_slab_missing(w, &w.tickets, 0))
    world_same("areas for long heads", 0, w.long_heads_held)
    for slot in range(WHEEL_SLOTS):
        conn = w.wheel[slot]
        while conn is not NULL:
            if conn.kind != CONN_LISTENER:
                sim_fail("a timer is armed", "", conn.fd)
            conn = conn.timer_next

cdef void world_check_closed() noexcept nogil:
    # Everything was closed and freed, but the listening socket and what was not accepted.
    cdef sim_end *end
    cdef int i
    for i in range(sim.count):
        end = &sim.ends[i]
        if not end.closed and end.kind != END_LISTENER and not (end.kind == END_CLIENT and not end.accepted):
            sim_fail("a descriptor was left open", b"kind", end.kind)
    if sim.allocations:
        sim_fail("memory was not freed", b"allocations", sim.allocations)

# ------------------------------------------------------------------------------------------------------------- to Python

Peer = namedtuple("Peer", "port sent left got ended stayed")
Peer.__doc__ = """A client or an upstream: what it sent and how it left, what it got and how it saw the end ("", fin, reset);
whether it left only because the script was over.
"""

Trace = namedtuple("Trace", "in_time lost room fed left shut closed freed destroyed told")
Trace.__doc__ = """More of a peer: how many of its bytes came before we closed, how many of ours an RST destroyed, how many it
would still take; when (us, 0 for never) it last sent a byte and left, before we closed, when our FIN and our close came, and when
it last took bytes again; how many of ours we destroyed on purpose, and when we last sent some.
"""


Trust = namedtuple("Trust", "networks unix")


class _Settings:
    """Short time-outs, and what the first byte of a script says."""

    process = pool = property(lambda self: self)    # here nothing needs them apart

    max_request_line = 8192
    max_head = 32768
    max_fields = 128
    max_response_head = 65536
    max_response_fields = 512
    trusted_proxies = Trust(((b"\x7f\0\0\0", 8),), True)
    head_timeout = 2.0
    keepalive_timeout = 4.0
    connect_timeout = 1.0
    ttft_timeout = 5.0
    idle_timeout = 3.0
    send_timeout = 2.0
    upstream_idle_timeout = 3.0
    dead_peer_timeout = 45.0
    access_records = True
    kept_memory = 1 << 28
    tenant = "x-tenant"
    priority = "x-priority"
    max_in_flight = 0
    eject_errors = 5
    policy = "least_in_flight"
    slow_start = 0.0
    on_error_event = False
    include_usage = "asked"
    queue_size = 256
    queue_timeout = 30.0
    cold_timeout = 0.0

    def __init__(self, bits):
        self.on_midstream_error = "event" if bits & 1 else "close"
        self.comments_count_as_content = bool(bits & 2)
        self.failover_body = 64 if bits & 2 else 1 << 20
        self.total_timeout = 6.0 if bits & 4 else 0.0
        self.max_body = 1000 if bits & 8 else 1 << 26
        self.retry_statuses = frozenset((429, 502, 503)) if bits & 16 else frozenset()
        if bits & 32:
            self.max_head, self.max_request_line, self.max_fields = 256, 64, 8
            self.max_response_head, self.max_response_fields = 320, 10
        if bits & 64:
            self.keepalive_timeout = 0.0
            self.trusted_proxies = Trust(((b"\0\0\0\0", 0),), True)       # every peer


SETTINGS = tuple(EDGES)
cdef object _SETTINGS = [_Settings(bits) for bits in range(128)]


def settings_of(bytes script not None):
    """What the engine of a script is made with: its first byte, and the operations "setting", wherever they stand."""
    settings = _SETTINGS[script[0] & 127 if script else 0]
    at = 2
    changed = {}
    while at + 3 <= len(script):
        what = (script[at] & OP_MASK) % OP_COUNT
        if what == OP_SETTING:
            name = SETTINGS[script[at + 1] % len(SETTINGS)]
            changed[name] = EDGES[name][script[at + 2] % len(EDGES[name])]
        at += 3 + (script[at + 2] if what in (OP_CLIENT_SEND, OP_UPSTREAM_SEND) else 0)
    if changed:
        settings = copy(settings)
        vars(settings).update(changed)
    return settings


cdef dict _limits():
    # Of clients, by the script's first byte.
    return {"max_connections": 3, "max_per_address": 2} if world.n and world.script[0] & 128 else {}


cdef bytes _bytes(const uint8_t *p, size_t n):
    return (<const char *>p)[:n] if n else b""


cdef list _ends(int kind):
    # What happened at the peers' ends.
    cdef int i
    return [Peer(sim.ends[i].port, _bytes(sim.ends[i].rx.data, sim.ends[i].rx.n),
                 "reset" if sim.ends[i].dead else "fin" if sim.ends[i].fin else "",
                 _bytes(sim.ends[i].told.data, sim.ends[i].told.n),
                 {0: "", c"F": "fin", c"R": "reset"}[sim.ends[i].ended], bool(world.stayed[i]))
            for i in range(sim.count) if sim.ends[i].kind == kind]


cdef list _traces(int kind):
    cdef int i
    cdef sim_end *end
    traces = []
    for i in range(sim.count):
        end = &sim.ends[i]
        if end.kind == kind:
            traces.append(Trace(end.in_time, end.lost, end.room, end.fed_at, end.left_at, end.shut_at, end.closed_at,
                                end.freed_at, end.destroyed, end.told_at))
    return traces


cdef list _ends_of(list records):
    # When the exchanges of records that were just handed over ended, in us of the simulated clock.
    return [sim.now - <int64_t>(record.age * 1e6) for record in records]


cdef void _world_clear(bytes script):
    cdef int i
    for i in range(SIM_ENDS):
        if world.pending[i].bytes.data is not NULL:
            world_free(&world.pending[i].bytes)
    memset(&world, 0, sizeof(world))
    memset(sim_connects, 0, SERVERS)
    sim_reset()
    trace_clear()
    sim.idle = world_idle
    sim.runs_away = world_runs_away
    sim.step = NULL
    memset(&fleet, 0, sizeof(fleet))
    world.script = script
    world.n = len(script)
    world.checks = True


def run(bytes script not None, faults=(), size_t most_recv=0, size_t most_send=0, bint interrupts=False,
        bint aborts=False, bint settles=False, int place=-1):
    """Runs a script. `faults` are (call, nth call of this kind from 1, errno), or a negative number for no more than so
    many bytes; with a fourth number as many calls in a row fail, FOR_EVER are all. What the peers saw, the records of
    exchanges, the outcomes, the calls by kind; or an AssertionError that says which rule was broken (with `aborts` the
    process ends). With `settles` the engine is told to stop only when everything has ended by itself. `place` is one of PLACES
    that the script begins with: whether it was reached is in the result.
    """
    cdef Engine engine = Engine.__new__(Engine)
    cdef int listener
    cdef int i
    cdef list records = []
    _world_clear(script)
    sim.aborts = aborts
    sim.most_recv = most_recv
    sim.most_send = most_send
    sim.interrupts = interrupts
    world.settles = settles
    if place >= 0:
        world.place = place
        world.placed_at = 2 + len(PLACES[place].operations)
    for call, nth, error, *row in faults:
        world_fault(CALLS.index(call), nth, row[0] if row else 1, error)
    result = {"failed": None, "outcomes": {}, "stats": {}, "records": records, "ended": [], "listing": LISTING}
    listener = sim_open(END_LISTENER)
    try:
        result["settings"] = settings_of(script)
        engine.__init__(result["settings"])
        world.worker = world.workers[0] = engine.w
        world.worker_count = 1
        engine.listen([listener], [engine], most=1000, resume_at=900, **_limits())
        world_table(world.script[1] if world.n > 1 else 0, 0)
        world.at = 2
        engine.run()
    except (MemoryError, OSError) as error:
        result["failed"] = error
    if engine.w is not NULL:
        if engine.started:
            trace_requests()
            world_check_end()
        engine._know(engine.w.table)    # it was handed over without configure()
        result["stats"] = engine.stats()
        result["outcomes"] = {OUTCOMES[i]: n for i, n in enumerate(result["stats"]["outcomes"]) if n}
        records += engine.take_records()
        result["ended"] = _ends_of(records)
        engine.close()
    world_check_closed()
    result["trace"] = trace_list()
    result["clients"] = _ends(END_CLIENT)
    result["upstreams"] = _ends(END_UPSTREAM)
    result["client_traces"] = _traces(END_CLIENT)
    result["upstream_traces"] = _traces(END_UPSTREAM)
    result["accounted"] = world.accounted
    result["placed"] = bool(world.placed)
    result["calls"] = {name: sim.calls[i] for i, name in enumerate(CALLS)}
    result["injected"] = sim.injected
    result["short"] = sim.short_calls
    if sim.failure[0]:
        raise AssertionError(sim.failure.decode())
    return result


def kernel_events(list steps not None):
    """What the simulated epoll reports of a connected socket after each step, 0 for nothing, and what each recv gave, None for
    nothing and an errno where it failed. Steps: data, urgent, fin, reset (of the peer), recv, peek, shut, inline (SO_OOBINLINE)
    (of the engine), fill (send until there is no room), room (the peer takes all).
    """
    cdef uint8_t room[64]
    cdef epoll_event event
    cdef sim_end *end
    cdef int epfd
    cdef int fd
    cdef int one = 1
    cdef ssize_t n
    cdef list seen = []
    cdef list got = []
    sim_reset()
    epfd = epoll_create1(EPOLL_CLOEXEC)
    fd = sim_open(END_UPSTREAM)
    end = &sim.ends[fd - SIM_FIRST]
    end.connected = True
    io_watch(epfd, fd, NULL)
    for step in ["begin", *steps]:
        if step == "data":
            sim_feed(end, b"data", 4)
        elif step == "fin":
            sim_feed_fin(end)
        elif step == "reset":
            sim_feed_reset(end)
        elif step == "urgent":
            sim_feed_urgent(end, b"ab!", 3)
        elif step == "inline":
            setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one))
        elif step == "recv" or step == "peek":
            n = io_recv_into(fd, room, sizeof(room)) if step == "recv" else io_peek(fd, room, sizeof(room))
            got.append(_bytes(room, n) if n >= 0 else None if n == -EAGAIN else -n)
        elif step == "shut":
            io_shut(fd)
        elif step == "fill":
            end.room = 100
            while io_send(fd, room, sizeof(room)) > 0:
                pass
        elif step == "room":
            sim_feed_room(end, 100)
        seen.append(event.events if epoll_wait(epfd, &event, 1, 0) == 1 else 0)
    return seen, got


def kernel_listener_shut():
    """What the simulated epoll reports of a listening socket that somebody shuts down, and the errno of an accept then."""
    cdef epoll_event event
    cdef sockaddr_storage peer
    cdef int epfd
    cdef int fd
    sim_reset()
    epfd = epoll_create1(EPOLL_CLOEXEC)
    fd = sim_open(END_LISTENER)
    io_watch(epfd, fd, NULL)
    sim_listener_shut()
    seen = event.events if epoll_wait(epfd, &event, 1, 0) == 1 else 0
    return seen, -io_accept(fd, &peer)
