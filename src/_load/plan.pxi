# plan: what one run of the load generator does, what it counts, and everything that the generator owns.
#
# Times are nanoseconds of CLOCK_MONOTONIC. One thread runs all of it, clients and token source: an event's send time and
# receive time are read from one clock by one thread, and need no agreement between machines.

cdef enum:
    BATCH = 64                      # epoll events a turn; few, so that what is due is not kept waiting
    RECV_ROOM = 262144
    READS_A_TURN = 8                # of one connection
    CATCH_UP = 16                   # events sent in one turn by a generator that is late
    MARK_LENGTH = 35                # "@" stamp "." stream "." number, in hexadecimal digits
    FLOOD_ROOM = 131072
    OPENING_MOST = 64               # connections on their way at once while a run starts
    CARRY_MOST = 1048576            # bytes of a head, or of one event
    SOURCE_HEAD_FIELDS = 256
    WAITING_MOST = 1048576          # arrivals without a client; a power of two
    HELD_EVENTS = 1024              # of one stream that could not be sent yet; a source does not make more

# Nanoseconds.
cdef enum:
    LATE_ALLOWED = 1000000          # a generator later than this sends several events a turn
    RETRY_PAUSE = 10000000          # before a client connects again after an error
    CLOSE_LIMIT = 10000000          # that a client waits for a FIN before it closes by itself
    LEAVE_FIRST = 5000000           # a client that disconnects stays at least this long in its phase ...
    LEAVE_SPAN = 50000000           # ... and at most so much longer
    TOKEN_TIME = 10000              # that a token takes at least where the answer has no byte for it: see client_usage

cdef int64_t LEAVE_LIMIT = 2000000000       # when a close that nobody saw is counted as never seen

# What the source does with a request; the client asks for it, in the field X-Request-ID-Bench.
cdef enum:
    MODE_EVENTS = 0                 # the plan's events at the plan's pace
    MODE_FLOOD = 1                  # events as fast as they are taken
    MODE_SILENT = 2                 # the head, one event, and no more
    MODE_WAIT = 3                   # nothing
    MODE_REPLAY = 4                 # a recording, see replay.pxi

# What a client does when its answer is complete.
cdef enum:
    AGAIN_NEVER = 0
    AGAIN_ASK = 1                   # on the same connection
    AGAIN_CONNECT = 2               # on a new one
    AGAIN_ARRIVAL = 3               # when the next request is due

# Phases in which a client disconnects.
cdef enum:
    LEAVE_BODY = 0                  # half of its request is sent
    LEAVE_WAIT = 1                  # the backend has not answered
    LEAVE_SILENT = 2                # after the first event, no more comes
    LEAVE_STREAM = 3                # between two events
    LEAVE_BLOCKED = 4               # it has not read for a while
    LEAVE_COUNT = 5

LEAVE_PHASES = ("body", "wait", "silent", "stream", "blocked")

cdef enum:
    TIME_LATENCY = 0                # of an event: source's send to client's receipt
    TIME_TTFT = 1                   # request begun, or due, to the first event received
    TIME_JITTER = 2                 # how far a gap between two events differs from the gap at the source
    TIME_ITL = 3                    # gap between two events at the client
    TIME_DURATION = 4               # request begun, or due, to the end of its answer
    TIME_LATE = 5                   # an event's time to be sent to its send: the generator's own doing
    TIME_CLOSE = 6                  # client's close to the source's EOF, for each phase
    TIME_COUNT = 11                 # TIME_CLOSE + LEAVE_COUNT

TIMES = ("latency", "ttft", "jitter", "itl", "duration", "late", *(f"close:{phase}" for phase in LEAVE_PHASES))

cdef enum:
    ERROR_CONNECT = 0               # refused, unreachable
    ERROR_RESET = 1                 # the connection broke
    ERROR_TRUNCATED = 2             # it ended before the answer did
    ERROR_STATUS = 3                # another status than 200
    ERROR_PROTOCOL = 4              # no valid HTTP
    ERROR_TIMEOUT = 5
    ERROR_MEMORY = 6
    ERROR_NEVER = 7                 # a client left and the source was not told in time
    ERROR_UNREACHED = 8             # the request of a client that disconnects never reached the source
    ERROR_DROPPED = 9               # an arrival for which there was no place
    ERROR_NO_ANSWER = 10            # a 200 that holds neither a token nor the end of an answer
    ERROR_ANSWER = 11               # a 200 that holds an error
    ERROR_UNENDED = 12              # an event stream that ended without [DONE] and without a finish_reason
    ERROR_USAGE = 13                # an answer whose number of tokens cannot be true; its events are counted instead
    ERROR_COUNT = 14

