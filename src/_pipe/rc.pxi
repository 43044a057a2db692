# rc: what functions return, the states of a connection and an exchange, and the ways an exchange ends.
#
# Every code that a log or a metric shows has its printable name here, beside the enum; change both together.

# What an engine function returns. A negative value is -errno. A FIN is none of these: it is the 0 of io_recv.
cdef enum:
    RC_OK = 0
    RC_AGAIN = 1    # more bytes, or room in a socket, are needed first
    RC_DONE = 3     # the framing's end was reached
    RC_BAD = 4      # the peer broke the protocol
    RC_GONE = 5     # the exchange ended in the call; its pointers may not be used any more
    RC_FULL = 6     # a Unix socket's backlog has no room: connect again later

# Which end of the proxy a connection is; the mailbox and the listening socket are in the epoll set too.
cdef enum:
    SIDE_MAIL = 0
    SIDE_CLIENT = 1
    SIDE_UPSTREAM = 2
    SIDE_LISTENER = 3

# States of a client connection.
cdef enum:
    CLIENT_NEW = 0      # before its first request; ended by a byte, a FIN, the keep-alive time-out, FIRST_REQUEST_TIME
    CLIENT_IDLE = 1     # between exchanges; ended by a byte, a FIN, the keep-alive time-out, the drain
    CLIENT_BUSY = 2     # has an exchange; ended by the exchange's end
    CLIENT_LINGER = 3   # our side is shut; what still comes is thrown away, until a FIN or linger_deadline()

# States of an exchange. exchange_set_state() is the only writer.
cdef enum:
    STATE_HEAD = 0      # waits for the request head; ended by the head, its time-out, a client that left
    STATE_CONNECT = 1   # waits for the upstream's connect; ended by it, its error, its time-out
    STATE_WAIT = 2      # sends the request, waits for the response head; ended by it, the TTFT time-out
    STATE_STREAM = 3    # forwards the response body; ended by the framing's end, a failure, a time-out
    STATE_FLUSH = 4     # the response is whole, the upstream released; waits for the client to take the rest
    STATE_TUNNEL = 5    # after a 101: bytes both ways; ended by a FIN or RST of either side
    STATE_FINISH = 6    # the client left a backend that must finish; what it sends is thrown away
    STATE_ENDED = 7

# Phases of an exchange, as logs show them: finer than the states, and derived from them in exchange_phase().
cdef enum:
    PHASE_HEAD = 0
    PHASE_BODY = 1
    PHASE_CONNECT = 2
    PHASE_WAIT = 3
    PHASE_SILENT = 4
    PHASE_STREAM = 5
    PHASE_BLOCKED = 6
    PHASE_TUNNEL = 7
    PHASE_FINISH = 8

PHASES = ("head", "body", "connect", "wait", "silent", "stream", "blocked", "tunnel", "finish")

# How an exchange ended; each exchange counts exactly one.
cdef enum:
    OUTCOME_OK = 0
    OUTCOME_CLIENT_ABORT = 1
    OUTCOME_UPSTREAM_ABORT = 2
    OUTCOME_UPSTREAM_ERROR = 3
    OUTCOME_CONNECT_ERROR = 4
    OUTCOME_NO_BACKEND = 5
    OUTCOME_TIMEOUT_CONNECT = 6
    OUTCOME_TIMEOUT_TTFT = 7
    OUTCOME_TIMEOUT_IDLE = 8
    OUTCOME_TIMEOUT_TOTAL = 9
    OUTCOME_TIMEOUT_SEND = 10
    OUTCOME_TIMEOUT_HEAD = 11
    OUTCOME_TIMEOUT_BODY = 12
    OUTCOME_BAD_REQUEST = 13
    OUTCOME_OVERLOAD = 14
    OUTCOME_SHUTDOWN = 15
    OUTCOME_COUNT = 16

OUTCOMES = (
    "ok", "client_abort", "upstream_abort", "upstream_error", "connect_error", "no_backend", "timeout_connect",
    "timeout_ttft", "timeout_idle", "timeout_total", "timeout_send", "timeout_head", "timeout_body", "bad_request",
    "overload", "shutdown",
)

