# rc: what functions return, and the states of a connection and an exchange.
#
# Phases and discards have their printable names here, beside the enum; change both together. Those of outcomes and reasons are in
# outcome.

# What an engine function returns. A negative value is -errno. A FIN is none of these: it is the 0 of conn_recv.
cdef enum:
    RC_OK = 0
    RC_AGAIN = 1    # more bytes, or room in a socket, are needed first
    RC_DONE = 3     # the framing's end was reached
    RC_BAD = 4      # the peer broke the protocol
    RC_FULL = 5     # a Unix socket's backlog has no room: connect again later

# What a choice among backends gives in the place of a member.
cdef enum:
    MEMBER_NONE = -1  # there is none
    MEMBER_BUSY = -2  # there will be one: it has to be waited for

# Why a further backend is asked. RETRIES has the names; change both together.
cdef enum:
    RETRY_CONNECT = 0   # one could not be connected
    RETRY_ENDED = 1     # it took some of the request and ended without a byte
    RETRY_STATUS = 2    # it answered with a status that is named for that
    RETRY_EVENT = 3     # its event stream began with an error, or had no event
    RETRY_COUNT = 4

RETRIES = ("connect", "ended", "status", "first_event")

# Whether an answer that is an event stream waits for its first event (rule N1).
cdef enum:
    HOLD_NOT_YET = 0    # no head of an answer was read
    HOLD_WAITS = 1
    HOLD_OVER = 2       # it goes to the client, whatever comes

# What is looked at in the pieces of an answer's body.
cdef enum:
    LOOK_USAGE = 1      # for its tokens (rule Q)
    LOOK_TAPE = 2       # it is recorded

# Which end of the proxy a connection is; the mailbox and the listening sockets are in the epoll set too, the
# last has no descriptor.
cdef enum:
    CONN_MAILBOX = 0
    CONN_CLIENT = 1
    CONN_UPSTREAM = 2
    CONN_LISTENER = 3
    CONN_QUEUE = 4  # the timer of those that wait for a place

# States of a client connection. client_set_state() is the only writer.
cdef enum:
    CLIENT_NEW = 0      # before its first request; ended by a byte, a FIN, the head or the keep-alive time-out, the drain
    CLIENT_IDLE = 1     # between exchanges; ended by a byte, a FIN, the keep-alive time-out, the drain. Both give way to others
    CLIENT_BUSY = 2     # has an exchange; ended by the exchange's end
    CLIENT_LINGER = 3   # our side is shut; what still comes is thrown away, until a FIN or linger_deadline()

# States of an exchange. exchange_set_state() is the only writer.
cdef enum:
    STATE_HEAD = 0      # waits for the request head; ended by the head, its time-out, a client that left
    STATE_MODEL = 1     # waits for the body to name the model; ended by it, its time-out, a client that left
    STATE_ROUTE = 2     # a backend is to be chosen; never waits
    STATE_QUEUE = 3     # waits for a place at a backend; ended by one, its deadline, a client that left
    STATE_CONNECT = 4   # waits for the upstream's connect; ended by it, its error, its time-out, the TTFT time-out
    STATE_WAIT = 5      # sends the request, waits for the response head; ended by it, a failure, a time-out
    STATE_STREAM = 6    # forwards the response body; ended by the framing's end, a failure, a time-out
    STATE_FLUSH = 7     # the response is whole, the upstream released; waits for the client to take the rest
    STATE_TUNNEL = 8    # after a 101: bytes both ways; ended by a FIN or RST of either side, a time-out
    STATE_DETACHED = 9  # the client left a backend that may finish; what that sends is thrown away
    STATE_ENDED = 10    # its pointers may not be used any more; its memory is freed at the end of the turn

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
    PHASE_QUEUE = 9

PHASES = ("head", "body", "connect", "wait", "silent", "stream", "blocked", "tunnel", "finish", "queue")

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
    DISCARD_USAGE = 8           # an event that the proxy has asked for, and not the client (rule Q2)
    DISCARD_COUNT = 9

DISCARDS = (
    "request", "behind_request", "response", "behind_response", "broken_response", "retried_response", "interim_response",
    "tunnel", "usage_event",
)