ERRORS = (
    "connect", "reset", "truncated", "status", "protocol", "timeout", "memory", "never_closed", "unreached", "dropped",
    "no_answer", "error_answer", "unended", "usage",
)

cdef enum:
    COUNT_EVENTS = 0                # received by clients
    COUNT_BYTES = 1                 # received by clients
    COUNT_ANSWERS = 2               # complete
    COUNT_TOKENS = 3                # as the server's usage says, else events with content
    COUNT_ALONE = 4                 # events that came as a read of their own
    COUNT_MERGED = 5                # events that shared a read
    COUNT_SPLIT = 6                 # events that came in several reads
    COUNT_ALTERED = 7               # events that came with other bytes than were sent
    COUNT_DISORDER = 8              # events out of order, or missing
    COUNT_SENT = 9                  # events sent by the source
    COUNT_BUSY = 10                 # ns that the generator worked, and did not wait
    COUNT_LEFT = 11                 # clients that left
    COUNT_COUNT = 12

COUNTS = (
    "events", "bytes", "answers", "tokens", "alone", "merged", "split", "altered", "out_of_order", "sent", "busy", "left",
)

cdef struct ClientC
cdef struct SourceC
cdef struct TapeC

# Times of one kind, in nanoseconds and in steps of 1/128: percentiles are made in Python from the counts, so that those of several
# rounds are added before and nobody averages percentiles.
cdef enum:
    TIMES_SUB_BITS = 7
    TIMES_SIZE = 4352               # up to 2^40 ns, 18 minutes: octaves 0 to 32 of 128 steps, and 128 more

cdef struct TimesC:
    uint64_t counts[TIMES_SIZE]
    uint64_t most                   # the greatest value, exact

cdef void times_add(TimesC *times, int64_t ns) noexcept nogil:
    cdef uint64_t value = <uint64_t>ns if ns > 0 else 0
    cdef size_t at = histogram_at(value, TIMES_SUB_BITS)
    if value > times.most:
        sys_set_counter(&times.most, value)
    sys_add_counter(&times.counts[at if at < TIMES_SIZE else TIMES_SIZE - 1], 1)

cdef struct PlanC:
    AddressC target
    ClientC *clients
    int client_count                # those that disconnect included
    int again                       # AGAIN_*
    int mode                        # MODE_*
    int events                      # in an answer; 0 is endless
    int64_t interval                # ns between events of an answer; 0 is all at once
    int64_t arrival                 # mean ns between arrivals
    int64_t timeout                 # ns that a request may take; 0 is off
    int64_t spread                  # ns over which clients begin; 0 is all at once
    bint marked                     # the source is ours: requests and events carry marks
    # The request: prefix, mark where marked, suffix with the body.
    uint8_t *prefix
    size_t prefix_length
    uint8_t *suffix
    size_t suffix_length
    # An event as it is sent: chunk head, event, CRLF; the mark stands at `mark`.
    uint8_t *event
    size_t event_length             # with its chunk head
    size_t event_start              # behind the chunk head
    size_t event_size               # without chunk head and CRLF
    size_t mark                     # offset in the event proper
    uint8_t *flood                  # as many events as fit FLOOD_ROOM, chunk heads included
    size_t flood_length
    uint8_t *flood_text             # the same without chunk heads, RECV_ROOM and one event of it
    # Recordings, of a replay.
    TapeC *tapes
    uint32_t tape_count
    int64_t *stamps                 # all clients' places for the times at which the source sent the pieces
    uint64_t errors[ERROR_COUNT]
    uint64_t status[600]            # answers other than 200, by status
    uint64_t flowing                # clients that have had an event of the answer they have now
    uint64_t open                   # clients with a connection
    uint64_t queued                 # arrivals that wait for a client
    # What is counted while `measuring`.
    int64_t since
    uint64_t counts[COUNT_COUNT]
    TimesC times[TIME_COUNT]

