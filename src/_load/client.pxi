# client: connects, asks, reads the answer, checks every byte of it, and leaves when it is told to.

cdef void client_again(LoadC *load, ClientC *client, int64_t after) noexcept nogil:
    # Begins anew, from the timers.
    client.state = REQUEST_NONE
    if not load.finishing:
        timer_set(load, &client.conn, load.now + after)

cdef bint client_take_waiting(LoadC *load, ClientC *client) noexcept nogil:
    # Gives the client the arrival that has waited longest, if one waits. It began when it was due.
    if load.waiting_head == load.waiting_tail:
        return False
    client.asked = load.waiting[load.waiting_head & (WAITING_MOST - 1)]
    load.waiting_head += 1
    return True

cdef void client_shut(LoadC *load, ClientC *client, bint reset) noexcept nogil:
    # Closes the connection, whatever is going on on it.
    if client.state == REQUEST_NONE or client.state == REQUEST_LEFT:
        return
    if client.state < REQUEST_HEAD:
        load.opening -= 1
    timer_clear(load, &client.conn)
    if reset:
        io_reset(client.conn.fd)
    else:
        io_close(client.conn.fd)
    client.conn.fd = -1
    client.state = REQUEST_NONE
    client.carry.used = 0
    sys_add_counter(&load.plan.open, <uint64_t>-1)
    if client.counted:
        client.counted = False
        sys_add_counter(&load.plan.flowing, <uint64_t>-1)

cdef void client_failed(LoadC *load, ClientC *client, int error) noexcept nogil:
    load_error(load, error)
    client_shut(load, client, True)
    client_again(load, client, RETRY_PAUSE)

cdef void client_send(LoadC *load, ClientC *client) noexcept nogil:
    # Sends the request, or what is left of it.
    cdef PlanC *plan = load.plan
    cdef uint8_t *to = load.scratch
    cdef size_t n = plan.prefix_length
    cdef ssize_t took
    memcpy(to, plan.prefix, n)
    if plan.marked:
        text_digits(to + n, <uint64_t>(client - load.clients), 8)
        to[n + 8] = c"."
        text_digits(to + n + 9, client.request_id, 8)
        to[n + 17] = c"."
        to[n + 18] = <uint8_t>(c"0" + client.mode)
        n += 19
    memcpy(to + n, plan.suffix, plan.suffix_length)
    n += plan.suffix_length
    if client.disconnects and client.phase == LEAVE_BODY:
        n -= 16     # the request's body is longer than that, and never comes whole
    took = io_send(client.conn.fd, to + client.asked_bytes, n - client.asked_bytes)
    if took == -EAGAIN:
        return
    if took < 0:
        client_failed(load, client, ERROR_RESET)
        return
    client.asked_bytes += <uint32_t>took
    if client.asked_bytes == n:
        client.state = REQUEST_HEAD
        load.opening -= 1

cdef void client_ask(LoadC *load, ClientC *client) noexcept nogil:
    # A new request on an open connection. `asked` is set: when it was due.
    load.request_id += 1
    client.request_id = load.request_id
    client.number = 0
    client.asked_bytes = 0
    client.first = 0
    client.received = 0
    client.tokens = -1
    client.position = 0
    client.stamped = 0
    client.carry.used = 0
    client.spoilt = False
    client.altered = False
    client.refused = False
    client.done = False
    client.finished = False
    client.failed = False
    client.bytes = 0
    client.state = REQUEST_SEND
    load.opening += 1
    client_send(load, client)

cdef void client_connect(LoadC *load, ClientC *client) noexcept nogil:
    cdef int fd = -1
    cdef int rc = io_connect(&load.plan.target, &fd)
    if rc < 0:
        load_error(load, ERROR_CONNECT)
        client_again(load, client, RETRY_PAUSE)
        return
    client.conn.fd = fd
    client.conn.readable = False
    client.conn.hung_up = False
    client.used = False
    client.state = REQUEST_CONNECT
    load.opening += 1
    sys_add_counter(&load.plan.open, 1)
    if io_watch(load.epfd, fd, &client.conn) < 0:
        client_failed(load, client, ERROR_CONNECT)

