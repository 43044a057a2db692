# answer: what the proxy itself says to a client: errors, and the end of a response that can never be whole.

cdef void write_date(WorkerC *w) noexcept nogil:
    # The Date of our own answers (RFC 9110 section 6.6.1), made once a second.
    cdef timespec clock
    cdef tm parts
    cdef const char *days = b"SunMonTueWedThuFriSat"
    cdef const char *months = b"JanFebMarAprMayJunJulAugSepOctNovDec"
    clock_gettime(CLOCK_REALTIME, &clock)
    if clock.tv_sec != w.date_second:
        w.date_second = clock.tv_sec
        gmtime_r(&clock.tv_sec, &parts)
        snprintf(w.date, sizeof(w.date), "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", days + 3 * parts.tm_wday,
                 parts.tm_mday, months + 3 * parts.tm_mon, parts.tm_year + 1900, parts.tm_hour, parts.tm_min,
                 parts.tm_sec)
    write_text(&w.out, w.date)

cdef bint asks_messages(ExchangeC *x) noexcept nogil:
    # Whether the client speaks Anthropic's API, whose errors have another shape.
    return x.path_length >= 12 and memcmp(x.path, <const char *>b"/v1/messages", 12) == 0

cdef bint asks_responses(ExchangeC *x) noexcept nogil:
    # Whether it speaks OpenAI's API of responses, whose streams have an event for their failure.
    return x.path_length >= 13 and memcmp(x.path, <const char *>b"/v1/responses", 13) == 0

cdef void write_messages_error(WriterC *out, ExchangeC *x, int status, uint8_t outcome, const char *message) noexcept nogil:
    # The error object of Anthropic's API (rule R).
    cdef const char *kind = b"api_error" if status >= 500 else b"invalid_request_error"
    if status == 404:
        kind = b"not_found_error"
    elif status == 413:
        kind = b"request_too_large"
    elif status == 429:
        kind = b"overloaded_error" if outcome != OUTCOME_OVERLOAD else b"rate_limit_error"
    elif status == 504:
        kind = b"timeout_error"
    write_text(out, b'{"type": "error", "error": {"type": "')
    write_text(out, kind)
    write_text(out, b'", "message": "')
    write_text(out, message)
    write_text(out, b'"}')
    if memchr(x.request_id, c'"', x.request_id_length) is NULL and memchr(x.request_id, c"\\", x.request_id_length) is NULL:
        write_text(out, b', "request_id": "')
        write_bytes(out, x.request_id, x.request_id_length)
        write_text(out, b'"')
    write_text(out, b"}")

cdef void write_error(WriterC *out, ExchangeC *x, int status, uint8_t outcome, const char *message) noexcept nogil:
    # The error object that the client's library parses: OpenAI's, or Anthropic's (rules E3 and R). No text of it comes from outside,
    # but for the request's id.
    cdef const char *code = outcome_words[outcome].name
    cdef const char *param = b"null"
    cdef const char *kind = b"server_error"
    if asks_messages(x):
        write_messages_error(out, x, status, outcome, message)
        return
    if status == 429:
        kind = b"server_overloaded" if outcome != OUTCOME_OVERLOAD else b"rate_limit_error"
    elif status == 503:
        kind = b"service_unavailable_error"
    elif status == 504:
        kind = b"timeout_error"
    elif status < 500 or outcome == OUTCOME_BAD_REQUEST:
        kind = b"invalid_request_error"
    if outcome == OUTCOME_BAD_REQUEST and REASON_TWO_MODELS <= x.reason <= REASON_UNKNOWN_MODEL:
        param = b'"model"'
        if x.reason == REASON_UNKNOWN_MODEL:
            code = b"model_not_found"
    write_text(out, b'{"error": {"message": "')
    write_text(out, message)
    write_text(out, b'", "type": "')
    write_text(out, kind)
    write_text(out, b'", "param": ')
    write_text(out, param)
    write_text(out, b', "code": "')
    write_text(out, code)
    write_text(out, b'"}}')

