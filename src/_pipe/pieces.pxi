# pieces: the body of an answer, piece by piece: followed to its end, looked at, and put together for a client that gets it otherwise.

cdef inline void usage_follow(WorkerC *w, ExchangeC *x, const uint8_t *piece, size_t n) noexcept nogil:
    # Looks for tokens in the next piece of the body. Where there is no memory to follow what began, they stay unknown.
    if x.usage is NULL:
        # Nearly every piece of an event stream has none of it, and ends with a line.
        if (find_apart(piece, piece + n) is NULL and (piece + n - 1)[0] == c"\n") or not usage_beginner(piece, n):
            return
        x.usage = <UsageC *>slab_get(&w.usages)
        if x.usage is NULL:
            x.looks &= <uint8_t>~LOOK_USAGE
            return
    usage_reader(x.usage, piece, n)

cdef void response_look(WorkerC *w, ExchangeC *x, const uint8_t *piece, size_t n) noexcept nogil:
    # Looks at the next piece of the body for whoever wants to know.
    if x.looks & LOOK_USAGE:
        usage_follow(w, x, piece, n)
    if x.looks & LOOK_TAPE:
        tape_note(w, x, piece, n)

ctypedef void (*ResponseLookF)(WorkerC *w, ExchangeC *x, const uint8_t *piece, size_t n) noexcept nogil

cdef ResponseLookF response_looker = response_look      # as with usage_reader: nobody is recorded in most cases

cdef inline int response_measure(WorkerC *w, ExchangeC *x, uint8_t *data, size_t n, size_t *used) noexcept nogil:
    # Follows the response body's framing: data[0:used] belongs to it, and x.fresh says whether there is content in it. RC_OK more is
    # to come, RC_DONE, RC_BAD.
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef int rc
    used[0] = 0
    x.fresh = False
    while True:
        rc = body_follow(&x.down_body, data, n, used, &piece, &length)
        if rc != RC_OK:
            return RC_OK if rc == RC_AGAIN else rc
        x.fresh |= sse_follow(&x.down_body.sse, piece, length) if x.event_stream else True
        if x.looks == LOOK_USAGE:
            usage_follow(w, x, piece, length)
        elif x.looks:
            response_looker(w, x, piece, length)

cdef int response_unframe(WorkerC *w, ExchangeC *x, uint8_t *data, size_t n, size_t *used, size_t *out) noexcept nogil:
    # As response_measure, where what the client gets is put together from the pieces: w.unframed[0:out].
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef size_t dropped = 0
    cdef int rc
    used[0] = 0
    out[0] = 0
    x.fresh = False
    w.unframed = w.bulk if x.sieve is not NULL and x.sieve.held else data   # what is held of an event goes before what came
    while True:
        rc = body_follow(&x.down_body, data, n, used, &piece, &length)
        if rc != RC_OK:
            break
        x.fresh |= sse_follow(&x.down_body.sse, piece, length) if x.event_stream else True
        if x.looks:
            response_looker(w, x, piece, length)
        if x.sieve is not NULL:
            out[0] += sieve_take(x.sieve, piece, length, w.unframed + out[0], &dropped)
        else:
            memmove(w.unframed + out[0], piece, length)
            out[0] += length
    discard(&w.stats, DISCARD_USAGE, dropped)
    if x.sieve is not NULL:
        x.fresh |= x.sieve.fresh
        x.sieve.fresh = x.fresh and x.sieve.held != 0
    if not out[0] and not (rc == RC_DONE and x.sieve is not NULL and x.sieve.held):
        x.fresh = False     # the client gets nothing of it yet
    return RC_OK if rc == RC_AGAIN else rc

cdef void content_came(WorkerC *w, ExchangeC *x) noexcept nogil:
    # A piece of the body had content in it: the wait for more begins.
    sys_set_counter(&w.stats.backends[x.backend].content_at, <uint64_t>w.now)
    if not x.content:
        x.content = True
        exchange_flow(w, x, x.event_stream)
        if x.client is not NULL:
            x.content_at = w.now
            series_note(x.series, SERIES_TTFT, w.now - x.head_at)
            if x.event_stream:
                x.itl = series_begin(x.series, SERIES_ITL)
        if x.pool.state is not NULL and x.status < 300:
            pool_note_ttft(x.pool.state, w.now - x.whole_at + x.pinged)
            if x.pool.limits.policy == POLICY_P2C:
                backend_note_ttft(x.counted, w.now, w.now - x.request_at)
        x.upstream_at = w.now
        exchange_rearm(w, x)
    else:
        if x.itl is not NULL:
            histogram_add(x.itl, w.now - x.last_at)
        x.upstream_at = w.now
    if x.client is not NULL:
        x.pieces += 1
        x.last_at = w.now

cdef void comment_came(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Of a backend that sends them to say that it still works on the prompt: the wait for content begins anew.
    x.upstream_at = w.now
    if not x.content:
        x.pinged += <uint32_t>(w.now - x.whole_at)
        x.whole_at = w.now

cdef void forwarded_count(WorkerC *w, ExchangeC *x, uint64_t reads, uint64_t n) noexcept nogil:
    # What was read of an answer goes to its client, unless that has left.
    if x.client is not NULL:
        sys_add_counter(&w.stats.reads_forwarded, reads)
        sys_add_counter(&w.stats.streaming_bytes, n)

cdef inline int response_follow(WorkerC *w, ExchangeC *x, uint8_t *data, size_t n, size_t *used, size_t *out) noexcept nogil:
    # As response_measure, of bytes that will be forwarded: data[0:out], or w.unframed[0:out] where x.unframed says so.
    cdef int rc
    if x.unframed:
        rc = response_unframe(w, x, data, n, used, out)
    else:
        rc = response_measure(w, x, data, n, used)
        out[0] = used[0]
    if x.fresh:
        content_came(w, x)
    elif out[0] and x.pool.limits.comments_count_as_content:
        comment_came(w, x)
    return rc

cdef void response_write(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t out, int rc) noexcept nogil:
    # Adds what response_follow has measured to w.out: where an event may have been taken out of it, with chunks of our own around it.
    cdef bint chunked = x.sieve is not NULL and x.down_body.framing == FRAMING_CHUNKED and not x.dechunk
    cdef size_t held = x.sieve.held if x.sieve is not NULL and rc == RC_DONE else 0
    if chunked and out + held:
        write_chunk_size(&w.out, out + held)
    write_bytes(&w.out, data, out)
    if held:
        write_bytes(&w.out, x.sieve.data, held)
        x.sieve.held = 0
    if chunked and out + held:
        write_text(&w.out, b"\r\n")
    if chunked and rc == RC_DONE:
        write_text(&w.out, b"0\r\n\r\n")
