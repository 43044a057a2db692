# place: a client's place: what counts it, in all and of its address, and gives it back.

cdef void place_free(WorkerC *w, uint16_t refuse_status, QuotaC *quota) noexcept nogil:
    # A client connection that was counted when it was accepted is no more.
    if refuse_status:
        sys_add_counter(&w.stats.refused_closed, 1)
    if quota is not NULL:
        sys_add_shared(&quota.refused if refuse_status else &quota.served, <uint32_t>-1)
    sys_add_counter(&w.stats.closed, 1)

cdef void place_take(WorkerC *w, QuotaC *quota) noexcept nogil:
    # Something takes one more place among the clients, and place_free() gives it back. Only while the client itself is
    # counted: an entry whose counts are 0 may be freed at any time.
    if quota is not NULL:
        sys_add_shared(&quota.served, 1)
    sys_add_counter(&w.stats.closed, <uint64_t>-1)
