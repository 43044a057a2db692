# source: the bundled token source, an inference server that does nothing but write events on time.
#
# It reads a request strictly, as the engine does, and answers with an event stream in chunks, one event a chunk, one
# chunk a send. What it does besides is asked for by the client's X-Request-ID-Bench field: its number and its mode.

cdef void source_close(LoadC *load, SourceC *source) noexcept nogil:
    # Closes the descriptor and parks the struct: the same batch of events may name it once more. Between rounds it is reset:
    # thousands of connections that linger for a minute would leave the next target no ports.
    if source.closed:
        return
    source.closed = True
    timer_clear(load, &source.conn)
    if load.plan is NULL:
        io_reset(source.conn.fd)
    else:
        io_close(source.conn.fd)
    if source.client is not NULL:
        source.client.source = NULL
        source.client = NULL
    source.all_back[0] = source.all_next
    if source.all_next is not NULL:
        source.all_next.all_back = source.all_back
    carry_free(&source.inbox)
    carry_free(&source.out)
    source.next_parked = load.parked
    load.parked = source

cdef void source_gone(LoadC *load, SourceC *source) noexcept nogil:
    # A FIN or an RST: what the source was told of a client that left.
    cdef ClientC *client = source.client
    if client is not NULL and client.request_id == source.request_id and client.state == REQUEST_LEFT:
        load_time(load, TIME_CLOSE + client.phase, load_clock() - client.left)
        load_count(load, COUNT_LEFT, 1)
        client.state = REQUEST_NONE
        timer_set(load, &client.conn, load.now + load_random_below(load, RETRY_PAUSE))
    source_close(load, source)

cdef void source_accept(LoadC *load) noexcept nogil:
    cdef SourceC *source
    cdef sockaddr_storage peer
    cdef int fd
    while True:
        fd = io_accept(load.listener.fd, &peer)
        if fd < 0:
            return
        source = <SourceC *>slab_get(&load.sources)
        if source is NULL:
            io_close(fd)
            return
        io_nodelay(fd)          # with Nagle, an event would wait for the ACK of the one before, as no inference server lets it
        source.conn.fd = fd
        source.conn.kind = CONN_SOURCE
        source.all_next = load.all
        source.all_back = &load.all
        if load.all is not NULL:
            load.all.all_back = &source.all_next
        load.all = source
        if io_watch(load.epfd, fd, &source.conn) < 0:
            source_close(load, source)

cdef int source_flush(LoadC *load, SourceC *source) noexcept nogil:
    # RC_OK all taken, RC_AGAIN not yet, RC_BAD the connection is lost.
    cdef ssize_t took
    if not source.out.used:
        return RC_OK
    took = io_send(source.conn.fd, source.out.data, source.out.used)
    if took == -EAGAIN:
        return RC_AGAIN
    if took < 0:
        return RC_BAD
    carry_drop(&source.out, took)
    return RC_AGAIN if source.out.used else RC_OK

cdef int source_send(LoadC *load, SourceC *source, const uint8_t *data, size_t n) noexcept nogil:
    # Sends, and keeps what the socket does not take. RC_OK or RC_BAD.
    cdef ssize_t took = 0
    if not source.out.used:
        took = io_send(source.conn.fd, data, n)
        if took == -EAGAIN:
            took = 0
        if took < 0:
            return RC_BAD
    if <size_t>took < n and carry_add(&source.out, data + took, n - took) != RC_OK:
        return RC_BAD
    return RC_OK

cdef void source_finished(LoadC *load, SourceC *source) noexcept nogil:
    # The answer is written; the connection waits for the next request.
    source.answering = False
    source.seen = False
    source.ending = False
    source.request_id = 0
    if source.client is not NULL:
        source.client.source = NULL
        source.client = NULL
    timer_clear(load, &source.conn)
    if not source.keep_alive:
        io_shut(source.conn.fd)

cdef size_t source_write_event(LoadC *load, SourceC *source, uint8_t *to, int64_t stamp) noexcept nogil:
    # One event with its mark, in a chunk. Its length.
    cdef PlanC *plan = load.plan
    memcpy(to, plan.event, plan.event_length)
    mark_write(to + plan.event_start + plan.mark, stamp, source.request_id, source.number)
    source.number += 1
    return plan.event_length

cdef size_t source_write_end(uint8_t *to) noexcept nogil:
    cdef const char *text = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    memcpy(to, text, strlen(text))
    return strlen(text)

