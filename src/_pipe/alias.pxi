# alias: the name of a model in a request's body, where its backends know the model by another one (rule J1).

cdef int request_merge_chunks(WorkerC *w, ExchangeC *x, int64_t more) noexcept nogil:
    # Makes one chunk of all that is there of a chunked body, which will be so many bytes longer; what is still to come of the
    # client's last chunk belongs to it too. RC_OK or -ENOMEM.
    cdef ChainC made
    cdef BodyC body
    cdef BufC *buf
    cdef BufC *end = NULL           # where the data ends, and the framing behind it begins
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef size_t used
    cdef size_t skip = x.head_length
    cdef size_t end_at = 0
    cdef char size[24]
    cdef bint inside = x.up_body.chunk.state == CHUNK_DATA      # of a chunk: its rest is still to come
    cdef int rc = RC_OK
    memset(&made, 0, sizeof(made))
    made.replayable = x.up.replayable
    body_begin(&body, FRAMING_CHUNKED, 0)
    snprintf(size, sizeof(size), "%llx\r\n", <unsigned long long>(body_announced(&x.up_body) + more))
    buf = x.up.first
    while buf is not NULL and rc == RC_OK:
        used = 0
        if skip:
            used = buf.end - buf.start
            if used > skip:
                used = skip
            rc = chain_copy(&made, &w.bufs, buf.data + buf.start, used)
            skip -= used
            if not skip and rc == RC_OK:
                x.head_length = made.total
                rc = chain_copy(&made, &w.bufs, <const uint8_t *>size, strlen(size))
        while (rc == RC_OK and not skip
                and body_follow(&body, buf.data + buf.start, buf.end - buf.start, &used, &piece, &length) == RC_OK):
            rc = chain_copy(&made, &w.bufs, piece, length)
            end = buf
            end_at = used
        buf = buf.next
    if not inside:
        while end is not NULL and rc == RC_OK:
            rc = chain_copy(&made, &w.bufs, end.data + end.start + end_at, end.end - end.start - end_at)
            end = end.next
            end_at = 0
    if rc != RC_OK:
        chain_clear(&made, &w.bufs)
        return -ENOMEM
    chain_clear(&x.up, &w.bufs)
    x.up = made
    return RC_OK

cdef int request_rename(WorkerC *w, ExchangeC *x, const ModelC *model) noexcept nogil:
    # Puts the name that the backends know in the place of the one that the client gave, and makes the body's length agree. Nothing
    # of the request has been sent. RC_OK or -ENOMEM.
    cdef JsonC *json = x.json
    cdef int64_t more = <int64_t>model.target_length - (json.to_at - json.from_at)
    cdef size_t at = 0
    cdef size_t length = 0
    cdef char digits[24]
    if x.up_body.framing == FRAMING_CHUNKED:
        if request_merge_chunks(w, x, more) != RC_OK:
            return -ENOMEM
        snprintf(digits, sizeof(digits), "%llx\r\n", <unsigned long long>(body_announced(&x.up_body) + more))
        at = strlen(digits)
    if chain_replace(&x.up, &w.bufs, x.head_length + at + json.from_at, json.to_at - json.from_at,
                     model.target, model.target_length) != RC_OK:
        return -ENOMEM
    if x.up_body.framing == FRAMING_LENGTH and more:
        request_find(w, x, b"content-length:", &at, &length)
        snprintf(digits, sizeof(digits), "%llu", <unsigned long long>(body_announced(&x.up_body) + more))
        if chain_replace(&x.up, &w.bufs, at, length, <const uint8_t *>digits, strlen(digits)) != RC_OK:
            return -ENOMEM
        x.head_length = <uint32_t>(x.head_length - length + strlen(digits))
    return RC_OK
