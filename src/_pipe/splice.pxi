# splice: changes in a request's body before it is sent: the name of a model, where its backends know another one (rule J1), and the
# usage that is asked for (rule Q2).

cdef struct SpliceC:
    int64_t from_at             # in the body, without its chunks' framing
    int64_t to_at
    const uint8_t *data         # what is put there
    size_t n

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

cdef int request_splice(WorkerC *w, ExchangeC *x, const SpliceC *splices, int count) noexcept nogil:
    # Makes the changes, the last place in the body first, and makes its length agree. Nothing of the request has been sent. RC_OK or
    # -ENOMEM.
    cdef int64_t more = 0
    cdef size_t at = 0
    cdef size_t length = 0
    cdef char digits[24]
    cdef int i
    for i in range(count):
        more += <int64_t>splices[i].n - (splices[i].to_at - splices[i].from_at)
    if x.up_body.framing == FRAMING_CHUNKED:
        if request_merge_chunks(w, x, more) != RC_OK:
            return -ENOMEM
        snprintf(digits, sizeof(digits), "%llx\r\n", <unsigned long long>(body_announced(&x.up_body) + more))
        at = strlen(digits)
    for i in range(count):
        if chain_replace(&x.up, &w.bufs, x.head_length + at + splices[i].from_at, splices[i].to_at - splices[i].from_at,
                         splices[i].data, splices[i].n) != RC_OK:
            return -ENOMEM
    if x.up_body.framing == FRAMING_LENGTH and more:
        request_find(w, x, b"content-length:", &at, &length)
        snprintf(digits, sizeof(digits), "%llu", <unsigned long long>(body_announced(&x.up_body) + more))
        if chain_replace(&x.up, &w.bufs, at, length, <const uint8_t *>digits, strlen(digits)) != RC_OK:
            return -ENOMEM
        x.head_length = <uint32_t>(x.head_length - length + strlen(digits))
    return RC_OK