# Kinds of a connection beside the engine's CONN_MAILBOX, CONN_CLIENT and CONN_LISTENER.
cdef enum:
    CONN_SOURCE = 4
    CONN_ARRIVAL = 5                # no connection: when the next request of the shape arrivals is due

# What every entry of the epoll set, and of the timers, begins with.
cdef struct ConnC:
    int fd
    uint8_t kind
    bint readable
    bint hung_up
    bint queued                     # in the list of connections with work left
    ConnC *busy_next
    size_t timer                    # its place in the heap; 0 is none
    int64_t due

cdef struct CarryC:
    uint8_t *data
    size_t used
    size_t room

cdef enum:
    REQUEST_NONE = 0                # no connection
    REQUEST_CONNECT = 1
    REQUEST_SEND = 2                # the request is being sent
    REQUEST_HEAD = 3                # the response's head is awaited
    REQUEST_BODY = 4
    REQUEST_IDLE = 5                # a connection without a request
    REQUEST_LEFT = 6                # it has closed and waits for the source to be told
    REQUEST_CLOSING = 7             # it has its answer and waits for the FIN that it asked for

cdef struct ClientC:
    ConnC conn
    uint8_t state                   # REQUEST_*
    uint8_t mode
    uint8_t phase                   # LEAVE_*
    bint disconnects
    bint used                       # its connection carried an answer before
    bint counted                    # in plan.flowing
    bint keep_alive
    bint event_stream
    bint refused                    # its answer has another status than 200
    bint done                       # [DONE] has come
    bint finished                   # a finish_reason has come
    bint failed                     # an error has come inside the answer
    bint spoilt                     # the event in `carry`, or the piece, began in an earlier read
    bint altered                    # bytes of the piece that is coming were others than recorded
    uint32_t request_id             # of its request, unique in the generator's life
    uint32_t number                 # of the event that comes next
    uint32_t asked_bytes            # of the request, sent
    int events_here                 # events in the read being looked at
    int64_t asked
    int64_t first
    int64_t received                # of the last event
    int64_t stamp                   # of the last event
    int64_t left
    int64_t tokens                  # as the server says; -1 where it does not, -2 where nobody can believe it
    int64_t bytes                   # of the answer's content, framing and head excluded
    uint64_t position               # in a flood, or a recording
    int64_t *stamps                 # when the source sent each piece of its answer, a part of plan.stamps
    uint32_t stamped                # of them are known
    BodyC body                      # of the answer
    CarryC carry
    SourceC *source                 # that got its request, where it disconnects
    ClientC *idle_next

cdef struct SourceC:
    ConnC conn
    bint closed
    bint answering
    bint ending                     # nothing comes behind the last event
    bint keep_alive
    bint seen                       # the head of the request is there, and the body is being read
    bint other                      # it is no request for tokens
    bint to_head                    # it is a HEAD request
    uint8_t mode
    uint32_t request_id
    uint32_t number
    int64_t next                    # when the next event is due
    size_t flood_at
    size_t text_at                  # in a recording
    TapeC *tape
    int64_t begun                   # when the request of a replay came
    int64_t freed                   # when its socket last had room again
    bint held                       # a step that was begun is not all sent
    BodyC body                      # of the request
    CarryC inbox
    CarryC out                      # not yet taken by the socket
    ClientC *client                 # that disconnects or is in a replay, and whose request it has
    SourceC *next_parked
    SourceC *all_next
    SourceC **all_back

cdef struct LoadC:
    int epfd
    ConnC mail
    ConnC listener
    ConnC arrival
    uint32_t wake_pending
    uint32_t command                # COMMAND_*, written by the control plane
    uint32_t done                   # the last command that was carried out
    void *plan_given                # PlanC
    PlanC *plan
    bint measuring
    bint finishing
    bint stopping
    bint own_source
    int64_t now
    uint64_t random[2]
    uint32_t request_id
    ClientC *clients
    int client_count
    int opening
    int next_unopened
    ClientC *idle                   # with a connection, for arrivals
    ClientC *spare                  # without one
    int64_t *waiting                # due times of arrivals without a client, a ring
    uint32_t waiting_head
    uint32_t waiting_tail
    SlabC sources
    SourceC *all
    SourceC *parked
    ConnC *busy
    ConnC **busy_end
    ConnC **heap
    size_t heap_count
    size_t heap_room
    HeadC *head
    uint8_t *room                   # RECV_ROOM, for what is received
    uint8_t *scratch                # RECV_ROOM, for what is sent
    epoll_event events[BATCH]