# Framings of a message body (RFC 9112, section 6).
cdef enum:
    FRAMING_NONE = 0
    FRAMING_LENGTH = 1
    FRAMING_CHUNKED = 2
    FRAMING_CLOSE = 3   # until the peer's FIN: a response, a tunnel, and what follows a head or a chunk that is broken

# Bytes that were received and went nowhere, by why (rule C1). DISCARDS has the names; change both together.
cdef enum:
    DISCARD_REQUEST = 0         # of a request that was refused or answered before its end, or whose backend is gone
    DISCARD_BEHIND_REQUEST = 1  # stood behind a request on a connection that closes
    DISCARD_RESPONSE = 2        # of a response whose client has left, or takes no more
    DISCARD_BEHIND_RESPONSE = 3  # stood behind the end of a response (rule C4)
    DISCARD_BROKEN = 4          # of a response that broke its framing, or whose head never was whole
    DISCARD_RETRIED = 5         # of a response in whose place the next backend was asked
    DISCARD_INTERIM = 6         # an interim response to an HTTP/1.0 client
    DISCARD_TUNNEL = 7          # of a tunnel whose far side is gone
    DISCARD_COUNT = 8

DISCARDS = (
    "request", "behind_request", "response", "behind_response", "broken_response", "retried_response", "interim_response",
    "tunnel",
)

# Kinds of event records.
cdef enum:
    KIND_EXCHANGE = 0
    KIND_BACKEND_DOWN = 1
    KIND_BACKEND_UP = 2
    KIND_ACCEPT_PAUSED = 3
    KIND_ACCEPT_RESUMED = 4
    KIND_ACCEPT_ENDED = 5

EVENT_EXCHANGE = KIND_EXCHANGE
EVENT_BACKEND_DOWN = KIND_BACKEND_DOWN
EVENT_BACKEND_UP = KIND_BACKEND_UP
EVENT_ACCEPT_PAUSED = KIND_ACCEPT_PAUSED
EVENT_ACCEPT_RESUMED = KIND_ACCEPT_RESUMED
EVENT_ACCEPT_ENDED = KIND_ACCEPT_ENDED

# Why an attempt failed, or a request was refused (rule E4). Each is a label of a metric and a word list for operators: what
# they read must tell where to look, without a capture. REASONS has the names; change both together.
cdef enum:
    REASON_NONE = 0
    # of the network
    REASON_FIN_BEFORE_HEAD = 1
    REASON_FIN_IN_HEAD = 2
    REASON_FIN_IN_BODY = 3
    REASON_ECONNRESET = 4
    REASON_EPIPE = 5
    REASON_ECONNREFUSED = 6
    REASON_ETIMEDOUT = 7
    REASON_EHOSTUNREACH = 8
    REASON_ENETUNREACH = 9
    REASON_ERRNO = 10           # any other; the log line has its number
    # a time-out of the proxy's own: the outcome says which
    REASON_DEADLINE = 11
    # of the backend's bytes
    REASON_BAD_HEAD = 12
    REASON_HEAD_TOO_LONG = 13
    REASON_BAD_CHUNK = 14
    REASON_UNASKED = 15
    REASON_UNASKED_UPGRADE = 16
    # of the proxy itself
    REASON_NO_MEMORY = 17
    REASON_NO_DESCRIPTORS = 18
    REASON_COUNT = 19

REASONS = (
    "", "FIN before the head", "FIN in the head", "FIN in the body", "ECONNRESET", "EPIPE", "ECONNREFUSED", "ETIMEDOUT",
    "EHOSTUNREACH", "ENETUNREACH", "other errno", "deadline", "bad head", "head too long", "bad chunk",
    "bytes before the request", "101 without a request to upgrade", "no memory", "no descriptors",
)

cdef uint8_t reason_of_errno(int error) noexcept nogil:
    if error == ECONNRESET:
        return REASON_ECONNRESET
    if error == EPIPE:
        return REASON_EPIPE
    if error == ECONNREFUSED:
        return REASON_ECONNREFUSED
    if error == ETIMEDOUT:
        return REASON_ETIMEDOUT
    if error == EHOSTUNREACH:
        return REASON_EHOSTUNREACH
    if error == ENETUNREACH:
        return REASON_ENETUNREACH
    if error == ENOMEM:
        return REASON_NO_MEMORY
    return REASON_ERRNO