cdef void response_flush(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The client will get no more than what it has not taken yet.
    if not x.down.unsent and not x.unlisted:
        client_next(w, x)
    elif x.client.conn.hung_up:
        client_left(w, x, 0)     # its FIN came with the request that is answered; no event will tell of it again
    else:
        exchange_set_state(w, x, STATE_FLUSH)

cdef int64_t retry_after(WorkerC *w) noexcept nogil:
    # When a request that a queue has refused may come again, ms: when its turn would be now, 1 to 120 s. Within a fifth of that by
    # chance, so that those refused together do not come together.
    cdef int64_t wait = w.estimate // 1000 if w.estimate > 0 else 1000
    wait = wait * <int64_t>(800 + worker_random(w) % 401) // 1000
    return 1000 if wait < 1000 else 120000 if wait > 120000 else wait

cdef void answer_error(WorkerC *w, ExchangeC *x, int status, uint8_t outcome) noexcept nogil:
    # Our own answer, where nothing was forwarded. The upstream is dropped.
    cdef const char *message = outcome_words[outcome].message
    cdef WriterC body
    cdef uint8_t room[768]
    cdef char text[256]
    cdef int64_t again = 1000       # ms
    upstream_drop(w, x)
    ticket_drop(w, x)
    if outcome == OUTCOME_BAD_REQUEST:
        message = reason_words[x.reason].message
    elif outcome == OUTCOME_QUEUE_FULL or outcome == OUTCOME_QUEUE_TIMEOUT:
        again = retry_after(w)
        snprintf(text, sizeof(text), b"%s Waiting before a new request: %u; its turn would come in about %lld s.", message, w.ahead,
                 <long long>((w.estimate if w.estimate > 0 else 1000000) + 999999) // 1000000)
        message = text
    if x.client.refuse_status and outcome == OUTCOME_OVERLOAD:
        message = (b"Your address has as many connections open as it may have." if status == 429
                   else b"The proxy has as many connections open as it may have; try again soon.")
        x.client_keeps = False
    elif not x.up_body.done or w.draining:
        x.client_keeps = False
    if not x.request_id_length:
        request_id_make(w, x)
    write_start(&body, room, sizeof(room))
    write_error(&body, x, status, outcome, message)
    x.status = status
    x.outcome = outcome
    x.forwarded = True
    write_start(&w.out, w.out.data, w.out.size)
    write_text(&w.out, b"HTTP/1.1 ")
    write_number(&w.out, status)
    write_text(&w.out, b" ")
    write_text(&w.out, status_phrases[status])
    write_text(&w.out, b"\r\nDate: ")
    write_date(w)
    write_text(&w.out, b"\r\nContent-Type: application/json\r\nContent-Length: ")
    write_number(&w.out, <int64_t>body.used)
    if status == 503 or status == 429:
        write_text(&w.out, b"\r\nRetry-After: ")
        write_number(&w.out, (again + 999) // 1000)
        write_text(&w.out, b"\r\nretry-after-ms: ")
        write_number(&w.out, again)
    if not x.client_keeps:
        write_text(&w.out, b"\r\nConnection: close")
    elif x.minor == 0:
        write_text(&w.out, b"\r\nConnection: keep-alive")
    write_text(&w.out, b"\r\nX-Request-ID: ")
    write_bytes(&w.out, x.request_id, x.request_id_length)
    write_text(&w.out, b"\r\n\r\n")
    if not x.to_head:
        write_bytes(&w.out, body.data, body.used)
    client_send(w, x, w.out.data, w.out.used)
    if x.state != STATE_ENDED:
        response_flush(w, x)

cdef void answer_no_memory(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Nothing was forwarded, and there is no memory to go on with.
    exchange_blame(w, x, REASON_NO_MEMORY, ENOMEM)
    answer_error(w, x, 503, OUTCOME_OVERLOAD)

cdef void listing_send(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Sends more of the list of models, as far as the client takes it. What is left stays in the table, which the exchange keeps: a
    # client that does not read holds a buffer, and no copy of the list.
    cdef const uint8_t *data
    cdef size_t n
    cdef int i
    for i in range(TURN_READS):
        if not x.unlisted or x.down.unsent:
            return
        data = x.table.listing + (x.table.listing_length - x.unlisted)
        n = BUF_SIZE if x.unlisted > BUF_SIZE else x.unlisted
        x.unlisted -= <uint32_t>n
        x.client_at = w.now
        client_send(w, x, data, n)
        if x.state == STATE_ENDED:
            return
    if x.unlisted and not x.down.unsent:
        conn_queue(w, &x.client.conn)

cdef void answer_models(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The list of the table's models (rule J3), which needs no backend.
    if w.draining:
        x.client_keeps = False
    x.status = 200
    x.forwarded = True
    write_start(&w.out, w.out.data, w.out.size)
    write_text(&w.out, b"HTTP/1.1 200 OK\r\nDate: ")
    write_date(w)
    write_text(&w.out, b"\r\nContent-Type: application/json\r\nContent-Length: ")
    write_number(&w.out, <int64_t>x.table.listing_length)
    if not x.client_keeps:
        write_text(&w.out, b"\r\nConnection: close")
    elif x.minor == 0:
        write_text(&w.out, b"\r\nConnection: keep-alive")
    write_text(&w.out, b"\r\nX-Request-ID: ")
    write_bytes(&w.out, x.request_id, x.request_id_length)
    write_text(&w.out, b"\r\n\r\n")
    if not x.to_head:
        x.unlisted = <uint32_t>x.table.listing_length
    client_send(w, x, w.out.data, w.out.used)
    if x.state != STATE_ENDED:
        listing_send(w, x)
    if x.state != STATE_ENDED:
        response_flush(w, x)

cdef void write_error_event(WriterC *out, ExchangeC *x, uint8_t outcome) noexcept nogil:
    # The event that tells a stream's client of its failure, as its API has it (rule R).
    cdef const char *message = outcome_words[outcome].message
    if asks_messages(x):
        write_text(out, b"event: error\n")
    if asks_responses(x):
        # What the backend called the response, and how many events there were, was not read.
        write_text(out, b'event: response.failed\ndata: {"type": "response.failed", "sequence_number": null, "response": '
                   b'{"id": null, "object": "response", "status": "failed", "error": {"code": "server_error", "message": "')
        write_text(out, message)
        write_text(out, b'"}, "output": []}}')
    else:
        write_text(out, b"data: ")
        write_error(out, x, 502, outcome, message)
    write_text(out, b"\n\n")

cdef void response_truncate(WorkerC *w, ExchangeC *x, uint8_t outcome) noexcept nogil:
    # Ends a response that was begun and can never be whole, so that the client can tell (rule E2).
    cdef uint8_t room[600]
    cdef WriterC event
    cdef WriterC data
    cdef uint8_t text[512]
    # At the start of an event, and of a chunk; what is sifted goes on by whole events, and has chunks of ours.
    cdef bint between = x.down_body.sse == SSE_EVENT_START
    upstream_drop(w, x)
    x.outcome = outcome
    x.client_keeps = False
    x.reset = x.down_body.framing == FRAMING_CLOSE or x.dechunk
    if x.sieve is not NULL:
        between = not x.sieve.passes
    elif not x.reset:
        between = between and x.down_body.framing == FRAMING_CHUNKED and x.down_body.chunk.state == CHUNK_SIZE
    if x.pool.limits.midstream_error_event and x.event_stream and between:
        write_start(&data, text, sizeof(text))
        write_error_event(&data, x, outcome)
        write_start(&event, room, sizeof(room))
        if not x.reset:
            write_chunk_size(&event, data.used)
        write_bytes(&event, data.data, data.used)
        if not x.reset:
            write_text(&event, b"\r\n")
        client_send(w, x, event.data, event.used)
        if x.state == STATE_ENDED:
            return
    response_flush(w, x)

cdef void refuse(WorkerC *w, ExchangeC *x, int status, uint8_t reason) noexcept nogil:
    # Answers a bad request; what stands behind it is not read.
    pending_drop(w, &x.client.pending, DISCARD_BEHIND_REQUEST)
    x.client_keeps = False
    exchange_blame(w, x, reason, 0)
    answer_error(w, x, status, OUTCOME_BAD_REQUEST)
