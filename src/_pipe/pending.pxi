# pending: what was received and not yet read, and what is read only to be thrown away.
#
# A recv goes into the hot buffer where nothing is pending, else behind what is. Only a head that is not
# whole after its first recv costs a buffer, and only one longer than a buffer costs an area of its own.

cdef enum:
    LONG_HEADS_WARM = 8     # free areas that are kept; the memory of others goes back to the system

# Bytes that were received and not yet read: a head in parts, or a request behind the one that is being answered. In the
# usual case a head comes whole, into the worker's hot buffer, and nothing is pending.
cdef struct PendingC:
    BufC *buf
    uint8_t *long_head      # instead of `buf`, for a head longer than a buffer: long_head_size() bytes
    uint32_t long_used
    uint32_t scanned        # bytes in which head_scan found no end

cdef size_t long_head_size(WorkerC *w) noexcept nogil:
    # Room for the longest head of either side.
    return w.settings.max_head if w.settings.max_head > w.limits.max_response_head else w.limits.max_response_head

cdef uint8_t *long_head_get(WorkerC *w) noexcept nogil:
    # long_head_size() bytes, or NULL. The first word of a free one links it to the next.
    cdef void *area = w.long_heads
    if area is not NULL:
        w.long_heads = (<void **>area)[0]
        w.long_heads_free -= 1
    else:
        area = mmap(NULL, long_head_size(w), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if area == MAP_FAILED:
            return NULL
    w.long_heads_held += 1
    return <uint8_t *>area

cdef void long_head_put(WorkerC *w, uint8_t *area) noexcept nogil:
    w.long_heads_held -= 1
    if w.long_heads_free == LONG_HEADS_WARM:
        munmap(area, long_head_size(w))
        return
    (<void **>area)[0] = w.long_heads
    w.long_heads = area
    w.long_heads_free += 1

cdef inline bint pending_empty(PendingC *pending) noexcept nogil:
    return pending.buf is NULL and pending.long_head is NULL

cdef void pending_free(WorkerC *w, PendingC *pending) noexcept nogil:
    if pending.buf is not NULL:
        buf_put(&w.bufs, pending.buf)
        pending.buf = NULL
    if pending.long_head is not NULL:
        long_head_put(w, pending.long_head)
        pending.long_head = NULL

cdef inline void pending_clear(WorkerC *w, PendingC *pending) noexcept nogil:
    # All in it was read; mostly it holds nothing.
    pending.scanned = 0
    if not pending_empty(pending):
        pending_free(w, pending)

cdef void pending_drop(WorkerC *w, PendingC *pending, int why) noexcept nogil:
    # As pending_clear, of bytes that nobody has read.
    if pending.long_head is not NULL:
        discard(&w.stats, why, pending.long_used)
    elif pending.buf is not NULL:
        discard(&w.stats, why, pending.buf.end - pending.buf.start)
    pending_clear(w, pending)

cdef int hot_replace(WorkerC *w) noexcept nogil:
    # Another hot buffer for one that somebody keeps. On -ENOMEM the old one stays the worker's.
    cdef BufC *buf = buf_get(&w.bufs)
    if buf is NULL:
        return -ENOMEM
    w.hot = buf
    return RC_OK

cdef int chain_take_hot(WorkerC *w, ChainC *chain, const uint8_t *data, size_t n) noexcept nogil:
    # Appends data[0:n], which may lie in the hot buffer: then the buffer itself goes, no byte is copied.
    cdef BufC *buf = w.hot
    if data < buf.data or data >= buf.data + BUF_SIZE:
        return chain_copy(chain, &w.bufs, data, n)
    if hot_replace(w) != RC_OK:
        return -ENOMEM
    buf.start = <int>(data - buf.data)
    buf.end = buf.start + <int>n
    return chain_take(chain, buf)

# One recv behind what is pending. Then *data and *n are all the bytes that wait to be read.
# More than 0, 0 for a FIN, -EAGAIN, -errno; -ENOMEM where no memory could be had.
cdef ssize_t pending_recv(WorkerC *w, PendingC *pending, ConnC *conn, uint8_t **data, size_t *n) noexcept nogil:
    cdef ssize_t got
    cdef size_t room
    cdef BufC *buf = pending.buf
    if buf is not NULL and buf.end == BUF_SIZE:
        if buf.start:
            memmove(buf.data, buf.data + buf.start, buf.end - buf.start)
            buf.end -= buf.start
            buf.start = 0
        else:
            pending.long_head = long_head_get(w)
            if pending.long_head is NULL:
                return -ENOMEM
            memcpy(pending.long_head, buf.data, BUF_SIZE)
            pending.long_used = BUF_SIZE
            pending.buf = NULL
            buf_put(&w.bufs, buf)
    if pending.long_head is not NULL:
        room = long_head_size(w) - pending.long_used
        got = conn_recv(conn, pending.long_head + pending.long_used, room if room < BUF_SIZE else BUF_SIZE)
        data[0] = pending.long_head
        if got > 0:
            pending.long_used += <uint32_t>got
        n[0] = pending.long_used
    elif pending.buf is not NULL:
        got = conn_recv(conn, buf.data + buf.end, BUF_SIZE - buf.end)
        data[0] = buf.data + buf.start
        if got > 0:
            buf.end += <int>got
        n[0] = buf.end - buf.start
    else:
        got = conn_recv(conn, w.hot.data, BUF_SIZE)
        data[0] = w.hot.data
        n[0] = got if got > 0 else 0
    return got

cdef int pending_keep(WorkerC *w, PendingC *pending, const uint8_t *data, size_t n) noexcept nogil:
    # Keeps data[0:n], the end of what pending_recv gave, for later; the rest was read. RC_OK or -ENOMEM.
    cdef BufC *buf
    pending.scanned = 0
    if n == 0:
        pending_clear(w, pending)
    elif pending.long_head is not NULL:
        if data == pending.long_head:
            return RC_OK
        if n > BUF_SIZE:
            memmove(pending.long_head, data, n)
            pending.long_used = <uint32_t>n
            return RC_OK
        buf = buf_get(&w.bufs)
        if buf is NULL:
            return -ENOMEM
        memcpy(buf.data, data, n)
        buf.end = <int>n
        long_head_put(w, pending.long_head)
        pending.long_head = NULL
        pending.buf = buf
    elif pending.buf is not NULL:
        pending.buf.start = <int>(data - pending.buf.data)
    else:
        buf = w.hot
        if hot_replace(w) != RC_OK:
            return -ENOMEM
        buf.start = <int>(data - buf.data)
        buf.end = buf.start + <int>n
        pending.buf = buf
    return RC_OK

cdef bint pending_holds(PendingC *pending, uint8_t **data, size_t *n) noexcept nogil:
    # Whether bytes wait to be read, and which.
    if pending.long_head is not NULL:
        data[0] = pending.long_head
        n[0] = pending.long_used
    elif pending.buf is not NULL:
        data[0] = pending.buf.data + pending.buf.start
        n[0] = pending.buf.end - pending.buf.start
    else:
        return False
    return True

cdef size_t body_waste(WorkerC *w, BodyC *body, const uint8_t *data, size_t n, int why) noexcept nogil:
    # Throws data[0:n] away: what belongs to `body` counts as `why`, what stands behind it as such. How much belongs to it.
    cdef size_t used = body_skip(body, data, n)
    discard(&w.stats, why, used)
    discard(&w.stats, DISCARD_BEHIND_REQUEST, n - used)
    return used

cdef ssize_t waste_read(WorkerC *w, ConnC *conn, BodyC *body, int why, bint body_only, size_t *wasted) noexcept nogil:
    # Reads a turn's share and throws it away, as body_waste() does. With `body_only` nothing behind the body's end is read.
    # -EAGAIN where nothing is there now, or the next turn goes on; 0 for a FIN; -errno.
    cdef ssize_t got
    cdef int i
    for i in range(TURN_READS):
        if not conn.readable or (body_only and body.done):
            return -EAGAIN
        got = conn_recv(conn, w.hot.data, BUF_SIZE)
        if got <= 0:
            return got
        wasted[0] += got
        body_waste(w, body, w.hot.data, got, why)
    conn_queue(w, conn)
    return -EAGAIN

cdef void long_head_free_all(WorkerC *w) noexcept nogil:
    cdef void *area
    while w.long_heads is not NULL:
        area = w.long_heads
        w.long_heads = (<void **>area)[0]
        munmap(area, long_head_size(w))
