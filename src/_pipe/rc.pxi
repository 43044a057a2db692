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

# Which end of the proxy a connection is; the mailbox and the listening sockets are in the epoll set too.
cdef enum:
    SIDE_MAIL = 0
    SIDE_CLIENT = 1
    SIDE_UPSTREAM = 2
    SIDE_LISTENER = 3

# States of a client connection.
cdef enum:
    CLIENT_NEW = 0      # before its first request; ended by a byte, a FIN, the head or the keep-alive time-out, the drain
    CLIENT_IDLE = 1     # between exchanges; ended by a byte, a FIN, the keep-alive time-out, the drain. Both give way to others
    CLIENT_BUSY = 2     # has an exchange; ended by the exchange's end
    CLIENT_LINGER = 3   # our side is shut; what still comes is thrown away, until a FIN or linger_deadline()

# States of an exchange. exchange_set_state() is the only writer.
cdef enum:
    STATE_HEAD = 0      # waits for the request head; ended by the head, its time-out, a client that left
    STATE_CONNECT = 1   # waits for the upstream's connect; ended by it, its error, its time-out, the TTFT time-out
    STATE_WAIT = 2      # sends the request, waits for the response head; ended by it, a failure, a time-out
    STATE_STREAM = 3    # forwards the response body; ended by the framing's end, a failure, a time-out
    STATE_FLUSH = 4     # the response is whole, the upstream released; waits for the client to take the rest
    STATE_TUNNEL = 5    # after a 101: bytes both ways; ended by a FIN or RST of either side, a time-out
    STATE_FINISH = 6    # the client left a backend that may finish; what that sends is thrown away
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
    # of a head, of either side (rules A2, A4 and C2)
    REASON_FIRST_LINE = 12
    REASON_HEAD_TOO_LONG = 13
    # of the backend's bytes
    REASON_BEHIND_END = 14
    REASON_UNASKED = 15
    REASON_UNASKED_UPGRADE = 16
    # of the proxy itself
    REASON_NO_MEMORY = 17
    REASON_NO_DESCRIPTORS = 18
    # of a head again
    REASON_FIELDS = 19
    REASON_TLS = 20
    REASON_BARE_LF = 21
    REASON_BARE_CR = 22
    REASON_CONTROL = 23
    REASON_FOLDED = 24
    REASON_SPACE_BEFORE_COLON = 25
    REASON_FIELD_NAME = 26
    REASON_LENGTH = 27
    REASON_TWO_LENGTHS = 28
    REASON_CODING = 29
    REASON_TWO_CODINGS = 30
    REASON_TWO_FRAMINGS = 31
    REASON_OLD_CHUNKED = 32
    REASON_CONNECTION = 33
    REASON_HOST = 34
    REASON_TWO_HOSTS = 35
    # of a request's head
    REASON_NO_HOST = 36
    REASON_LINE_TOO_LONG = 37
    REASON_TARGET = 38
    REASON_VERSION = 39
    REASON_CONNECT = 40
    REASON_EXPECTATION = 41
    REASON_BODY_TOO_LONG = 42
    # of a response's head
    REASON_INTERIM_BODY = 43
    REASON_EMPTY_BODY = 44
    # of the chunks of either side
    REASON_CHUNK_SIZE = 45
    REASON_CHUNK_EXTENSION = 46
    REASON_CHUNK_END = 47
    REASON_TRAILER = 48
    # of too many clients
    REASON_CONNECTIONS_OF_ADDRESS = 49
    REASON_CONNECTIONS = 50
    REASON_COUNT = 51

REASONS = (
    "", "FIN before the head", "FIN in the head", "FIN in the body", "ECONNRESET", "EPIPE", "ECONNREFUSED", "ETIMEDOUT",
    "EHOSTUNREACH", "ENETUNREACH", "other errno", "deadline", "broken first line", "head over the limit",
    "bytes behind the end", "bytes before the request", "101 without a request to upgrade", "no memory", "no descriptors",
    "more fields than the limit", "TLS", "bare LF", "bare CR", "control character", "folded line", "space before the colon",
    "bad field name", "bad Content-Length", "two Content-Lengths", "bad Transfer-Encoding", "two Transfer-Encodings",
    "Content-Length and Transfer-Encoding", "Transfer-Encoding in HTTP/1.0", "bad Connection", "bad Host", "two Hosts",
    "no Host", "request line over the limit", "bad target", "other version", "CONNECT", "other expectation",
    "body over the limit", "1xx with a body", "204 with a body", "bad chunk size", "bad chunk extension",
    "no line end behind a chunk", "bad trailer", "connections of one address", "connections of all",
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
