# trace: what a run did with its backends, written down as it happens, and the rules that are seen in it at once.
#
# Sixteen servers stand behind the addresses of the routing tables. A note tells of a server that changed, of a new table, of a
# connect, of a request that began to reach a server or that reached it whole. tests/liveness.py reads the notes when the
# run is over; what must never happen (a request sent a third time, one sent to a peer that is not in the table) fails
# here, in the turn in which it did.

cdef enum:
    MOST_SERIALS = 4096         # requests with a number of their own
    LATE = 100000               # us that a timer of the engine may come late: its wheel turns by 16 ms

# Kinds of notes; NOTES has their names.
cdef enum:
    NOTE_CONNECTS = 0           # connects to server `who` end as `n` says from now on, CONNECT_*
    NOTE_ANSWERS = 1            # it answers every whole request, well (1) or not (0)
    NOTE_SPOILT = 2             # something of it was told to misbehave
    NOTE_TABLE = 3              # a new table, with the servers of the mask `n`; `who` backends
    NOTE_ROUTE = 4              # behind it: backend `who` has the servers of the mask `n`; the next bit: in the other order
    NOTE_CONNECT = 5            # a connect to server `who` begins, for the exchange `n`, or for one of several or none (-1)
    NOTE_BEGUN = 6              # the first line of request `n` has reached server `who`
    NOTE_SENT = 7               # all of it has

NOTES = ("connects", "answers", "spoilt", "table", "route", "connect", "begun", "sent")

cdef struct NoteC:
    int64_t at                  # us
    int kind
    int who
    int n
    int place                   # in sim.ends, of an upstream
    size_t taken                # bytes that the engine had taken from it
    size_t answer               # of a request that was sent whole: those taken before its first line, behind which its answer is

cdef struct TraceC:
    sim_bytes notes             # NoteC
    size_t parsed[512]          # bytes of an upstream's `told` that were whole requests; SIM_ENDS of them
    size_t looked[512]          # its length when it was looked at last
    bint begun[512]             # the request behind `parsed` has its note
    int said_in[MOST_SERIALS]   # the place of the note of the table that was in force when a request was said
    int table                   # of the last one
    int settled                 # notes behind which every exchange has that table: at once it is not taken
    int settled_table           # for which that is so

cdef TraceC trace

