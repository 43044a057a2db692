# host: the Host field and the path that a backend gets: its own Host or the client's (rule B1), and what stands before the path (I5).

cdef void request_copy_head(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Copies the head of a request of which nothing has been sent to w.out.
    cdef BufC *buf = x.up.first
    cdef size_t left = x.head_length
    cdef size_t n
    write_start(&w.out, w.out.data, w.out.size)
    while left:
        n = buf.end - buf.start
        if n > left:
            n = left
        write_bytes(&w.out, buf.data + buf.start, n)
        left -= n
        buf = buf.next
    sys_check(not w.out.full, "a head fits where heads are written")

cdef void request_find(WorkerC *w, ExchangeC *x, const char *name, size_t *at, size_t *length) noexcept nogil:
    # Where the value of a field stands in the head of a request of which nothing has been sent; the field is there, and once. `name`
    # is in lower case, with its colon. w.out has a copy of that head.
    cdef const uint8_t *line = w.out.data
    cdef const uint8_t *end
    cdef size_t n = strlen(name)
    request_copy_head(w, x)
    end = w.out.data + w.out.used
    while not text_same(line, n, name):
        line = <const uint8_t *>memchr(line, c"\n", end - line) + 1
    line += n
    while line[0] == c" " or line[0] == c"\t":
        line += 1
    at[0] = line - w.out.data
    length[0] = <const uint8_t *>memchr(line, c"\n", end - line) - line - 1     # white space behind it does no harm

cdef int request_set_host(WorkerC *w, ExchangeC *x, int slot) noexcept nogil:
    # Gives the request, of which nothing has been sent, the Host that this backend is to get: its own or the client's (rule B1).
    # RC_OK, RC_BAD where the client's own is too long to be kept, -ENOMEM.
    cdef RouteC *route = &x.table.routes[slot]
    cdef bint clients_own = not route.host[0] and not x.no_host
    cdef const uint8_t *host = <const uint8_t *>route.authority
    cdef size_t host_length
    cdef size_t at = 0
    cdef size_t length = 0
    if clients_own and x.host is NULL:
        return RC_OK            # it is there
    request_find(w, x, b"host:", &at, &length)
    if x.host is NULL and not x.no_host:
        if length > BUF_SIZE:
            return RC_BAD
        x.host = buf_get(&w.bufs)
        if x.host is NULL:
            return -ENOMEM
        memcpy(x.host.data, w.out.data + at, length)
        x.host.end = <int>length
    if route.host[0]:
        host = <const uint8_t *>route.host
    host_length = strlen(<const char *>host)
    if clients_own:
        host = x.host.data
        host_length = x.host.end
    if chain_replace(&x.up, &w.bufs, at, length, host, host_length) != RC_OK:
        return -ENOMEM
    x.head_length = <uint32_t>(x.head_length - length + host_length)
    return RC_OK

cdef int request_set_prefix(WorkerC *w, ExchangeC *x, int slot) noexcept nogil:
    # Puts what this backend wants to stand before the path, in the place of what the one before wanted. Nothing of the request has
    # been sent. RC_OK, -ENOMEM.
    cdef RouteC *route = &x.table.routes[slot]
    cdef size_t at = 0
    request_copy_head(w, x)
    while w.out.data[at] != c" ":
        at += 1
    at += 1
    if w.out.data[at] != c"/":
        return RC_OK            # the * of OPTIONS
    if chain_replace(&x.up, &w.bufs, at, x.prefix_length, <const uint8_t *>route.prefix, route.prefix_length) != RC_OK:
        return -ENOMEM
    x.head_length = x.head_length - x.prefix_length + route.prefix_length
    x.prefix_length = route.prefix_length
    return RC_OK
