# body: the framing of a message body (RFC 9112 section 6), followed so that its end is known. Requests, responses, what is
# thrown away and the load generator follow theirs here.

cdef struct BodyC:
    int64_t total           # bytes of the body so far, without the chunks' framing
    ChunkC chunk            # of a body with a Content-Length only `left` is used: it is one chunk
    uint8_t framing         # FRAMING_*
    uint8_t sse             # SSE_*, of an event stream
    uint8_t done            # its end was seen

cdef void body_begin(BodyC *body, uint8_t framing, int64_t length) noexcept nogil:
    # The body behind a head that says so; `length` is its Content-Length.
    memset(body, 0, sizeof(BodyC))
    body.framing = framing
    if framing == FRAMING_LENGTH:
        body.chunk.left = <uint64_t>length
    body.done = framing == FRAMING_NONE or (framing == FRAMING_LENGTH and length == 0)

# The next piece of the body in data[0:n], of which `used` bytes were followed before; they are counted on. RC_OK with the piece;
# RC_AGAIN where all was followed and more is to come; RC_DONE at the body's end, behind which nothing was looked at; RC_BAD.
cdef inline int body_follow(BodyC *body, const uint8_t *data, size_t n, size_t *used, const uint8_t **piece,
                     size_t *length) noexcept nogil:
    cdef int rc
    if body.framing == FRAMING_CHUNKED and not body.done:
        rc = chunk_next(&body.chunk, data, n, used, piece, length)
        if rc == RC_OK:
            body.total += length[0]
        elif rc == RC_DONE:
            body.done = True
        return rc
    if body.done:
        return RC_DONE
    if used[0] == n:
        return RC_AGAIN
    piece[0] = data + used[0]
    length[0] = n - used[0]
    if body.framing == FRAMING_LENGTH:
        if length[0] >= body.chunk.left:
            length[0] = <size_t>body.chunk.left
            body.done = True
        body.chunk.left -= length[0]
    used[0] += length[0]
    body.total += length[0]
    return RC_OK

cdef uint64_t body_announced(const BodyC *body) noexcept nogil:
    # Bytes of the body that have come, and those that are known to come: the rest of a Content-Length, or of a chunk.
    cdef uint64_t length = <uint64_t>body.total
    if body.framing == FRAMING_LENGTH or body.chunk.state == CHUNK_DATA:
        length += body.chunk.left
    return length

cdef size_t body_skip(BodyC *body, const uint8_t *data, size_t n) noexcept nogil:
    # Follows a body that nobody wants: how many of the bytes belong to it. From a broken chunk on, all do.
    cdef const uint8_t *piece = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef int rc = RC_OK
    while rc == RC_OK and not body.done:
        rc = body_follow(body, data, n, &used, &piece, &length)
    if rc == RC_BAD:
        body.framing = FRAMING_CLOSE
        return n
    return used
