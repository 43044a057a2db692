# conn: the structs of a connection and of an exchange, with the unit or the owner of each field.
#
# A client connection lives from adopt to close; an upstream from connect to close, through many exchanges; an exchange
# from the first byte of a request to its outcome. Times are microseconds of CLOCK_MONOTONIC, 0 for not yet.

cdef enum:
    ADDRESS_ROOM = 46       # text of an IPv6 address, and its NUL
    METHOD_ROOM = 16        # longer ones are cut in the log
    PATH_ROOM = 96          # the same
    REQUEST_ID_ROOM = 64    # a longer X-Request-ID is replaced
    MAX_BACKENDS = 128
    MAX_BACKEND_WORDS = 2   # MAX_BACKENDS / 64
    MAX_ADDRESSES = 8
    AUTHORITY_ROOM = 264    # a host name, a colon and a port

cdef struct ExchangeC
cdef struct UpstreamC
cdef struct ClientC
cdef struct QuotaC
cdef struct BackendC

# What both kinds of connection begin with; epoll hands its address back.
cdef struct ConnC:
    int fd
    uint8_t side            # SIDE_*
    uint8_t closed          # parked: its descriptor is closed, its memory is freed at the end of the turn
    uint8_t readable        # epoll said so, and no recv has come back short since
    uint8_t hung_up         # FIN or RST seen
    uint8_t failed          # an error waits in the socket: mostly an RST
    uint8_t to_end          # a short recv does not say that nothing is left: hung up, or an urgent byte cuts a recv short
    uint8_t queued          # in the list of connections that have work left
    uint32_t slot           # of the timer wheel, where armed
    int64_t due             # when the wheel looks at it, 0 where not armed
    ConnC *timer_next
    ConnC **timer_back      # what points to this one
    ConnC *busy_next        # in the list of connections with work left
    ConnC *all_next         # in the list of all connections, or of the parked ones
    ConnC **all_back
    ExchangeC *exchange     # borrowed

# Bytes that were received and not yet read: a head in parts, or a request behind the one that is being answered. In the
# usual case a head comes whole, into the worker's hot buffer, and an inbox holds nothing.
cdef struct InboxC:
    BufC *buf
    uint8_t *wide           # instead of `buf`, for a head longer than a buffer: wide_size() bytes
    uint32_t wide_used
    uint32_t scanned        # bytes in which head_scan found no end

# What a client that lingers still sends. Few do at a time, and streams would have to carry it: so it is no part of ClientC.
cdef struct LingerC:
    int64_t heard           # when the last byte came
    int64_t left            # bytes of a Content-Length body still to come
    ChunkC chunk
    uint8_t framing         # FRAMING_*; FRAMING_NONE behind the end of the request
    uint8_t reason          # DISCARD_*
    uint8_t closes          # the client said that it sends no further request

cdef struct ClientC:
    ConnC conn
    InboxC inbox
    uint8_t state           # CLIENT_*
    uint8_t patient         # the kernel must not end it for taking nothing: the send time-out is there for that
    uint8_t trusted         # what it tells of the hops before it is believed
    uint16_t refusal        # status that its request is refused with, because there are too many clients; else 0
    int64_t since           # start of the idle time or the linger
    LingerC *linger         # what still comes, while it lingers; else NULL
    ClientC *quiet_next     # in the list of those without an exchange, the longest first
    ClientC **quiet_back    # what points to this one, NULL where not in it
    char address[ADDRESS_ROOM]
    QuotaC *quota           # that it counts in; NULL where no limit on addresses is set

cdef struct UpstreamC:
    ConnC conn
    InboxC inbox
    int backend             # slot
    uint8_t reused          # carried an exchange before the one it has
    uint8_t keep_alive      # may be used again after this response
    uint8_t address         # index in its route's addresses
    uint8_t orphan          # that address is in the table no more: it goes when its exchange has ended
    uint8_t lingers         # its tunnel has ended and our side is shut; what still comes is thrown away, in a client's place
    uint8_t reset           # must end with an RST
    uint8_t full            # the backlog that it connects to was full: it tries again
    uint32_t taken          # turn in which the exchange it has took it out of the pool
    int64_t since           # start of the connect, of the idle time or of the linger
    int64_t heard           # while it lingers: when the last byte came
    QuotaC *quota           # while it lingers: of the client whose place it has, or NULL
    UpstreamC *idle_next
    UpstreamC **idle_back   # what points to this one in its backend's idle list, NULL where not idle

