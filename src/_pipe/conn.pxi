# conn: a connection, its one reader and its one writer, and its open and close.
#
# A client connection lives from adopt to close; an upstream from connect to close, through many exchanges. A closed connection is
# parked, and freed at the end of the turn: the same batch of events may name it once more. Times are microseconds of
# CLOCK_MONOTONIC, 0 for not yet.

cdef enum:
    ADDRESS_ROOM = 46       # text of an IPv6 address, and its NUL
    METHOD_ROOM = 16        # longer ones are cut in the log
    PATH_ROOM = 96          # the same
    REQUEST_ID_ROOM = 64    # a longer X-Request-ID is replaced
    MODEL_SHOWN = 48        # of a model's name, in a record
    TRACE_ROOM = 55         # a traceparent of version 00 (W3C Trace Context, section 3.2)
    FAILED_ROOM = 3         # attempts that failed, in a record
    CONTENT_TYPE_ROOM = 64  # of an answer, in a recording
    MAX_ADDRESSES = 8
    AUTHORITY_ROOM = 264    # a host name, a colon and a port
    PREFIX_ROOM = 256

cdef struct ExchangeC

# What both kinds of connection begin with; epoll hands its address back.
cdef struct ConnC:
    int fd
    uint8_t kind            # CONN_*
    uint8_t closed          # parked: its descriptor is closed, its memory is freed at the end of the turn
    uint8_t readable        # epoll said so, and no recv has come back short since
    uint8_t writable        # the same of a send; False before the connect has ended
    uint8_t hung_up         # FIN or RST seen
    uint8_t failed          # an error waits in the socket: mostly an RST
    uint8_t to_end          # a short recv does not say that nothing is left: hung up, or an urgent byte cuts a recv short
    uint8_t queued          # in the list of connections that have work left
    uint32_t slot           # of the timer wheel, where armed
    int64_t due             # when the wheel looks at it, 0 where not armed
    ConnC *timer_next
    ConnC **timer_back      # what points to this one
    ConnC *busy_next        # in the list of connections with work left
    ConnC *all_next         # in the list of all connections, or of the parked ones
    ConnC **all_back
    ExchangeC *exchange     # borrowed

cdef void conn_open(WorkerC *w, ConnC *conn, int fd, uint8_t kind) noexcept nogil:
    conn.fd = fd
    conn.kind = kind
    conn.all_next = w.all
    conn.all_back = &w.all
    if w.all is not NULL:
        w.all.all_back = &conn.all_next
    w.all = conn

cdef void conn_close(WorkerC *w, ConnC *conn, bint reset) noexcept nogil:
    # Closes the descriptor and parks the struct. The exchange's pointer to it is the caller's to clear.
    timer_disarm(w, conn)
    if reset:
        io_reset(conn.fd)
    else:
        io_close(conn.fd)
    conn.closed = True
    conn.exchange = NULL
    conn.all_back[0] = conn.all_next
    if conn.all_next is not NULL:
        conn.all_next.all_back = conn.all_back
    conn.all_next = w.parked
    w.parked = conn

cdef void conn_queue(WorkerC *w, ConnC *conn) noexcept nogil:
    # Has the connection looked at again in the next turn, though no event will name it.
    if conn.queued:
        return
    conn.queued = True
    conn.busy_next = NULL
    w.busy_end[0] = conn
    w.busy_end = &conn.busy_next

# ------------------------------------------------------------------------------------------- the reader and the writer
#
# These functions are the only ones that read and write a connection, and the only writers of `readable`, `writable`,
# `hung_up`, `failed` and `to_end`. What a kind of connection does in another way than a plain socket belongs here.

cdef void conn_told(ConnC *conn, uint32_t events) noexcept nogil:
    # What epoll reports: flags that stay until a recv or a send finds nothing left.
    if events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        conn.readable = True
        if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            conn.hung_up = conn.to_end = True
            if events & EPOLLERR:
                conn.failed = True
        if events & EPOLLPRI:
            conn.to_end = True      # a recv stops before an urgent byte
    if events & EPOLLOUT:
        conn.writable = True

cdef void conn_connected(ConnC *conn) noexcept nogil:
    # Its connect ended at once, which no event has told yet.
    conn.writable = True

cdef void conn_reread(ConnC *conn) noexcept nogil:
    # Has it read once more: a send has met what no event tells of again.
    conn.readable = True

cdef ssize_t conn_recv(ConnC *conn, void *data, size_t n) noexcept nogil:
    # Bytes received, at most n; 0 for a FIN, -EAGAIN for nothing now, -errno where the connection is lost. After fewer than n
    # nothing is left.
    cdef ssize_t got = io_recv_into(conn.fd, data, n)
    if got < <ssize_t>n and (got == -EAGAIN or (got > 0 and not conn.to_end)):
        conn.readable = False
    return got

cdef ssize_t conn_peek(ConnC *conn, void *data, size_t n) noexcept nogil:
    # As conn_recv, but the bytes stay; conn_discard() takes them.
    cdef ssize_t got = io_peek(conn.fd, data, n)
    if got == -EAGAIN:
        conn.readable = False
    return got

cdef ssize_t conn_discard(ConnC *conn, void *scratch, size_t n) noexcept nogil:
    # Takes n bytes that conn_peek has shown: n, or an error.
    return io_discard(conn.fd, scratch, n)

cdef ssize_t conn_probe(ConnC *conn) noexcept nogil:
    # Whether anything waits to be received: 1 for bytes, 0 for a FIN, -EAGAIN for nothing, -errno.
    cdef uint8_t byte
    return conn_peek(conn, &byte, 1)

cdef ssize_t conn_send(ConnC *conn, const void *data, size_t n) noexcept nogil:
    # Bytes taken, 0 where there is no room, -EPIPE or -ECONNRESET where the peer is gone.
    cdef ssize_t took = io_send(conn.fd, data, n)
    if took == <ssize_t>n:
        return took
    conn.writable = False
    return 0 if took == -EAGAIN else took

cdef ssize_t conn_send_chain(ConnC *conn, ChainC *chain, BufSlabC *slab) noexcept nogil:
    # Sends what is unsent, buffer by buffer, until the socket takes no more: bytes taken, or -errno. What it took before an
    # error has left the chain too.
    cdef ssize_t took
    cdef ssize_t total = 0
    cdef size_t n
    while chain.unsent:
        n = chain.at.end - chain.at_pos
        took = conn_send(conn, chain.at.data + chain.at_pos, n) if n else 0
        if took < 0:
            return took
        chain_sent(chain, slab, took)
        total += took
        if <size_t>took < n:
            break
    return total

cdef int conn_error(ConnC *conn) noexcept nogil:
    # The error that waits in its socket, which is told once: 0 or the errno. So a connect tells how it ended.
    conn.failed = False
    return -io_error(conn.fd)

cdef void conn_shut(ConnC *conn) noexcept nogil:
    # Sends our FIN behind all that was sent; the peer may still send.
    io_shut(conn.fd)

cdef int conn_accept(ConnC *conn, sockaddr_storage *peer) noexcept nogil:
    # The next connection that waits at a listening socket, and its peer's address; or -errno.
    cdef int fd = io_accept(conn.fd, peer)
    if fd == -EAGAIN:
        conn.readable = False
    return fd