cdef int64_t load_clock() noexcept nogil:
    cdef timespec clock
    clock_gettime(CLOCK_MONOTONIC, &clock)
    return clock.tv_sec * 1000000000 + clock.tv_nsec

cdef uint64_t load_random(LoadC *load) noexcept nogil:
    # xorshift128+ (Vigna, 2017).
    cdef uint64_t a = load.random[0]
    cdef uint64_t b = load.random[1]
    load.random[0] = b
    a ^= a << 23
    a ^= b ^ (a >> 18) ^ (b >> 5)
    load.random[1] = a
    return a + b

cdef int64_t load_random_below(LoadC *load, int64_t bound) noexcept nogil:
    return <int64_t>(load_random(load) % <uint64_t>bound) if bound > 0 else 0

cdef void load_count(LoadC *load, int which, uint64_t n) noexcept nogil:
    if load.measuring:
        sys_add_counter(&load.plan.counts[which], n)

cdef void load_time(LoadC *load, int which, int64_t ns) noexcept nogil:
    if load.measuring:
        times_add(&load.plan.times[which], ns)

cdef void load_error(LoadC *load, int which) noexcept nogil:
    sys_add_counter(&load.plan.errors[which], 1)

cdef void load_queue(LoadC *load, ConnC *conn) noexcept nogil:
    # Has the connection looked at again in the next turn.
    if conn.queued:
        return
    conn.queued = True
    conn.busy_next = NULL
    load.busy_end[0] = conn
    load.busy_end = &conn.busy_next

# ------------------------------------------------------------------------------------------------------- carried bytes

cdef int carry_add(CarryC *carry, const uint8_t *p, size_t n) noexcept nogil:
    # RC_OK, or -ENOMEM where it would be too much.
    cdef size_t room
    cdef uint8_t *grown
    if carry.used + n > carry.room:
        room = (carry.used + n) * 2 if carry.used + n > 512 else 1024
        if room > CARRY_MOST * 2:
            return -ENOMEM
        grown = <uint8_t *>realloc(carry.data, room)
        if grown is NULL:
            return -ENOMEM
        carry.data = grown
        carry.room = room
    memcpy(carry.data + carry.used, p, n)
    carry.used += n
    return RC_OK

cdef void carry_drop(CarryC *carry, size_t n) noexcept nogil:
    carry.used -= n
    if carry.used:
        memmove(carry.data, carry.data + n, carry.used)

cdef void carry_free(CarryC *carry) noexcept nogil:
    free(carry.data)
    carry.data = NULL
    carry.used = carry.room = 0

# --------------------------------------------------------------------------------------------------------------- marks

cdef int mark_number(const uint8_t *p, int digits, uint64_t *value) noexcept nogil:
    cdef int i
    value[0] = 0
    for i in range(digits):
        if not text_class[p[i]] & TEXT_HEX:
            return RC_BAD
        value[0] = value[0] << 4 | text_hex[p[i]]
    return RC_OK

cdef void mark_write(uint8_t *to, int64_t stamp, uint32_t request_id, uint32_t number) noexcept nogil:
    to[0] = c"@"
    text_digits(to + 1, <uint64_t>stamp, 16)
    to[17] = c"."
    text_digits(to + 18, request_id, 8)
    to[26] = c"."
    text_digits(to + 27, number, 8)

cdef int mark_read(const uint8_t *p, int64_t *stamp, uint32_t *request_id, uint32_t *number) noexcept nogil:
    # RC_OK, or RC_BAD where no mark stands at p[0:MARK_LENGTH].
    cdef uint64_t a = 0
    cdef uint64_t b = 0
    cdef uint64_t c = 0
    if (p[0] != c"@" or p[17] != c"." or p[26] != c"." or mark_number(p + 1, 16, &a) != RC_OK
            or mark_number(p + 18, 8, &b) != RC_OK or mark_number(p + 27, 8, &c) != RC_OK):
        return RC_BAD
    stamp[0] = <int64_t>a
    request_id[0] = <uint32_t>b
    number[0] = <uint32_t>c
    return RC_OK