cdef void client_start(LoadC *load, ClientC *client) noexcept nogil:
    # A client without a connection begins; one that disconnects chooses where it will leave.
    if client.disconnects:
        client.phase = <uint8_t>load_random_below(load, LEAVE_COUNT)
        client.mode = MODE_EVENTS
        if client.phase == LEAVE_BODY or client.phase == LEAVE_WAIT:
            client.mode = MODE_WAIT
        elif client.phase == LEAVE_SILENT:
            client.mode = MODE_SILENT
        elif client.phase == LEAVE_BLOCKED:
            client.mode = MODE_FLOOD
        client.source = NULL
    client.asked = load_clock()
    client_connect(load, client)
    if client.disconnects and client.state == REQUEST_CONNECT:
        timer_set(load, &client.conn, load.now + LEAVE_LIMIT)

cdef void client_reached(LoadC *load, ClientC *client) noexcept nogil:
    # The source has the request of a client that disconnects: it will leave soon, at a random moment.
    if client.state != REQUEST_NONE and client.state != REQUEST_LEFT:
        timer_set(load, &client.conn, load.now + LEAVE_FIRST + load_random_below(load, LEAVE_SPAN))

cdef void client_leave(LoadC *load, ClientC *client) noexcept nogil:
    # Its time to leave has come: with a FIN or an RST, half of each.
    cdef bint reset = load_random(load) >> 63
    if client.source is NULL or client.source.request_id != client.request_id:
        client_failed(load, client, ERROR_UNREACHED)
        return
    client.left = load_clock()
    client_shut(load, client, reset)
    client.state = REQUEST_LEFT
    timer_set(load, &client.conn, load.now + LEAVE_LIMIT)

cdef void client_unseen(LoadC *load, ClientC *client) noexcept nogil:
    # It left long ago and the source was never told.
    load_error(load, ERROR_NEVER)
    client.state = REQUEST_NONE
    if client.source is not NULL and client.source.request_id == client.request_id:
        source_close(load, client.source)
    client_again(load, client, 0)

cdef void client_due(LoadC *load, ClientC *client) noexcept nogil:
    # The timers came to it.
    if load.finishing and (client.state == REQUEST_NONE or client.state == REQUEST_LEFT):
        client.state = REQUEST_NONE
    elif client.state == REQUEST_LEFT:
        client_unseen(load, client)
    elif client.state == REQUEST_NONE and load.plan.again == AGAIN_ARRIVAL:
        if client_take_waiting(load, client):
            client_connect(load, client)
        else:
            client_spare(load, client)
    elif client.state == REQUEST_NONE and load.plan.spread and load.opening >= OPENING_MOST:
        timer_set(load, &client.conn, load.now + RETRY_PAUSE)       # as in load_open: no backlog runs over
    elif client.state == REQUEST_NONE:
        client_start(load, client)
    elif client.state == REQUEST_CLOSING:
        client_shut(load, client, False)
        client_again(load, client, 0)
    elif client.disconnects:
        client_leave(load, client)

# ---------------------------------------------------------------------------------------------------------- the answer

cdef void client_spare(LoadC *load, ClientC *client) noexcept nogil:
    # It has no connection and no request; the next arrival may have it.
    client.idle_next = load.spare
    load.spare = client

cdef void client_rest(LoadC *load, ClientC *client) noexcept nogil:
    # Between two arrivals.
    client.state = REQUEST_IDLE
    client.idle_next = load.idle
    load.idle = client

