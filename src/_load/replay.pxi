# replay: the token source plays recordings back, and the client knows of each byte which one must come.
#
# A recording lies ready as it is sent: the head, a chunk for each piece, the last chunk. Each step sends a slice of that when it is
# due, and what a socket does not take stays where it is. Request k plays recording k % n: source and client both know k.

cdef enum:
    REPLAY_SIZE = 16777216          # bytes of all recordings together, at most
    REPLAY_PIECES = 100000          # of one recording, at most
    REPLAY_PIECE_SIZE = 524288      # bytes of a piece at most: the rest of one that an end cuts is carried
    REPLAY_STAMPS = 33554432        # pieces of the longest recording for all clients together: 256 MB

cdef struct StepC:
    int64_t due                     # ns from the request
    size_t text_end                 # where it ends in `text`
    size_t body_end                 # where its piece ends in `body`

cdef struct TapeC:
    uint8_t *text                   # as it is sent
    size_t head_length              # of `text`
    uint8_t *body                   # without its framing
    size_t body_length
    uint32_t count                  # pieces
    StepC *steps                    # each piece, and the end

cdef TapeC *replay_tape(PlanC *plan, uint32_t request_id) noexcept nogil:
    return &plan.tapes[request_id % plan.tape_count]

# ---------------------------------------------------------------------------------------------------------- the source

cdef void replay_begin(LoadC *load, SourceC *source) noexcept nogil:
    # A request has come; its recording begins.
    source.tape = replay_tape(load.plan, source.request_id)
    source.begun = load_clock()
    source.freed = 0
    source.held = False
    if load.finishing:
        source_end(load, source)        # it was on its way when the round ended
    else:
        replay_await(load, source)

cdef void replay_await(LoadC *load, SourceC *source) noexcept nogil:
    source.next = source.begun + source.tape.steps[source.number].due
    timer_set(load, &source.conn, source.next)

cdef void replay_due(LoadC *load, SourceC *source) noexcept nogil:
    # The next step is due. A piece that had to wait for the socket keeps the time at which it was due: that it is late is the
    # target's doing, and no error of the replay.
    cdef int64_t stamp = source.next
    cdef ClientC *client = source.client
    if source.number < source.tape.count:
        if stamp >= source.freed:
            stamp = load_clock()
            load_time(load, TIME_LATE, stamp - source.next)
        load_count(load, COUNT_SENT, 1)
        if client is not NULL and client.request_id == source.request_id:
            client.stamps[source.number] = stamp
            client.stamped = source.number + 1
    source.number += 1
    replay_send(load, source)

cdef void replay_send(LoadC *load, SourceC *source) noexcept nogil:
    # Sends the step that was begun last, or what is left of it, and waits for the next one.
    cdef size_t end = source.tape.steps[source.number - 1].text_end
    cdef ssize_t took = 0
    if not source.out.used:
        took = io_send(source.conn.fd, source.tape.text + source.text_at, end - source.text_at)
        if took == -EAGAIN:
            took = 0
        if took < 0:
            source_gone(load, source)
            return
    source.text_at += <size_t>took
    source.held = source.text_at < end
    if source.held:
        return
    if source.number > source.tape.count:
        source_finished(load, source)
    else:
        replay_await(load, source)

cdef void replay_ready(LoadC *load, SourceC *source) noexcept nogil:
    # The socket has room again.
    source.freed = load_clock()
    replay_send(load, source)

cdef int replay_end(LoadC *load, SourceC *source) noexcept nogil:
    # Ends an answer early and well: with the rest of what was begun, or with the head where nothing was. RC_OK or RC_BAD.
    cdef size_t end = source.tape.steps[source.number - 1].text_end if source.number else source.tape.head_length
    cdef const char *last = b"0\r\n\r\n"
    source.held = False
    if source_send(load, source, source.tape.text + source.text_at, end - source.text_at) != RC_OK:
        return RC_BAD
    if source.number > source.tape.count:
        return RC_OK        # it was the end already
    return source_send(load, source, <const uint8_t *>last, strlen(last))

# ---------------------------------------------------------------------------------------------------------- the client

cdef bint replay_within(LoadC *load, ClientC *client) noexcept nogil:
    # Whether a part of a piece has come, and not all of it.
    cdef TapeC *tape = replay_tape(load.plan, client.request_id)
    return client.position > (tape.steps[client.number - 1].body_end if client.number else 0)

cdef void replay_arrived(LoadC *load, ClientC *client, int64_t now) noexcept nogil:
    # The last byte of a piece has come.
    client_time_event(load, client, now, client.stamps[client.number] if client.number < client.stamped else 0)
    if client.spoilt:
        client.spoilt = False
        load_count(load, COUNT_SPLIT, 1)
    if client.altered:
        client.altered = False
        load_count(load, COUNT_ALTERED, 1)
    client.number += 1

cdef void replay_payload(LoadC *load, ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    # Bytes of an answer, without framing: compared with the recording, by position.
    cdef TapeC *tape = replay_tape(load.plan, client.request_id)
    cdef size_t part
    client.bytes += <int64_t>n
    if client.refused:
        return
    while n and client.number < tape.count:
        part = tape.steps[client.number].body_end - <size_t>client.position
        if part > n:
            part = n
        if memcmp(p, tape.body + client.position, part) != 0:
            client.altered = True
        client.position += part
        p += part
        n -= part
        if client.position == tape.steps[client.number].body_end:
            replay_arrived(load, client, now)
    if n:
        # More than was recorded: one fault, however much it is.
        if client.position == tape.body_length:
            load_count(load, COUNT_ALTERED, 1)
        client.position += n

cdef bint replay_missed(LoadC *load, ClientC *client) noexcept nogil:
    # Whether an answer with a clean end lacks something. Those that a round's end cuts do.
    return client.position < replay_tape(load.plan, client.request_id).body_length and not load.finishing
