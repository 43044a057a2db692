# request: its head.

cdef void request_note(WorkerC *w, ExchangeC *x, HeadC *head) noexcept nogil:
    # Copies out of the head what is needed after its bytes are gone.
    x.method_length = <uint8_t>(head.method_length if head.method_length < METHOD_ROOM else METHOD_ROOM)
    memcpy(x.method, head.method, x.method_length)
    x.path_length = <uint8_t>(head.target_length if head.target_length < PATH_ROOM else PATH_ROOM)
    memcpy(x.path, head.target, x.path_length)
    x.to_head = head_is(head.method, head.method_length, b"HEAD")
    x.minor = <uint8_t>head.minor
    # Behind a request for an upgrade may stand bytes of the new protocol, of a client that did not wait (RFC 9110 section 7.8).
    # Where the upgrade is refused nobody can tell them from a request, so none is read there (ADR 0014).
    x.client_keeps = head.keep_alive and not head.has_upgrade
    x.client_closes = not head.keep_alive
    x.upgrade = head.has_upgrade
    body_begin(&x.up_body, head.framing, head.content_length)
    if head.traceparent_length == TRACE_ROOM:
        exchange_note_trace(w, x, head.traceparent)
    if 0 < head.request_id_length <= REQUEST_ID_ROOM:
        x.request_id_length = <uint8_t>head.request_id_length
        memcpy(x.request_id, head.request_id, head.request_id_length)
    else:
        request_id_make(w, x)

cdef void request_distrust(ExchangeC *x) noexcept nogil:
    # The head was broken: nothing that it says of its body, or of a close, is believed.
    x.up_body.framing = FRAMING_CLOSE
    x.up_body.done = False
    x.client_closes = False

cdef void request_refuse(WorkerC *w, ExchangeC *x, int status, uint8_t reason) noexcept nogil:
    # Refuses a request that was not taken over yet: all of it that is pending is accounted for.
    pending_clear(w, &x.client.pending)
    refuse(w, x, status, reason)

cdef void request_read(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t length, size_t n) noexcept nogil:
    # A whole head is there, data[0:length], and n - length bytes behind it.
    cdef ClientC *client = x.client
    cdef HeadC *head = w.head
    cdef size_t used = 0
    cdef bint expects = False
    cdef int rc
    cdef int status
    status = head_read_request(head, data, length, w.settings.max_request_line, w.settings.max_fields)
    x.head_at = w.now
    x.whole_at = w.now
    x.upstream_at = w.now
    x.request_at = w.now
    if status != RC_OK:
        head.request_id_length = 0      # it may not have been looked at
    request_note(w, x, head)
    if status != RC_OK:
        request_distrust(x)
    elif client.trusted:
        trust_origin(&w.settings.trust, head, &x.origin)
    if status == RC_OK and sys_load_acquire(&w.shared.recording) and head_is(head.method, head.method_length, b"POST"):
        tape_begin(w, x)
    if status == RC_OK and head.content_length > x.pool.limits.max_body:
        status = head_refused(head, 413, REASON_BODY_TOO_LONG)
    if status == RC_OK and not client.refuse_status:
        rc = pool_find_by_head(w, x, head, &head.fault)
        if rc == RC_AGAIN:
            # The body is needed before there is a backend that could ask for it.
            expects = head.expects
            head.expects = False
        elif rc == RC_DONE:
            x.bytes_up = length
            if pending_keep(w, &client.pending, data + length, n - length) != RC_OK:
                discard(&w.stats, DISCARD_BEHIND_REQUEST, n - length)
                pending_clear(w, &client.pending)
                request_lost(w, x)
            else:
                answer_models(w, x)
            return
        elif rc != RC_OK:
            status = rc
    if status == RC_OK and not client.refuse_status:
        # With room for what routing may add: a path, a backend's own Host, the longer length of a body with another model's name.
        write_start(&w.out, w.out.data, w.out.size)
        w.out.size -= PREFIX_ROOM + AUTHORITY_ROOM + LENGTH_DIGITS
        head_write_request(&w.out, head, client.address, client.trusted, b"", x.request_id, x.request_id_length)
        w.out.size += PREFIX_ROOM + AUTHORITY_ROOM + LENGTH_DIGITS
        if w.out.full:
            status = head_refused(head, 431, REASON_HEAD_TOO_LONG)
    if status != RC_OK or client.refuse_status:
        request_skip(w, x, data + length, n - length)
        if status != RC_OK and status != 503:
            request_refuse(w, x, status, head.fault)
            return
        pending_clear(w, &client.pending)
        if status == 503:
            x.client_keeps = False      # what stood behind the head is gone
            exchange_blame(w, x, head.fault, 0)
            answer_error(w, x, 503, OUTCOME_OVERLOAD)
            return
        exchange_blame(w, x, REASON_CONNECTIONS_OF_ADDRESS if client.refuse_status == 429 else REASON_CONNECTIONS, 0)
        answer_error(w, x, client.refuse_status, OUTCOME_OVERLOAD)
        return
    x.head_length = <uint32_t>w.out.used
    x.no_host = not head.absolute and head.host_count == 0
    x.up.replayable = True
    status = request_follow(w, x, data + length, n - length, &used)
    if status != RC_OK:
        request_refuse(w, x, status, request_fault(x, status))
        return
    x.bytes_up = length + used      # and not what stands behind it
    if (chain_copy(&x.up, &w.bufs, w.out.data, w.out.used) != RC_OK
            or (used and chain_copy(&x.up, &w.bufs, data + length, used) != RC_OK)
            or pending_keep(w, &client.pending, data + length + used, n - length - used) != RC_OK):
        # The request may be pending still: it must not be read once more.
        discard(&w.stats, DISCARD_BEHIND_REQUEST, n - length - used)
        pending_clear(w, &client.pending)
        x.client_keeps = False
        answer_no_memory(w, x)
        return
    if x.json is NULL:
        exchange_set_state(w, x, STATE_ROUTE)
        return
    exchange_set_state(w, x, STATE_MODEL)
    model_route(w, x)
    if expects and x.minor and not x.up_body.done and (x.state == STATE_MODEL or x.state == STATE_ROUTE):
        client_send(w, x, <const uint8_t *>b"HTTP/1.1 100 Continue\r\n\r\n", 25)