cdef bint client_missed(LoadC *load, ClientC *client) noexcept nogil:
    # Whether an answer of our source has a clean end and yet lacks something: the worst that a proxy can do. Those that a
    # round's end cuts have fewer events than they should.
    cdef PlanC *plan = load.plan
    if not plan.marked or client.refused or client.mode == MODE_FLOOD:
        return False
    if client.mode == MODE_REPLAY:
        return replay_missed(load, client)
    return not client.done or (plan.events and client.number != <uint32_t>plan.events and not load.finishing)

cdef int client_foreign_fault(LoadC *load, ClientC *client) noexcept nogil:
    # What an answer of somebody's inference server lacks, though its status is 200 and its framing has a clean end: an
    # ERROR_* or -1. Pages of front ends, errors and streams that broke off all look like that.
    if client.failed:
        return ERROR_ANSWER
    if not client.number and not client.finished:
        return ERROR_NO_ANSWER
    if client.event_stream and not client.done and not client.finished:
        return ERROR_UNENDED
    return -1

cdef void client_answered(LoadC *load, ClientC *client) noexcept nogil:
    # The answer has ended, well as far as its framing says: what is next?
    cdef PlanC *plan = load.plan
    cdef int64_t now = load_clock()
    cdef int fault = -1
    if not plan.marked and not client.refused:
        client_foreign_rest(load, client, now)
        fault = client_foreign_fault(load, client)
    elif client_missed(load, client):
        fault = ERROR_TRUNCATED
    if fault >= 0:
        load_error(load, fault)
    elif not client.refused:
        if client.tokens == -2:
            load_error(load, ERROR_USAGE)
        load_count(load, COUNT_ANSWERS, 1)
        load_time(load, TIME_DURATION, now - client.asked)
        load_count(load, COUNT_TOKENS, <uint64_t>client.tokens if client.tokens >= 0 else client.number)
    if client.counted:
        client.counted = False
        sys_add_counter(&plan.flowing, <uint64_t>-1)
    client.used = True
    if plan.again == AGAIN_CONNECT and not client.conn.hung_up and not load.finishing:
        # Whoever closes first keeps the port for a minute, and clients have only so many of them.
        client.state = REQUEST_CLOSING
        timer_set(load, &client.conn, load.now + CLOSE_LIMIT)
    elif load.finishing or plan.again == AGAIN_NEVER or plan.again == AGAIN_CONNECT or not client.keep_alive:
        client_shut(load, client, load.finishing)       # see source_close
        if plan.again != AGAIN_NEVER:
            client_again(load, client, 0)
    elif plan.again == AGAIN_ASK:
        client.asked = now
        client_ask(load, client)
    elif client_take_waiting(load, client):
        client_ask(load, client)
    else:
        client_rest(load, client)

cdef void client_time_event(LoadC *load, ClientC *client, int64_t now, int64_t stamp) noexcept nogil:
    # What an event's arrival says; `stamp` is 0 where the source was not ours. Those who leave are not timed: half of what
    # they get comes while they are about to go.
    client.events_here += 1
    if client.disconnects:
        return
    if not client.first:
        client.first = now
        load_time(load, TIME_TTFT, now - client.asked)
        if not client.counted:
            client.counted = True
            sys_add_counter(&load.plan.flowing, 1)
    else:
        load_time(load, TIME_ITL, now - client.received)
        if stamp:
            load_time(load, TIME_JITTER, abs_ns((now - client.received) - (stamp - client.stamp)))
    if stamp:
        load_time(load, TIME_LATENCY, now - stamp)
        client.stamp = stamp
    client.received = now
    load_count(load, COUNT_EVENTS, 1)

cdef int64_t abs_ns(int64_t ns) noexcept nogil:
    return -ns if ns < 0 else ns