cdef void source_end(LoadC *load, SourceC *source) noexcept nogil:
    # Ends an endless answer well.
    cdef uint8_t end[64]
    cdef size_t n
    if not source.answering or source.ending:
        return
    source.ending = True
    if source.mode == MODE_WAIT:
        source_gone(load, source)
        return
    if source.mode == MODE_REPLAY:
        if replay_end(load, source) != RC_OK:
            source_gone(load, source)
        else:
            source_finished(load, source)
        return
    if source.mode == MODE_FLOOD and source.flood_at % load.plan.event_length:
        # The rest of the event that the last send cut.
        n = load.plan.event_length - source.flood_at % load.plan.event_length
        if source_send(load, source, load.plan.flood + source.flood_at, n) != RC_OK:
            source_gone(load, source)
            return
    n = source_write_end(end)
    if source_send(load, source, end, n) != RC_OK:
        source_gone(load, source)
        return
    source_finished(load, source)

cdef void source_begin(LoadC *load, SourceC *source) noexcept nogil:
    # Answers a request: the head and the first event in one send, and all the rest where there is no pace.
    cdef PlanC *plan = load.plan
    cdef uint8_t *to = load.scratch
    cdef size_t n
    cdef const char *head = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                             b"Transfer-Encoding: chunked\r\n\r\n")
    source.answering = True
    source.number = 0
    source.flood_at = source.text_at = 0
    if source.mode == MODE_WAIT:
        return
    if source.mode == MODE_REPLAY:
        replay_begin(load, source)
        return
    n = strlen(head)
    memcpy(to, head, n)
    if source.mode == MODE_FLOOD:
        if source_send(load, source, to, n) != RC_OK:
            source_gone(load, source)
            return
        load_queue(load, &source.conn)
        return
    source.next = load_clock()
    n += source_write_event(load, source, to + n, source.next)
    if source.mode == MODE_EVENTS and plan.events and not plan.interval:
        while source.number < <uint32_t>plan.events:
            n += source_write_event(load, source, to + n, source.next)
    load_count(load, COUNT_SENT, source.number)
    if source.mode == MODE_EVENTS and plan.events and source.number >= <uint32_t>plan.events:
        n += source_write_end(to + n)
        if source_send(load, source, to, n) != RC_OK:
            source_gone(load, source)
        else:
            source_finished(load, source)
        return
    if source_send(load, source, to, n) != RC_OK:
        source_gone(load, source)
    elif load.finishing:
        source_end(load, source)        # its request was on its way when the round ended
    elif source.mode == MODE_EVENTS:
        # Each stream has a phase of its own, or all would send at once.
        source.next += load_random_below(load, plan.interval) + 1
        timer_set(load, &source.conn, source.next)

cdef void source_due(LoadC *load, SourceC *source) noexcept nogil:
    # Its next event is due. One that the socket cannot take yet keeps the time at which it was due.
    cdef PlanC *plan = load.plan
    cdef uint8_t *room = load.scratch
    cdef size_t n
    cdef int64_t now = load_clock()
    load_time(load, TIME_LATE, now - source.next)
    if source.out.used < HELD_EVENTS * plan.event_length:
        n = source_write_event(load, source, room, source.next if source.out.used else now)
        load_count(load, COUNT_SENT, 1)
        if plan.events and source.number >= <uint32_t>plan.events:
            n += source_write_end(room + n)
            if source_send(load, source, room, n) != RC_OK:
                source_gone(load, source)
            else:
                source_finished(load, source)
            return
        if source_send(load, source, room, n) != RC_OK:
            source_gone(load, source)
            return
    source.next += plan.interval
    timer_set(load, &source.conn, source.next)

cdef void source_flood(LoadC *load, SourceC *source) noexcept nogil:
    # As much as the socket takes, a turn's share of it.
    cdef PlanC *plan = load.plan
    cdef ssize_t took
    cdef int i
    for i in range(READS_A_TURN):
        took = io_send(source.conn.fd, plan.flood + source.flood_at, plan.flood_length - source.flood_at)
        if took == -EAGAIN:
            return
        if took < 0:
            source_gone(load, source)
            return
        source.flood_at += took
        if source.flood_at < plan.flood_length:
            return
        source.flood_at = 0
    load_queue(load, &source.conn)

cdef void source_answer_other(LoadC *load, SourceC *source) noexcept nogil:
    # Health checks and lists of models, which routers ask for before they send anything, and what comes between rounds.
    cdef const char *body = (b'{"object": "list", "status": "ok", "data": [{"id": "bench", "object": "model", "created": 1, '
                             b'"owned_by": "llmpipe", "max_model_len": 32768}]}')
    cdef char text[512]
    cdef int n = snprintf(text, sizeof(text), "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
                          <int>strlen(body))
    if not source.to_head:
        memcpy(text + n, body, strlen(body))
        n += <int>strlen(body)
    source.seen = False
    if source_send(load, source, <uint8_t *>text, n) != RC_OK:
        source_close(load, source)