cdef struct ExchangeC:
    ClientC *client         # NULL once it left a backend that must finish
    UpstreamC *upstream     # NULL before the connect and after the response's end
    uint8_t state           # STATE_*, written by exchange_set_state() only
    uint8_t outcome         # OUTCOME_*, where it was decided before the end
    uint8_t framing_up      # FRAMING_* of the request
    uint8_t framing_down    # FRAMING_* of the response
    uint8_t up_done         # the whole request was received from the client
    uint8_t up_broken       # the upstream takes no more of the request; its answer may still come
    uint8_t forwarded       # a byte of a final response was sent to the client
    uint8_t content         # a byte of the body that is not an SSE comment was forwarded
    uint8_t to_head         # the method is HEAD
    uint8_t minor           # of the client's HTTP version
    uint8_t client_keeps    # the client may use its connection again
    uint8_t client_closes   # it said that it will not
    uint8_t upgrade         # the client asked for a 101
    uint8_t dechunk         # a chunked response for an HTTP/1.0 client
    uint8_t event_stream
    uint8_t sse             # SSE_*
    uint8_t answered        # a byte of an answer came; then the request is not sent again
    uint8_t unanswered      # times that a backend took some of the request and ended without a byte
    uint8_t no_host         # the request came without a Host
    uint8_t address         # index of the one that is tried
    uint8_t attempts        # upstreams used
    uint8_t addresses_tried  # of the current backend, in this attempt; from 0 again where a new table came
    uint8_t skipped_line    # the empty line that may stand before a request was seen
    uint8_t reset           # the client's connection must end with an RST
    uint8_t deaf            # the client takes no more, but what it sent before is still to be read (tunnels)
    uint8_t reason          # REASON_* of the last failure
    ExchangeC *ended_next   # in the list of those that ended in this turn
    BackendC *counted       # that counts it as in flight, or NULL
    QuotaC *quota           # of a client that left a backend that must finish: its place is taken until the end
    BufC *host              # the client's own Host, where a backend was given another
    uint32_t head_length    # of the request, as it stands in `up`
    uint32_t tables         # as in WorkerC, when the attempt began
    uint32_t kept           # bytes that count in the process's budget of what is kept
    int backend             # slot, -1 before the choice
    int status              # sent to the client, 0 for none
    int error               # errno that ended it
    uint64_t tried[MAX_BACKEND_WORDS]
    HostC origin            # the client that a trusted peer speaks for, where it names one
    int64_t up_left         # bytes of a Content-Length body still to be received
    int64_t down_left
    int64_t up_body         # body bytes so far, for the limit
    ChunkC up_chunk
    ChunkC down_chunk
    ChainC up               # for the upstream
    ChainC down             # for the client
    int64_t begun           # first byte of the request
    int64_t asked           # the head was complete: start of the TTFT that is shown
    int64_t whole           # the request was complete: start of the TTFT limit, one for all attempts
    int64_t first           # first content byte was forwarded
    int64_t waited          # since when the wait for the upstream's answer counts; in a tunnel, for a byte of either side
    int64_t moved           # a byte of the request last came, or was last taken by the upstream; in a tunnel only the latter
    int64_t taken           # the client last took bytes
    int64_t left            # the client left
    int64_t bytes_up        # received from the client
    int64_t bytes_down      # sent to the client
    uint8_t request_id_length
    uint8_t method_length
    uint8_t path_length
    uint8_t request_id[REQUEST_ID_ROOM]
    uint8_t method[METHOD_ROOM]
    uint8_t path[PATH_ROOM]

cdef char NO_ADDRESS[ADDRESS_ROOM]      # of a client that is gone
