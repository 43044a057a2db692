# timer: a binary heap of what is due, and when.
#
# Here, and not in the engine, times are exact: an event must be sent when it is due, so a wheel will not do.

cdef void timer_place(LoadC *load, size_t at, EndC *end) noexcept nogil:
    load.heap[at] = end
    end.timer = at

cdef void timer_sift(LoadC *load, size_t at) noexcept nogil:
    # Moves the entry to where it belongs, up or down.
    cdef EndC *end = load.heap[at]
    cdef size_t child
    while at > 1 and load.heap[at >> 1].due > end.due:
        timer_place(load, at, load.heap[at >> 1])
        at >>= 1
    while True:
        child = at * 2
        if child > load.heap_count:
            break
        if child < load.heap_count and load.heap[child + 1].due < load.heap[child].due:
            child += 1
        if load.heap[child].due >= end.due:
            break
        timer_place(load, at, load.heap[child])
        at = child
    timer_place(load, at, end)

cdef void timer_clear(LoadC *load, EndC *end) noexcept nogil:
    cdef size_t at = end.timer
    cdef EndC *last
    if not at:
        return
    end.timer = 0
    last = load.heap[load.heap_count]
    load.heap_count -= 1
    if last is not end:
        timer_place(load, at, last)
        timer_sift(load, at)

cdef int timer_set(LoadC *load, EndC *end, int64_t due) noexcept nogil:
    # Each end has one time at most. RC_OK or -ENOMEM.
    cdef EndC **grown
    end.due = due
    if not end.timer:
        if load.heap_count + 1 >= load.heap_room:
            grown = <EndC **>realloc(load.heap, sizeof(EndC *) * (load.heap_room * 2 + 1024))
            if grown is NULL:
                return -ENOMEM
            load.heap = grown
            load.heap_room = load.heap_room * 2 + 1024
        load.heap_count += 1
        timer_place(load, load.heap_count, end)
    timer_sift(load, end.timer)
    return RC_OK