cdef int trace_count() noexcept nogil:
    return <int>(trace.notes.n // sizeof(NoteC))

cdef NoteC *trace_note(int i) noexcept nogil:
    return <NoteC *>trace.notes.data + i

cdef void trace_add(int kind, int who, int n, int place) noexcept nogil:
    cdef NoteC note
    cdef int i
    note.at = sim.now
    note.kind = kind
    note.who = who
    note.n = n
    note.place = place
    note.taken = note.answer = sim.ends[place].taken if place >= 0 else 0
    for i in range(trace_count() if kind == NOTE_SENT else 0):
        if trace_note(i).kind == NOTE_BEGUN and trace_note(i).place == place and trace_note(i).n == n:
            note.answer = trace_note(i).taken
    sim_append(&trace.notes, &note, sizeof(note))

cdef void trace_clear() noexcept nogil:
    world_free(&trace.notes)
    memset(&trace, 0, sizeof(trace))
    sim.connects = trace_connect

cdef void trace_spoil(sim_end *end) noexcept nogil:
    # The script does something by hand to an upstream.
    trace_add(NOTE_SPOILT, end.port % SERVERS, 0, -1)

cdef void trace_said(uint32_t serial) noexcept nogil:
    if serial < MOST_SERIALS:
        trace.said_in[serial] = trace.table

cdef int64_t trace_exchange() noexcept nogil:
    # The number of the exchange that is live, where only one is; else -1.
    cdef int64_t live = 0
    cdef int64_t ended = 0
    cdef int i
    cdef int outcome
    for i in range(world.worker_count):
        live += world.workers[i].exchange_count
        for outcome in range(OUTCOME_COUNT):
            ended += world.workers[i].stats.outcomes[outcome]
    return ended if live == 1 else -1

cdef void trace_connect(const sim_end *end) noexcept nogil:
    # A connect begins. An exchange tries each address of a table once: one that did not connect is not tried again, unless the
    # exchange waits for a backend that is up.
    cdef int exchange = -1 if world.probing else <int>trace_exchange()
    cdef NoteC *note
    cdef int i
    for i in range(trace.settled if trace.settled_table == trace.table else trace_count(), trace_count()):
        note = trace_note(i)
        if (exchange >= 0 and not world.worker.limits.cold_timeout and note.kind == NOTE_CONNECT and note.n == exchange
                and note.who == end.port % SERVERS and not sim.ends[note.place].connected):
            sim_fail("an address that could not be connected is tried again", "server", note.who)
    trace_add(NOTE_CONNECT, end.port % SERVERS, exchange, <int>(end - sim.ends))

cdef bint trace_serial(const uint8_t *data, size_t n, uint32_t *serial) noexcept nogil:
    # The number in a request's first line. False where the line is not whole, or has none: then 0.
    cdef const uint8_t *line_end = <const uint8_t *>memchr(data, c"\n", n)
    cdef const uint8_t *found
    cdef int i
    serial[0] = 0
    if line_end is NULL:
        return False
    found = <const uint8_t *>memmem(data, line_end - data, b"/q-", 3)
    if found is not NULL and line_end - found > 7:
        for i in range(3, 7):
            serial[0] = serial[0] * 16 + (found[i] - c"0" if found[i] <= c"9" else found[i] - c"a" + 10)
    return True

cdef bint trace_in_table(uint32_t serial, int server) noexcept nogil:
    # Whether a server is in the table that was in force when a request was said, or in a later one: an exchange may
    # begin later than its first byte was sent, and may be tried again later.
    cdef NoteC *note
    cdef int i
    if serial >= MOST_SERIALS:
        return True
    for i in range(trace.said_in[serial], trace_count()):
        note = trace_note(i)
        if note.kind == NOTE_TABLE and (note.n >> server) & 1:
            return True
    return False

cdef bint trace_may_retry(const NoteC *note, const WorkerC *w) noexcept nogil:
    # Whether the answer that came to a request allows another try: not a byte of it, or a whole head with a status that is
    # named for that, or one of an event stream that waited for its first event (how that began is rule N1's, and test_failover's).
    cdef const sim_end *end = &sim.ends[note.place]
    cdef const uint8_t *data = end.rx.data + note.answer
    cdef size_t n = end.taken - note.answer
    cdef size_t length = 0
    cdef uint32_t scanned
    while n:
        scanned = 0
        if head_scan(data, n, &scanned, &length) != RC_DONE or head_read_response(
                &answer_head, data, length, HEAD_MAX_FIELDS, False) != RC_OK:
            return False
        if answer_head.status >= 200:
            return (w.limits.holds_event_streams and answer_head.event_stream and answer_head.status < 300) or (
                answer_head.status == 429 and w.limits.retry_429) or (
                answer_head.status == 502 and w.limits.retry_502) or (
                answer_head.status == 503 and w.limits.retry_503)
        data += length
        n -= length
        if n == 0:
            return False
    return True

cdef void trace_sent(int place, uint32_t serial) noexcept nogil:
    # A request is whole at a server (rule E1).
    cdef int64_t first = 0
    cdef int times = 0
    cdef NoteC *note
    cdef int i
    for i in range(trace_count()):
        note = trace_note(i)
        if note.kind != NOTE_SENT or note.n != <int>serial:
            continue
        if not first:
            first = note.at
        # A server that said at once that it will not is none that the request may have killed.
        times += sim.ends[note.place].taken == note.taken
        if not trace_may_retry(note, world.worker):
            sim_fail("sent again, after a byte of an answer came", "request", serial)
    if times >= 2:
        sim_fail("sent whole more than twice", "request", serial)
    if first and world.worker.limits.ttft_timeout and sim.now > first + world.worker.limits.ttft_timeout + LATE:
        sim_fail("sent again, after the time for a first token was over", "request", serial)
    trace_add(NOTE_SENT, sim.ends[place].port % SERVERS, <int>serial, place)

cdef bint trace_is_taken() noexcept nogil:
    # Whether every attempt has its worker's table: one that connects keeps the older one that it began with, and starts again with the
    # new one where it fails.
    cdef ConnC *conn
    cdef int i
    for i in range(world.worker_count):
        conn = world.workers[i].all
        while conn is not NULL:
            if conn.exchange is not NULL and conn.exchange.table is not world.workers[i].table:
                return False
            conn = conn.all_next
    return True

cdef void trace_requests() noexcept nogil:
    # The engine sleeps: what has come to the servers since it last did?
    cdef sim_end *end
    cdef size_t used
    cdef uint32_t serial
    cdef size_t n
    cdef const uint8_t *data
    cdef int i
    for i in range(sim.count):
        end = &sim.ends[i]
        if end.kind != END_UPSTREAM or end.told.n == trace.looked[i]:
            continue
        trace.looked[i] = end.told.n
        if end.rx.n >= 12 and memmem(end.rx.data, end.rx.n, b"HTTP/1.1 101 ", 13) is not NULL:
            continue            # a tunnel: what goes up is no request
        while trace.parsed[i] < end.told.n:
            data = end.told.data + trace.parsed[i]
            n = end.told.n - trace.parsed[i]
            if not trace_serial(data, n, &serial):
                break
            if serial and not trace.begun[i]:
                trace.begun[i] = True
                trace_add(NOTE_BEGUN, end.port % SERVERS, <int>serial, i)
                if not trace_in_table(serial, end.port % SERVERS):
                    sim_fail("sent to a peer that is not in the table", "request", serial)
            used = 0
            if not world_request_whole(data, n, &used):
                break
            if serial:
                trace_sent(i, serial)
            trace.parsed[i] += used
            trace.begun[i] = False
    if trace.settled_table != trace.table and trace_is_taken():
        trace.settled_table = trace.table
        trace.settled = trace_count()

cdef void trace_check_idle(WorkerC *w) noexcept nogil:
    # An idle upstream leads to a peer of the table; one that lingers takes no request.
    cdef int mask = trace_note(trace.table).n if trace.notes.n else 0
    cdef ConnC *conn = w.all
    while conn is not NULL:
        if conn.kind == CONN_UPSTREAM and conn.exchange is NULL and not (<UpstreamC *>conn).lingers and not (
                mask >> (sim.ends[conn.fd - SIM_FIRST].port % SERVERS)) & 1:
            sim_fail("idle, and its peer is not in the table", "upstream", conn.fd)
        conn = conn.all_next

cdef list trace_list():
    cdef NoteC *note
    cdef int i
    cdef list notes = []
    for i in range(trace_count()):
        note = trace_note(i)
        # Whether bytes came back, once some of the request was there; they may have been no answer to it.
        notes.append((note.at, NOTES[note.kind], note.who, note.n,
                      note.kind in (NOTE_BEGUN, NOTE_SENT) and sim.ends[note.place].rx.n > note.taken))
    return notes
