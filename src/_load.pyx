# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The load generator: clients and a token source in one thread, without the GIL, on the engine's own parts.

This file is its table of contents and holds every crossing of the GIL. It measures what passes between its source and
its clients; what stands between them, and in which order it is looked at, is decided in llmpipe.bench.

    source.pxi      accepts what the proxy under test connects, reads requests, writes events when they are due
    client.pxi      connects to the proxy, asks, times and checks every event of the answer, leaves when told
    replay.pxi      of both: recordings, sent piece by piece when each is due, and compared
    loop.pxi        one turn: commands, epoll, what is due, what is left over

Rules for every part: `noexcept nogil` on every function; descriptors are touched in `io` only; nothing is allocated
while it measures, but for bytes that a socket did not take.
"""

include "_pipe/sys.pxi"
include "_pipe/rc.pxi"
include "_pipe/outcome.pxi"
include "_pipe/buf.pxi"
include "_pipe/text.pxi"
include "_pipe/head.pxi"
include "_pipe/chunk.pxi"
include "_pipe/body.pxi"
include "_pipe/io.pxi"
include "_pipe/histogram.pxi"
include "_load/plan.pxi"
include "_load/timer.pxi"
include "_load/source.pxi"
include "_load/client.pxi"
include "_load/replay.pxi"
include "_load/loop.pxi"

cdef extern from "<math.h>" nogil:
    double log(double x)

cdef const char *EVENT_BEFORE = (
    b'data: {"id":"bench","object":"chat.completion.chunk","created":1,"model":"bench","choices":[{"index":0,"delta":'
    b'{"content":"')
cdef const char *EVENT_BEHIND = b'"},"finish_reason":null}]}\n\n'

EVENT_SIZE_LEAST = strlen(EVENT_BEFORE) + MARK_LENGTH + strlen(EVENT_BEHIND)
EVENT_SIZE_MOST = 32768
ANSWER_SIZE_MOST = RECV_ROOM - 1024
CHUNK_SIZE_MOST = 16
REPLAY_SIZE_MOST = REPLAY_SIZE
REPLAY_PIECES_MOST = REPLAY_PIECES
REPLAY_PIECE_SIZE_MOST = REPLAY_PIECE_SIZE
REPLAY_STAMPS_MOST = REPLAY_STAMPS

text_init()


cdef int _ranged(str name, value, int64_t low, int64_t high) except -1:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
    return 0


cdef void *_made(size_t n) except NULL:
    cdef void *made = calloc(1, n)
    if made is NULL:
        raise MemoryError
    return made


cdef uint8_t *_copy(bytes text) except NULL:
    cdef uint8_t *copy = <uint8_t *>_made(len(text) + 1)
    memcpy(copy, <const char *>text, len(text))
    return copy


cdef int _make_event(PlanC *plan, size_t size) except -1:
    # The event in its chunk, and the buffers of a flood.
    cdef bytes event = EVENT_BEFORE + b"." * MARK_LENGTH + b"x" * (size - <size_t>EVENT_SIZE_LEAST) + EVENT_BEHIND
    cdef bytes chunk = b"%x\r\n%s\r\n" % (size, event)
    cdef bytes flood = chunk * (FLOOD_ROOM // <int>len(chunk))
    plan.event = _copy(chunk)
    plan.event_length = len(chunk)
    plan.event_start = chunk.index(b"\n") + 1
    plan.event_size = size
    plan.mark = strlen(EVENT_BEFORE)
    plan.flood = _copy(flood)
    plan.flood_length = len(flood)
    plan.flood_text = _copy(event * (RECV_ROOM // <int>size + 3))
    return 0


cdef int _make_tape(TapeC *tape, bytes head, list pieces, int64_t end) except -1:
    # What is sent of a recording, and when: `pieces` are (ns from the request, bytes), `end` is in ns too.
    cdef list text = [head]
    cdef list body = []
    cdef size_t text_end = len(head)
    cdef size_t body_end = 0
    cdef int64_t due = 0
    cdef bytes piece
    cdef bytes chunk
    cdef StepC *step
    _ranged("the pieces of a recording", len(pieces), 0, REPLAY_PIECES)
    step = tape.steps = <StepC *>_made(sizeof(StepC) * <size_t>(len(pieces) + 1))
    for at, piece in pieces:
        _ranged("the length of a piece", len(piece), 1, REPLAY_PIECE_SIZE)
        _ranged("the time of a piece", at, due, 1 << 60)
        due = at
        chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
        text.append(chunk)
        body.append(piece)
        text_end += len(chunk)
        body_end += len(piece)
        step.due = due
        step.text_end = text_end
        step.body_end = body_end
        step += 1
    _ranged("the end of a recording", end, due, 1 << 60)
    text.append(b"0\r\n\r\n")
    step.due = end
    step.text_end = text_end + 5
    step.body_end = body_end
    tape.head_length = len(head)
    tape.text = _copy(b"".join(text))
    tape.body = _copy(b"".join(body))
    tape.body_length = body_end
    tape.count = <uint32_t>len(pieces)
    return 0


cdef int _make_tapes(PlanC *plan, recordings) except -1:
    # The recordings, and each client's places for the times of their pieces. The clients are there.
    cdef size_t size = 0
    cdef size_t most = 1
    cdef int i
    plan.tapes = <TapeC *>_made(sizeof(TapeC) * <size_t>len(recordings))
    for head, pieces, end in recordings:
        plan.tape_count += 1
        _make_tape(&plan.tapes[plan.tape_count - 1], head, list(pieces), end)
        size += plan.tapes[plan.tape_count - 1].body_length
        _ranged("the length of all recordings", size, 0, REPLAY_SIZE)
        most = max(most, <size_t>plan.tapes[plan.tape_count - 1].count)
    _ranged("clients times pieces", plan.client_count * most, 0, REPLAY_STAMPS)
    plan.stamps = <int64_t *>_made(sizeof(int64_t) * (<size_t>plan.client_count * most + 1))
    for i in range(plan.client_count):
        plan.clients[i].stamps = plan.stamps + <size_t>i * most
    return 0


cdef void _free_plan(PlanC *plan) noexcept:
    cdef uint32_t i
    if plan is NULL:
        return
    for i in range(plan.tape_count):
        free(plan.tapes[i].text)
        free(plan.tapes[i].body)
        free(plan.tapes[i].steps)
    free(plan.tapes)
    free(plan.stamps)
    free(plan.clients)
    free(plan.prefix)
    free(plan.suffix)
    free(plan.event)
    free(plan.flood)
    free(plan.flood_text)
    free(plan)


cdef int64_t _bucket_value(size_t at) noexcept:
    # The middle of a bucket.
    cdef uint64_t low = histogram_low(at, TIMES_SUB_BITS)
    return <int64_t>(low + (histogram_low(at + 1, TIMES_SUB_BITS) - low) // 2)


cdef class Load:
    """The generator; see _load.pyi for its contract."""

    cdef LoadC *load
    cdef PlanC *plan
    cdef bint running

    def __cinit__(self):
        self.load = NULL
        self.plan = NULL

    def __init__(self, int listener):
        cdef LoadC *load
        if self.load is not NULL:
            raise RuntimeError("a generator is made once")
        load = self.load = <LoadC *>_made(sizeof(LoadC))
        load.epfd = load.mail.fd = -1
        load.listener.fd = listener
        try:
            load.head = <HeadC *>_made(sizeof(HeadC))
            load.room = <uint8_t *>_made(RECV_ROOM)
            load.scratch = <uint8_t *>_made(RECV_ROOM)
            load.waiting = <int64_t *>_made(sizeof(int64_t) * WAITING_MOST)
            load.heap = <ConnC **>_made(sizeof(ConnC *) * 1024)
            load.heap_room = 1024
            load.sources.size = sizeof(SourceC)
            load.busy_end = &load.busy
            load.random[0] = 0x9E3779B97F4A7C15      # the same load each time
            load.random[1] = 0xD1B54A32D192ED03
            load.epfd = epoll_create1(EPOLL_CLOEXEC)
            if load.epfd < 0:
                raise OSError(errno, strerror(errno).decode())
            load.mail.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            if load.mail.fd < 0:
                raise OSError(errno, strerror(errno).decode())
            load.mail.kind = CONN_MAILBOX
            load.arrival.kind = CONN_ARRIVAL
            load.arrival.fd = -1
            load.listener.kind = CONN_LISTENER
            io_watch(load.epfd, load.mail.fd, &load.mail)
            if listener >= 0:
                io_watch(load.epfd, listener, &load.listener)
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        self.close()

    cdef LoadC *_open(self) except NULL:
        if self.load is NULL:
            raise ValueError("the generator is closed")
        return self.load

    def run(self):
        cdef LoadC *load = self._open()
        cdef int rc
        self.running = True
        try:
            with nogil:
                rc = load_run(load)
            if rc < 0:
                raise OSError(-rc, strerror(-rc).decode())
        finally:
            self.running = False

    def begin(self, plan):
        cdef LoadC *load = self._open()
        cdef PlanC *made
        cdef int i
        host, port = plan.target
        _ranged("port", port, 1, 65535)
        _ranged("clients", plan.clients, 0, 1000000)
        _ranged("disconnecting", plan.disconnecting, 0, 100000)
        _ranged("event_size", plan.event_size, EVENT_SIZE_LEAST, EVENT_SIZE_MOST)
        _ranged("events", plan.events, 0, 1000000)
        _ranged("mode", plan.mode, MODE_EVENTS, MODE_REPLAY)
        _ranged("again", plan.again, AGAIN_NEVER, AGAIN_ARRIVAL)
        if len(plan.prefix) + len(plan.suffix) + 32 > RECV_ROOM:
            raise ValueError(f"the request is longer than {RECV_ROOM} bytes")
        if plan.disconnecting and len(plan.body) < 32:
            raise ValueError("a request's body of 32 bytes or more is needed for clients that leave within it")
        if plan.events and not plan.interval and plan.events * (plan.event_size + CHUNK_SIZE_MOST) > ANSWER_SIZE_MOST:
            raise ValueError(f"an answer in one piece is at most {ANSWER_SIZE_MOST} bytes long")
        if not plan.events and not plan.interval and plan.mode == MODE_EVENTS and plan.marked:
            raise ValueError("events without a pace need an end")
        if (plan.mode == MODE_REPLAY) != (len(plan.recordings) > 0) or (plan.mode == MODE_REPLAY and not plan.marked):
            raise ValueError("a replay has recordings and the generator's own source, and nothing else has recordings")
        _ranged("recordings", len(plan.recordings), 0, 1000000)
        made = <PlanC *>_made(sizeof(PlanC))
        try:
            if io_address(&made.target, host.encode(), port) != RC_OK:
                raise ValueError(f"{host} is not a numeric address")
            made.prefix = _copy(plan.prefix)
            made.prefix_length = len(plan.prefix)
            made.suffix = _copy(plan.suffix)
            made.suffix_length = len(plan.suffix)
            _make_event(made, plan.event_size)
            made.client_count = plan.clients + plan.disconnecting
            made.clients = <ClientC *>_made(sizeof(ClientC) * (made.client_count + 1))
            for i in range(made.client_count):
                made.clients[i].conn.fd = -1
                made.clients[i].conn.kind = CONN_CLIENT
                made.clients[i].mode = plan.mode
                made.clients[i].disconnects = i >= plan.clients
            if plan.mode == MODE_REPLAY:
                _make_tapes(made, plan.recordings)
            made.again = plan.again
            made.mode = plan.mode
            made.events = plan.events
            made.interval = plan.interval
            made.arrival = plan.arrival
            made.timeout = plan.timeout
            made.spread = plan.spread
            made.marked = plan.marked
            if load.plan_given is not NULL:
                raise RuntimeError("the plan before was not abandoned")
        except BaseException:
            _free_plan(made)
            raise
        _free_plan(self.plan)
        self.plan = made
        load.plan_given = made
        self._command(COMMAND_BEGIN)

    cdef void _command(self, uint32_t command):
        # The thread takes one command at a time, and soon: it never waits for long, and wakes for this.
        cdef LoadC *load = self.load
        cdef timespec pause
        pause.tv_sec = 0
        pause.tv_nsec = 100000
        sys_store_release(&load.done, COMMAND_NONE)
        sys_store_release(&load.command, command)
        io_wake_post(load.mail.fd, &load.wake_pending)
        while self.running and sys_load_acquire(&load.done) != command:
            with nogil:
                nanosleep(&pause, NULL)

    @property
    def runs(self):
        return self.running

    def measure(self):
        self._open()
        self._command(COMMAND_MEASURE)

    def halt(self):
        self._open()
        self._command(COMMAND_HALT)

    def finish(self):
        self._open()
        self._command(COMMAND_FINISH)

    def abandon(self):
        cdef LoadC *load = self._open()
        self._command(COMMAND_ABANDON)
        load.plan_given = NULL

    def stop(self):
        self._open()
        self._command(COMMAND_STOP)

    def stats(self):
        cdef PlanC *plan = self.plan
        cdef int i
        self._open()
        if plan is NULL:
            raise ValueError("there is no plan yet")
        return {
            "open": sys_read_counter(&plan.open),
            "flowing": sys_read_counter(&plan.flowing),
            "queued": sys_read_counter(&plan.queued),
            "counts": {name: sys_read_counter(&plan.counts[i]) for i, name in enumerate(COUNTS)},
            "errors": {name: sys_read_counter(&plan.errors[i]) for i, name in enumerate(ERRORS)},
            "status": {i: plan.status[i] for i in range(600) if plan.status[i]},
        }

    def times(self, str name):
        cdef PlanC *plan = self.plan
        cdef TimesC *times
        cdef uint64_t n
        cdef int i
        cdef list found = []
        self._open()
        if plan is NULL:
            raise ValueError("there is no plan yet")
        times = &plan.times[TIMES.index(name)]
        for i in range(TIMES_SIZE):
            n = sys_read_counter(&times.counts[i])
            if n:
                found.append((_bucket_value(i), n))
        return found, sys_read_counter(&times.most)

    def close(self):
        cdef LoadC *load = self.load
        cdef int i
        if load is NULL:
            return
        if self.running:
            raise RuntimeError("the generator runs")
        self.load = NULL
        for i in range(load.client_count):
            if load.clients[i].conn.fd >= 0:
                io_close(load.clients[i].conn.fd)
            carry_free(&load.clients[i].carry)
        while load.all is not NULL:
            source_close(load, load.all)
        slab_free_all(&load.sources)
        if load.epfd >= 0:
            io_close(load.epfd)
        if load.mail.fd >= 0:
            io_close(load.mail.fd)
        free(load.head)
        free(load.room)
        free(load.scratch)
        free(load.waiting)
        free(load.heap)
        free(load)
        _free_plan(self.plan)
        self.plan = NULL
