# kept: what is kept of a request to send it again, and the process's budget for that (rule B2).

cdef void request_count_kept(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Counts what the exchange keeps to send again in the process's budget. What fits into one buffer does not count: a client
    # costs that anyway, and short requests, which are most, touch nothing that workers share.
    cdef uint32_t kept = x.up.total if (x.up.replayable or x.held) and x.up.total > BUF_SIZE else 0
    if kept != x.kept:
        sys_add_shared_counter(&w.shared.kept, <uint64_t>kept - x.kept)
        x.kept = kept

cdef bint request_keeps(WorkerC *w, ExchangeC *x, uint64_t total, uint64_t more) noexcept nogil:
    # Whether a request may be kept that is so long, or would be with so many bytes more (rule B2).
    if total > <uint64_t>x.pool.limits.failover_body + w.settings.max_head:
        return False
    return not w.shared.kept_most or total <= BUF_SIZE or sys_read_counter(&w.shared.kept) + more <= w.shared.kept_most

cdef void request_forget(WorkerC *w, ExchangeC *x) noexcept nogil:
    # It will not be sent again: keeps only what was not sent.
    chain_forget(&x.up, &w.bufs)
    request_count_kept(w, x)
