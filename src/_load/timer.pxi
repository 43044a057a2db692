# timer: a binary heap of what is due, and when.
#
# Here, and not in the engine, times are exact: an event must be sent when it is due, so a wheel will not do.

cdef void timer_place(LoadC *load, size_t at, ConnC *conn) noexcept nogil:
    load.heap[at] = conn
    conn.timer = at

cdef void timer_sift(LoadC *load, size_t at) noexcept nogil:
    # Moves the entry to where it belongs, up or down.
    cdef ConnC *conn = load.heap[at]
    cdef size_t child
    while at > 1 and load.heap[at >> 1].due > conn.due:
        timer_place(load, at, load.heap[at >> 1])
        at >>= 1
    while True:
        child = at * 2
        if child > load.heap_count:
            break
        if child < load.heap_count and load.heap[child + 1].due < load.heap[child].due:
            child += 1
        if load.heap[child].due >= conn.due:
            break
        timer_place(load, at, load.heap[child])
        at = child
    timer_place(load, at, conn)

cdef void timer_clear(LoadC *load, ConnC *conn) noexcept nogil:
    cdef size_t at = conn.timer
    cdef ConnC *last
    if not at:
        return
    conn.timer = 0
    last = load.heap[load.heap_count]
    load.heap_count -= 1
    if last is not conn:
        timer_place(load, at, last)
        timer_sift(load, at)

cdef int timer_set(LoadC *load, ConnC *conn, int64_t due) noexcept nogil:
    # Each connection has one time at most. RC_OK or -ENOMEM.
    cdef ConnC **grown
    conn.due = due
    if not conn.timer:
        if load.heap_count + 1 >= load.heap_room:
            grown = <ConnC **>realloc(load.heap, sizeof(ConnC *) * (load.heap_room * 2 + 1024))
            if grown is NULL:
                return -ENOMEM
            load.heap = grown
            load.heap_room = load.heap_room * 2 + 1024
        load.heap_count += 1
        timer_place(load, load.heap_count, conn)
    timer_sift(load, conn.timer)
    return RC_OK