cdef void request_await(WorkerC *w, ClientC *client) noexcept nogil:
    # Reads a request head, from what is pending and from the socket. The exchange begins with its first byte.
    cdef ExchangeC *x = client.conn.exchange
    cdef PendingC *pending = &client.pending
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    cdef size_t length = 0
    cdef ssize_t got
    cdef int rc
    cdef bint fresh = x is NULL and pending_holds(pending, &data, &n)
    while True:
        if not fresh:
            if not client.conn.readable:
                return
            got = pending_recv(w, pending, &client.conn, &data, &n)
            if got == -EAGAIN:
                return
            if got == -ENOMEM and x is not NULL:
                answer_no_memory(w, x)
                return
            if got <= 0:
                if x is NULL:
                    if got == -ENOMEM:
                        sys_add_counter(&w.stats.over_memory, 1)
                    client_close(w, client, False)
                else:
                    client_left(w, x, <int>-got)
                return
            if x is not NULL:
                x.bytes_up += got
        else:
            got = n
        fresh = False
        if x is NULL:
            x = client_begin(w, client)
            if x is NULL:
                sys_add_counter(&w.stats.over_memory, 1)
                client_close(w, client, False)
                return
            x.bytes_up = got
        rc = head_scan(data, n, &pending.scanned, &length)
        if rc == RC_OK and not x.skipped_line:
            x.skipped_line = True
            data += 2
            n -= 2
            pending.scanned = 0
            rc = head_scan(data, n, &pending.scanned, &length) if n else RC_AGAIN
        if rc == RC_DONE and length <= w.settings.max_head:
            pending.scanned = 0
            request_read(w, x, data, length, n)
            return
        if rc == RC_OK or rc == RC_BAD:
            request_refuse(w, x, 400, head_scan_fault(data, n))
            return
        # Behind the longest line stand a CR and an LF.
        if n >= w.settings.max_request_line + 2 and memchr(data, c"\n", w.settings.max_request_line + 2) is NULL:
            request_refuse(w, x, 414, REASON_LINE_TOO_LONG)
            return
        if rc == RC_DONE or n >= w.settings.max_head:
            request_refuse(w, x, 431, REASON_HEAD_TOO_LONG)
            return
        length = pending.scanned      # pending_keep starts a new count
        if pending_keep(w, pending, data, n) != RC_OK:
            answer_no_memory(w, x)
            return
        pending.scanned = <uint32_t>length

cdef void step_head(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Waits for the whole head of the request.
    request_await(w, x.client)
