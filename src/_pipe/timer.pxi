# timer: the wheel that looks at connections whose time may be up.
#
# Nothing is done per event: a connection stays in the slot where it was armed, and when its slot comes round its real
# deadline is computed from its state and the times it keeps (step_expired). If that lies ahead, it is
# armed again. Arming does something only where the new time is before the armed one. A heap was rejected: it costs
# log n for deadlines that are nearly always moved.

cdef struct WorkerC
cdef struct ConnC

cdef void timer_disarm(WorkerC *w, ConnC *conn) noexcept nogil:
    if not conn.due:
        return
    conn.timer_back[0] = conn.timer_next
    if conn.timer_next is not NULL:
        conn.timer_next.timer_back = conn.timer_back
    if w.wheel[conn.slot] is NULL:
        w.wheel_used[conn.slot >> 6] &= ~(<uint64_t>1 << (conn.slot & 63))
    conn.due = 0

cdef void timer_arm(WorkerC *w, ConnC *conn, int64_t when) noexcept nogil:
    # Has `conn` looked at no later than at `when`, or one slot after it; 0 is never.
    cdef int64_t tick
    cdef ConnC *head
    if not when or (conn.due and conn.due <= when):
        return
    timer_disarm(w, conn)
    conn.due = when
    tick = (when >> WHEEL_SHIFT) + 1        # the slot that begins after it
    if tick < w.wheel_tick:
        tick = w.wheel_tick
    if tick >= w.wheel_tick + WHEEL_SLOTS:
        tick = w.wheel_tick + WHEEL_SLOTS - 1
    conn.slot = <uint32_t>(tick & (WHEEL_SLOTS - 1))
    head = w.wheel[conn.slot]
    conn.timer_next = head
    conn.timer_back = &w.wheel[conn.slot]
    if head is not NULL:
        head.timer_back = &conn.timer_next
    w.wheel[conn.slot] = conn
    w.wheel_used[conn.slot >> 6] |= <uint64_t>1 << (conn.slot & 63)

cdef ConnC *timer_pop(WorkerC *w) noexcept nogil:
    # The next connection whose slot has come, disarmed; NULL when there is none left before `now`.
    cdef int64_t last = w.now >> WHEEL_SHIFT
    cdef uint32_t slot
    cdef ConnC *conn
    if last >= w.wheel_tick + WHEEL_SLOTS:
        w.wheel_tick = last - WHEEL_SLOTS + 1
    while w.wheel_tick <= last:
        slot = <uint32_t>(w.wheel_tick & (WHEEL_SLOTS - 1))
        conn = w.wheel[slot]
        if conn is not NULL:
            timer_disarm(w, conn)
            return conn
        w.wheel_tick += 1
    return NULL

cdef int timer_wait(WorkerC *w) noexcept nogil:
    # Milliseconds until the next slot that holds something, -1 where none does.
    cdef int i
    cdef int64_t tick
    cdef uint64_t word
    cdef int shift = <int>(w.wheel_tick & 63)
    cdef int first = <int>((w.wheel_tick & (WHEEL_SLOTS - 1)) >> 6)
    for i in range(WHEEL_WORDS + 1):
        word = w.wheel_used[(first + i) & (WHEEL_WORDS - 1)]
        if i == 0:
            word &= <uint64_t>-1 << shift
        elif i == WHEEL_WORDS:
            word &= ~(<uint64_t>-1 << shift)
        if word:
            tick = (w.wheel_tick & ~<int64_t>63) + i * 64 + sys_lowest_bit(word)
            tick = (tick << WHEEL_SHIFT) - w.now
            return 0 if tick <= 0 else <int>(tick // 1000 + 1)
    return -1