cdef void source_read_mark(LoadC *load, SourceC *source, HeadC *head) noexcept nogil:
    # X-Request-ID-Bench: client.request_id.mode, in hexadecimal digits. A request without it is answered as the plan says, or
    # with a flood where its path is /flood: that is for clients that are not the generator's own.
    # Routers with a list of fields that may pass let those pass that begin with X-Request-ID.
    cdef FieldC *field
    cdef uint64_t client = 0
    cdef uint64_t request_id = 0
    cdef int i
    source.mode = MODE_FLOOD if head_is(head.target, head.target_length, b"/flood") else <uint8_t>load.plan.mode
    source.request_id = 0
    for i in range(head.count):
        field = &head.fields[i]
        if (text_same(field.line, field.name_length, b"x-request-id-bench") and field.value_length == 19
                and mark_number(field.value, 8, &client) == RC_OK and mark_number(field.value + 9, 8, &request_id) == RC_OK
                and client < <uint64_t>load.client_count and load.clients[client].request_id == request_id):
            # Recordings are all that there is in a replay, and nowhere else.
            if load.plan.mode != MODE_REPLAY and field.value[18] < c"0" + MODE_REPLAY:
                source.mode = <uint8_t>(field.value[18] - c"0")
            source.request_id = <uint32_t>request_id
            if load.clients[client].disconnects:
                source.client = &load.clients[client]
                source.client.source = source
                client_reached(load, source.client)
            elif source.mode == MODE_REPLAY:
                source.client = &load.clients[client]

cdef int source_read_head(LoadC *load, SourceC *source, const uint8_t *data, size_t n, size_t *used) noexcept nogil:
    # RC_OK a head was read, data[0:used]; RC_AGAIN; RC_BAD.
    cdef HeadC *head = load.head
    cdef size_t length = 0
    cdef uint32_t scanned = 0
    cdef int rc = head_scan(data, n, &scanned, &length)
    if rc != RC_DONE:
        return rc if rc == RC_AGAIN else RC_BAD
    if head_read_request(head, data, length, 65536, SOURCE_HEAD_FIELDS) != RC_OK:
        return RC_BAD
    used[0] = length
    source.keep_alive = head.keep_alive
    body_begin(&source.body, head.framing, head.content_length)
    source.seen = True
    source.to_head = head_is(head.method, head.method_length, b"HEAD")
    source.other = load.plan is NULL or not head_is(head.method, head.method_length, b"POST")
    if not source.other:
        source_read_mark(load, source, head)
    return RC_OK

cdef int source_read_body(LoadC *load, SourceC *source, const uint8_t *data, size_t n, size_t *used) noexcept nogil:
    # RC_DONE the body has ended at data[used]; RC_AGAIN; RC_BAD.
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef int rc = RC_OK
    while rc == RC_OK:
        rc = body_follow(&source.body, data, n, used, &piece, &length)
    return rc

cdef void source_bytes(LoadC *load, SourceC *source, const uint8_t *data, size_t n) noexcept nogil:
    # What a client, or the proxy between, has sent.
    cdef size_t used
    cdef int rc
    if source.inbox.used:
        if carry_add(&source.inbox, data, n) != RC_OK:
            source_close(load, source)
            return
        data = source.inbox.data
        n = source.inbox.used
    while n and not source.answering and not source.closed:
        used = 0
        rc = RC_OK
        if not source.seen:
            rc = source_read_head(load, source, data, n, &used)
        if rc == RC_OK:
            rc = source_read_body(load, source, data, n, &used)
            if rc == RC_DONE and (source.other or load.plan is NULL):
                source_answer_other(load, source)
            elif rc == RC_DONE:
                source_begin(load, source)
        if rc == RC_BAD:
            source_close(load, source)
        if rc == RC_AGAIN and not used:
            break
        data += used
        n -= used
    if source.closed:
        return
    if source.inbox.used:
        carry_drop(&source.inbox, source.inbox.used - n)
    elif n and carry_add(&source.inbox, data, n) != RC_OK:
        source_close(load, source)

cdef void source_ready(LoadC *load, SourceC *source, bint writable) noexcept nogil:
    cdef ssize_t got
    cdef int rc
    while source.conn.readable:
        # Read even while it answers: the next request, or the end.
        got = io_recv_into(source.conn.fd, load.room, RECV_ROOM)
        if got == -EAGAIN:
            source.conn.readable = False
            break
        if got <= 0:
            source_gone(load, source)
            return
        if got < RECV_ROOM and not source.conn.hung_up:
            source.conn.readable = False
        source_bytes(load, source, load.room, got)
        if source.closed:
            return
    if source.out.used and writable:
        rc = source_flush(load, source)
        if rc == RC_BAD:
            source_gone(load, source)
            return
    if source.answering and source.mode == MODE_FLOOD and not source.ending and not source.out.used:
        source_flood(load, source)
    elif source.answering and source.held and writable and not source.out.used:
        replay_ready(load, source)
