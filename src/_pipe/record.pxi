# record: what an exchange has gone through, noted while it lasts and written when it ends.

cdef struct ExchangeC

cdef uint32_t exchange_age(WorkerC *w, ExchangeC *x) noexcept nogil:
    # us since its beginning, as far as they fit; never 0, which is for what did not happen.
    cdef int64_t age = w.now - x.begun_at
    return <uint32_t>age + (age == 0) if age < UINT32_MAX else UINT32_MAX

cdef StoryC *exchange_story(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Where to put what not every exchange has; NULL where there is no memory: then its record lacks that.
    if x.story is NULL:
        x.story = <StoryC *>slab_get(&w.stories)
    return x.story

cdef void exchange_note_model(WorkerC *w, ExchangeC *x, const uint8_t *name, size_t n) noexcept nogil:
    cdef StoryC *story = exchange_story(w, x)
    if story is not NULL:
        story.model_length = <uint8_t>(n if n < MODEL_SHOWN else MODEL_SHOWN)
        memcpy(story.model, name, story.model_length)

cdef void exchange_note_trace(WorkerC *w, ExchangeC *x, const uint8_t *trace) noexcept nogil:
    cdef StoryC *story = exchange_story(w, x)
    if story is not NULL:
        story.trace_length = TRACE_ROOM
        memcpy(story.trace, trace, TRACE_ROOM)

cdef void attempt_failed(WorkerC *w, ExchangeC *x, uint8_t reason) noexcept nogil:
    # Notes it for the record.
    cdef StoryC *story = exchange_story(w, x) if x.counted is not NULL else NULL
    cdef FailedC *failed
    if story is not NULL and story.failed_count < FAILED_ROOM:
        failed = &story.failed[story.failed_count]
        failed.backend = x.backend_id
        failed.at = exchange_age(w, x)
        failed.reason = reason
        story.failed_count += 1

cdef void exchange_take_tokens(ExchangeC *x, TokensC *tokens) noexcept nogil:
    # Its tokens are counted there from now on, whatever table comes.
    tokens_release(x.tokens)
    if tokens is not NULL:
        sys_add_shared(&tokens.users, 1)
    x.tokens = tokens

cdef void exchange_count_tokens(WorkerC *w, ExchangeC *x) noexcept nogil:
    # It takes part in the counts of a model no more; what its answer told goes there, and to its pool and backend.
    cdef TokensC *tokens = x.tokens if x.tokens is not NULL else x.table.tokens
    cdef int64_t prompt = -1
    cdef int64_t completion = -1
    cdef int64_t cached = -1
    if x.usage is not NULL:
        usage_total(x.usage, &prompt, &completion, &cached)
        if tokens is not NULL:
            tokens_add(&tokens.counts, prompt, completion, cached)
        if x.series is not NULL:
            tokens_add(&x.series.tokens, prompt, completion, cached)
    tokens_release(x.tokens)        # the last word: it may be freed now
    x.tokens = NULL

cdef void record_fill(WorkerC *w, ExchangeC *x, RecordC *record, const char *address, uint8_t phase, uint8_t outcome,
                      int64_t close_time) noexcept nogil:
    # What there is to say of an exchange.
    record.at = w.now
    record.ttft = x.content_at - x.head_at if x.content_at else -1
    record.duration = w.now - x.begun_at
    record.bytes_up = x.bytes_up
    record.bytes_down = x.bytes_down
    record.close_time = close_time
    record.backend = x.backend_id
    record.status = 499 if outcome == OUTCOME_CLIENT_ABORT else x.status
    record.error = x.error
    record.outcome = outcome
    record.phase = phase
    record.attempts = x.attempts
    record.reason = x.reason
    if x.pool.state is not NULL:
        strcpy(record.pool, x.pool.state.name)
    else:
        record.pool[0] = 0
    record.head = x.head_at - x.begun_at if x.head_at else -1
    record.queued = x.queued
    record.connected = x.connected
    record.responded = x.responded
    record.last = x.last_at - x.begun_at if x.last_at else -1
    record.pieces = x.pieces
    record.prompt = record.completion = record.cached = -1
    if x.usage is not NULL:
        usage_total(x.usage, &record.prompt, &record.completion, &record.cached)
    if x.story is not NULL:
        record.story = x.story[0]
    else:
        record.story.failed_count = record.story.model_length = record.story.trace_length = 0
    record.request_id_length = x.request_id_length
    record.method_length = x.method_length
    record.path_length = x.path_length
    if host_known(&x.origin):
        host_text(&x.origin, record.address, ADDRESS_ROOM)
    else:
        memcpy(record.address, address, ADDRESS_ROOM)
    memcpy(record.request_id, x.request_id, x.request_id_length)
    memcpy(record.method, x.method, x.method_length)
    memcpy(record.path, x.path, x.path_length)

cdef void exchange_record(WorkerC *w, ExchangeC *x, const char *address, uint8_t phase, uint8_t outcome,
                          int64_t close_time) noexcept nogil:
    # Writes the record of an ended exchange: for the access log, and at once for who listens for clients that leave.
    cdef RecordC *record
    cdef bint urgent = outcome == OUTCOME_CLIENT_ABORT and sys_load_acquire(&w.mail.wake_on_abort) != 0
    if not w.settings.access_records and not urgent:
        return
    record = mail_next_record(&w.mail)
    if record is NULL:
        sys_add_counter(&w.stats.records_dropped, 1)
        return
    record.kind = RECORD_EXCHANGE
    record_fill(w, x, record, address, phase, outcome, close_time)
    mail_post(&w.mail, urgent)