cdef void client_marked_event(LoadC *load, ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    # An event of our source: are its bytes those that were sent, and is it the one that comes next?
    cdef PlanC *plan = load.plan
    cdef const uint8_t *want = plan.event + plan.event_start
    cdef const uint8_t *mark = p + plan.mark
    cdef int64_t stamp = 0
    cdef uint32_t request_id = 0
    cdef uint32_t number = 0
    cdef size_t behind = plan.mark + MARK_LENGTH
    if n != plan.event_size or memcmp(p, want, plan.mark) != 0 or memcmp(p + behind, want + behind, n - behind) != 0 \
            or mark_read(mark, &stamp, &request_id, &number) != RC_OK:
        # It was rewritten on its way. The mark may have survived.
        mark = p
        while mark is not NULL:
            mark = <const uint8_t *>memchr(mark, c"@", n - (mark - p))
            if mark is NULL or n - (mark - p) < MARK_LENGTH:
                # A comment, the end, or an event that the proxy made.
                client.done = client.done or memmem(p, n, b"[DONE]", 6) is not NULL
                return
            if mark_read(mark, &stamp, &request_id, &number) == RC_OK:
                break
            mark += 1
        if not client.disconnects:
            load_count(load, COUNT_ALTERED, 1)
    if number != client.number or request_id != client.request_id:
        load_count(load, COUNT_DISORDER, 1)
    client.number = number + 1
    client_time_event(load, client, now, stamp)

cdef const uint8_t *json_skip(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while p < end and (p[0] == c" " or p[0] == c"\t" or p[0] == c"\r" or p[0] == c"\n"):
        p += 1
    return p

cdef const uint8_t *json_member(const uint8_t *p, size_t n, const char *name) noexcept nogil:
    # The first byte of the value of the first member `name` (with its quotes), at whatever depth; NULL where there is none.
    # A name inside a string has backslashes before its quotes, and is not found.
    cdef const uint8_t *end = p + n
    cdef const uint8_t *at
    while p < end:
        at = <const uint8_t *>memmem(p, end - p, name, strlen(name))
        if at is NULL:
            return NULL
        p = at + strlen(name)
        at = json_skip(p, end)
        if at < end and at[0] == c":":
            at = json_skip(at + 1, end)
            return at if at < end else NULL
    return NULL

cdef bint json_has_text(const uint8_t *p, size_t n, const char *name) noexcept nogil:
    # Whether the member is a string that is not empty.
    cdef const uint8_t *at = json_member(p, n, name)
    return at is not NULL and at[0] == c'"' and at + 1 < p + n and at[1] != c'"'

cdef int64_t json_count(const uint8_t *p, size_t n, const char *name) noexcept nogil:
    # The member's number; -1 where there is none, or null; -2 where it is no number of 1 to 18 digits.
    cdef const uint8_t *at = json_member(p, n, name)
    cdef const uint8_t *end = p + n
    cdef const uint8_t *start = at
    cdef int64_t value
    if at is NULL or at[0] == c"n":
        return -1
    while at < end and text_class[at[0]] & TEXT_DIGIT:
        at += 1
    value = text_number(start, at - start)
    at = json_skip(at, end)
    return value if value >= 0 and at < end and (at[0] == c"," or at[0] == c"}") else -2

cdef void client_usage(ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    # The number of tokens as the server counts them. A token has a byte in the answer; those of a reasoning that is not
    # shown have none, but take time. A number for which there was neither is not believed.
    cdef int64_t tokens = json_count(p, n, b'"completion_tokens"')
    if tokens >= 0 and tokens > client.bytes and tokens > (now - client.asked) // TOKEN_TIME:
        tokens = -2
    if tokens != -1:
        client.tokens = tokens

cdef bint client_foreign_object(LoadC *load, ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    # An object of somebody's inference server: a chunk of a stream, or a whole answer. Whether it has content; those without
    # (the role, the usage) are no tokens.
    cdef const uint8_t *error
    client_usage(client, p, n, now)
    if json_has_text(p, n, b'"finish_reason"'):
        client.finished = True
    if (json_has_text(p, n, b'"content"') or json_has_text(p, n, b'"text"')
            or json_has_text(p, n, b'"reasoning_content"') or json_has_text(p, n, b'"reasoning"')
            or json_has_text(p, n, b'"arguments"')):
        return True
    error = json_member(p, n, b'"error"')
    if error is not NULL and error[0] != c"n":      # null
        client.failed = True
    return False

cdef void client_foreign_event(LoadC *load, ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    if memmem(p, n, b"[DONE]", 6) is not NULL and memmem(p, n, b"{", 1) is NULL:
        client.done = True
    elif client_foreign_object(load, client, p, n, now):
        client.number += 1
        client_time_event(load, client, now, 0)

cdef void client_foreign_rest(LoadC *load, ClientC *client, int64_t now) noexcept nogil:
    # What is left to look at when the answer has ended: an event without its blank line, or the whole of an answer in one
    # piece. That counts as one event, at its first byte; a list of embeddings is content too.
    cdef const uint8_t *p = client.carry.data
    cdef size_t n = client.carry.used
    cdef const uint8_t *start
    if not n:
        return
    if client.event_stream:
        client_foreign_event(load, client, p, n, now)
        return
    start = json_skip(p, p + n)
    if start == p + n or start[0] != c"{":
        return
    if client_foreign_object(load, client, p, n, now) or json_member(p, n, b'"embedding"') is not NULL:
        client.number = 1
        now = client.first
        client.first = 0
        client_time_event(load, client, now, 0)

cdef void client_event(LoadC *load, ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    if load.plan.marked:
        client_marked_event(load, client, p, n, now)
    else:
        client_foreign_event(load, client, p, n, now)

cdef size_t event_end(const uint8_t *p, size_t n, size_t start) noexcept nogil:
    # Where the first event of p[0:n] ends, its blank line included; 0 where it does not. Looks from `start`.
    cdef size_t i = start
    cdef const uint8_t *found
    while i < n:
        found = <const uint8_t *>memchr(p + i, c"\n", n - i)
        if found is NULL:
            return 0
        i = found - p + 1
        if i < n and p[i] == c"\n":
            return i + 1
        if i + 1 < n and p[i] == c"\r" and p[i + 1] == c"\n":
            return i + 2
    return 0

cdef int client_events(LoadC *load, ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    # A piece of an event stream, without its framing. RC_OK or -ENOMEM.
    cdef size_t end
    cdef size_t before
    client.bytes += n
    if client.refused:
        return RC_OK
    if not client.event_stream and load.plan.marked:
        # Not what our source sends: it counts as one event, at its first byte, and will be missed at the end.
        if not client.first:
            client.number += 1
            client_time_event(load, client, now, 0)
        return RC_OK
    if not client.event_stream:
        # An answer in one piece is judged at its end, by as much of it as is kept.
        if not client.first:
            client.first = now
        if client.carry.used + n > CARRY_MOST:
            n = CARRY_MOST - client.carry.used
        return carry_add(&client.carry, p, n) if n else RC_OK
    if client.carry.used:
        before = client.carry.used
        if carry_add(&client.carry, p, n) != RC_OK:
            return -ENOMEM
        p = client.carry.data
        n = client.carry.used
        end = event_end(p, n, before - 3 if before > 3 else 0)
    else:
        end = event_end(p, n, 0)
    while end:
        client_event(load, client, p, end, now)
        if client.spoilt:
            client.spoilt = False
            load_count(load, COUNT_SPLIT, 1)
        p += end
        n -= end
        end = event_end(p, n, 0)
    if client.carry.used:
        carry_drop(&client.carry, client.carry.used - n)
        return RC_OK
    return carry_add(&client.carry, p, n) if n else RC_OK

cdef int client_flood(LoadC *load, ClientC *client, const uint8_t *p, size_t n) noexcept nogil:
    # A piece of a flood: compared with what was sent, by position. RC_OK; RC_BAD where it differs.
    cdef PlanC *plan = load.plan
    cdef size_t at = <size_t>(client.position % plan.event_size)
    cdef size_t whole
    cdef const char *end = b"data: [DONE]\n\n"
    if memcmp(p, plan.flood_text + at, n) != 0:
        # The end of it, which may come in the same piece as events.
        whole = (plan.event_size - at) % plan.event_size
        while whole < n and n - whole >= plan.event_size and memcmp(p + whole, plan.flood_text, plan.event_size) == 0:
            whole += plan.event_size
        if whole > n or memcmp(p, plan.flood_text + at, whole) != 0:
            return RC_BAD
        if memcmp(p + whole, end, n - whole if n - whole < strlen(end) else strlen(end)) != 0:
            return RC_BAD
        return RC_OK
    load_count(load, COUNT_EVENTS, (client.position + n) // plan.event_size - client.position // plan.event_size)
    client.position += n
    return RC_OK

cdef int client_payload(LoadC *load, ClientC *client, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    # RC_OK, RC_BAD or -ENOMEM.
    cdef int rc
    if client.mode == MODE_REPLAY:
        replay_payload(load, client, p, n, now)
        return RC_OK
    if client.mode != MODE_FLOOD:
        return client_events(load, client, p, n, now)
    if not client.counted:
        client.counted = True
        sys_add_counter(&load.plan.flowing, 1)
    if client.disconnects:
        return RC_OK
    rc = client_flood(load, client, p, n)
    if rc == RC_BAD:
        load_count(load, COUNT_ALTERED, 1)
    return RC_OK

cdef int client_body(LoadC *load, ClientC *client, const uint8_t *data, size_t n, int64_t now) noexcept nogil:
    # RC_OK more is to come, RC_DONE the answer is complete, RC_BAD, -ENOMEM.
    cdef size_t used = 0
    cdef size_t length = 0
    cdef const uint8_t *piece = NULL
    cdef int rc = RC_OK
    while rc == RC_OK:
        rc = body_follow(&client.body, data, n, &used, &piece, &length)
        if rc == RC_OK:
            rc = client_payload(load, client, piece, length, now)
    if rc == RC_AGAIN:
        return RC_OK
    return RC_BAD if rc == RC_DONE and used < n else rc

cdef int client_head(LoadC *load, ClientC *client, const uint8_t *data, size_t n, int64_t now) noexcept nogil:
    # The answer's head, and what came with it. As client_body.
    cdef HeadC *head = load.head
    cdef size_t length = 0
    cdef uint32_t scanned = 0
    cdef int rc
    if client.carry.used:
        if carry_add(&client.carry, data, n) != RC_OK:
            return -ENOMEM
        data = client.carry.data
        n = client.carry.used
    while True:
        rc = head_scan(data, n, &scanned, &length)
        if rc == RC_AGAIN:
            if client.carry.used:
                carry_drop(&client.carry, client.carry.used - n)
                return RC_OK
            return carry_add(&client.carry, data, n) if n else RC_OK
        if rc != RC_DONE or head_read_response(head, data, length, SOURCE_HEAD_FIELDS, False) != RC_OK:
            return RC_BAD
        data += length
        n -= length
        scanned = 0
        if head.status >= 200:
            break
    if head.status != 200:
        load_error(load, ERROR_STATUS)
        sys_add_counter(&load.plan.status[head.status if head.status < 600 else 599], 1)
    client.state = REQUEST_BODY
    body_begin(&client.body, head.framing, head.content_length)
    client.event_stream = head.event_stream
    client.keep_alive = head.keep_alive and head.framing != FRAMING_CLOSE
    if head.status != 200:
        client.refused = True
        client.event_stream = False
        client.first = now          # no event, and no TTFT
    if client.carry.used:
        # What stands behind the head lies in `carry`, which the body uses too.
        if n > RECV_ROOM:
            return RC_BAD
        memcpy(load.scratch, data, n)
        data = load.scratch
        client.carry.used = 0
    if n or client.body.done:
        return client_body(load, client, data, n, now)
    return RC_OK

cdef void client_ended(LoadC *load, ClientC *client, bint reset) noexcept nogil:
    # The peer has closed.
    cdef bint idle = client.state == REQUEST_IDLE
    if client.state == REQUEST_CLOSING:
        client_shut(load, client, False)
        client_again(load, client, 0)
        return
    if client.state == REQUEST_BODY and client.body.framing == FRAMING_CLOSE and not reset:
        client_answered(load, client)
        return
    if client.state == REQUEST_HEAD and client.used and not client.carry.used:
        # It closed an idle connection while the next request was on its way: nobody's error, as any client knows.
        client_shut(load, client, False)
        client_connect(load, client)
        return
    if idle:
        client_unlist(load, client)
        client_shut(load, client, False)
        client_spare(load, client)
        return
    client_failed(load, client, ERROR_RESET if reset else ERROR_TRUNCATED)

cdef void client_unlist(LoadC *load, ClientC *client) noexcept nogil:
    cdef ClientC **at = &load.idle
    while at[0] is not NULL:
        if at[0] is client:
            at[0] = client.idle_next
            return
        at = &at[0].idle_next

cdef bint client_read(LoadC *load, ClientC *client) noexcept nogil:
    # One recv. Whether there may be more.
    cdef ssize_t got = io_recv_into(client.conn.fd, load.room, RECV_ROOM)
    cdef int64_t now
    cdef int rc
    cdef int fd = client.conn.fd
    if got == -EAGAIN:
        client.conn.readable = False
        return False
    if got <= 0:
        client_ended(load, client, got < 0)
        return False
    if got < RECV_ROOM and not client.conn.hung_up:
        client.conn.readable = False
    now = load_clock()
    load_count(load, COUNT_BYTES, <uint64_t>got)
    client.events_here = 0
    if client.state == REQUEST_BODY and (client.carry.used or (client.mode == MODE_REPLAY and replay_within(load, client))):
        client.spoilt = True
    if client.state == REQUEST_HEAD:
        rc = client_head(load, client, load.room, got, now)
    elif client.state == REQUEST_BODY:
        rc = client_body(load, client, load.room, got, now)
    else:
        rc = RC_BAD         # bytes that nobody asked for
    if client.disconnects:
        pass
    elif client.events_here == 1:
        load_count(load, COUNT_ALONE, 1)
    elif client.events_here:
        load_count(load, COUNT_MERGED, <uint64_t>client.events_here)
    if rc == RC_DONE:
        client_answered(load, client)
    elif rc == RC_BAD or rc == -ENOMEM:
        if client.state == REQUEST_IDLE:
            client_unlist(load, client)
        client_failed(load, client, ERROR_PROTOCOL if rc == RC_BAD else ERROR_MEMORY)
    return client.conn.fd == fd and client.conn.readable

cdef void client_ready(LoadC *load, ClientC *client, bint writable) noexcept nogil:
    cdef int i
    cdef int error
    if client.state == REQUEST_NONE or client.state == REQUEST_LEFT:
        return
    if client.state == REQUEST_CONNECT:
        error = io_error(client.conn.fd)
        if error < 0 or (client.conn.hung_up and not writable):
            client_failed(load, client, ERROR_CONNECT)
            return
        if not writable:
            return
        load.opening -= 1
        client_ask(load, client)
    elif client.state == REQUEST_SEND and writable:
        client_send(load, client)
    if client.disconnects and client.phase == LEAVE_BLOCKED and not client.conn.hung_up:
        return          # it does not read
    for i in range(READS_A_TURN):
        if not client.conn.readable or client.state == REQUEST_NONE or client.state == REQUEST_SEND or not client_read(load, client):
            return
    load_queue(load, &client.conn)
