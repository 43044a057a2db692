# inbox: heads that come in parts, on either side.
#
# A recv goes into the hot buffer where the inbox is empty, else behind what the inbox holds. Only a head that is not
# whole after its first recv costs a buffer, and only one longer than a buffer costs a wide area.

cdef enum:
    WIDES_WARM = 8          # free areas that are kept; the memory of others goes back to the system

cdef size_t wide_size(WorkerC *w) noexcept nogil:
    # Room for the longest head of either side.
    return w.settings.max_head if w.settings.max_head > w.settings.max_response_head else w.settings.max_response_head

cdef uint8_t *wide_get(WorkerC *w) noexcept nogil:
    # wide_size() bytes, or NULL. The first word of a free one links it to the next.
    cdef void *area = w.wides
    if area is not NULL:
        w.wides = (<void **>area)[0]
        w.wides_free -= 1
    else:
        area = mmap(NULL, wide_size(w), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if area == MAP_FAILED:
            return NULL
    w.wides_held += 1
    return <uint8_t *>area

cdef void wide_put(WorkerC *w, uint8_t *wide) noexcept nogil:
    w.wides_held -= 1
    if w.wides_free == WIDES_WARM:
        munmap(wide, wide_size(w))
        return
    (<void **>wide)[0] = w.wides
    w.wides = wide
    w.wides_free += 1

cdef void inbox_clear(WorkerC *w, InboxC *inbox) noexcept nogil:
    if inbox.buf is not NULL:
        buf_put(&w.bufs, inbox.buf)
        inbox.buf = NULL
    if inbox.wide is not NULL:
        wide_put(w, inbox.wide)
        inbox.wide = NULL
    inbox.scanned = 0

cdef void inbox_drop(WorkerC *w, InboxC *inbox, int why) noexcept nogil:
    # As inbox_clear, of bytes that nobody has read.
    if inbox.wide is not NULL:
        discard(&w.stats, why, inbox.wide_used)
    elif inbox.buf is not NULL:
        discard(&w.stats, why, inbox.buf.end - inbox.buf.start)
    inbox_clear(w, inbox)

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

# One recv behind what the inbox holds. Then *data and *n are all the bytes that wait to be read.
# More than 0, 0 for a FIN, -EAGAIN, -errno; -ENOMEM where no memory could be had.
cdef ssize_t inbox_recv(WorkerC *w, InboxC *inbox, int fd, uint8_t **data, size_t *n) noexcept nogil:
    cdef ssize_t got
    cdef size_t room
    cdef BufC *buf = inbox.buf
    if buf is not NULL and buf.end == BUF_SIZE:
        if buf.start:
            memmove(buf.data, buf.data + buf.start, buf.end - buf.start)
            buf.end -= buf.start
            buf.start = 0
        else:
            inbox.wide = wide_get(w)
            if inbox.wide is NULL:
                return -ENOMEM
            memcpy(inbox.wide, buf.data, BUF_SIZE)
            inbox.wide_used = BUF_SIZE
            inbox.buf = NULL
            buf_put(&w.bufs, buf)
    if inbox.wide is not NULL:
        room = wide_size(w) - inbox.wide_used
        got = io_recv(fd, inbox.wide + inbox.wide_used, room if room < BUF_SIZE else BUF_SIZE)
        data[0] = inbox.wide
        if got > 0:
            inbox.wide_used += <uint32_t>got
        n[0] = inbox.wide_used
    elif inbox.buf is not NULL:
        got = io_recv(fd, buf.data + buf.end, BUF_SIZE - buf.end)
        data[0] = buf.data + buf.start
        if got > 0:
            buf.end += <int>got
        n[0] = buf.end - buf.start
    else:
        got = io_recv(fd, w.hot.data, BUF_SIZE)
        data[0] = w.hot.data
        n[0] = got if got > 0 else 0
    return got

cdef int inbox_keep(WorkerC *w, InboxC *inbox, const uint8_t *data, size_t n) noexcept nogil:
    # Keeps data[0:n], the end of what inbox_recv gave, for later; the rest was read. RC_OK or -ENOMEM.
    cdef BufC *buf
    inbox.scanned = 0
    if n == 0:
        inbox_clear(w, inbox)
    elif inbox.wide is not NULL:
        if data == inbox.wide:
            return RC_OK
        # What stands behind a long head came with its last recv, and is no longer than a buffer.
        buf = buf_get(&w.bufs)
        if buf is NULL:
            return -ENOMEM
        memcpy(buf.data, data, n)
        buf.end = <int>n
        wide_put(w, inbox.wide)
        inbox.wide = NULL
        inbox.buf = buf
    elif inbox.buf is not NULL:
        inbox.buf.start = <int>(data - inbox.buf.data)
    else:
        buf = w.hot
        if hot_replace(w) != RC_OK:
            return -ENOMEM
        buf.start = <int>(data - buf.data)
        buf.end = buf.start + <int>n
        inbox.buf = buf
    return RC_OK

cdef bint inbox_holds(InboxC *inbox, uint8_t **data, size_t *n) noexcept nogil:
    # Whether bytes wait to be read, and which.
    if inbox.wide is not NULL:
        data[0] = inbox.wide
        n[0] = inbox.wide_used
    elif inbox.buf is not NULL:
        data[0] = inbox.buf.data + inbox.buf.start
        n[0] = inbox.buf.end - inbox.buf.start
    else:
        return False
    return True

cdef void wide_free_all(WorkerC *w) noexcept nogil:
    cdef void *area
    while w.wides is not NULL:
        area = w.wides
        w.wides = (<void **>area)[0]
        munmap(area, wide_size(w))
