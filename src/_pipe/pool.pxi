# pool: what holds of all backends of a pool, and what is told of one (rules E and L).

cdef PoolC *pool_now(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The exchange's pool in the worker's table, which may be a newer one than the exchange has.
    return x.pool if x.table is w.table else table_pool(w.table, x.pool.state)

cdef bint exchange_tried(ExchangeC *x, PoolC *pool, int member, BackendC *backend) noexcept nogil:
    # Whether the exchange has tried that member of a pool, which may be that of another table than it has.
    cdef int i
    if pool is x.pool:
        return member_in(x.tried, member)
    for i in range(x.pool.count):
        if member_in(x.tried, i) and x.table.routes[x.pool.members[i].slot].backend is backend:
            return True
    return False

cdef bint pool_has_another(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether there is a backend that this exchange has not tried, and that takes new ones.
    cdef PoolC *pool = pool_now(w, x)
    cdef BackendC *backend
    cdef int i
    for i in range(pool.count):
        backend = w.table.routes[pool.members[i].slot].backend
        if not exchange_tried(x, pool, i, backend) and not sys_load_acquire(&backend.drained):
            return True
    return False

cdef bint pool_idle(TableC *table, PoolC *pool) noexcept nogil:
    # Whether it has no backend that may get a request, now or later: there is none, or all are drained, and nobody waits for that.
    cdef int i
    if not pool.count:
        return pool.state is NULL or not pool.limits.cold_timeout
    for i in range(pool.count):
        if pool.limits.cold_timeout or not sys_load_acquire(&table.routes[pool.members[i].slot].backend.drained):
            return False
    return True

cdef bint pool_ready(TableC *table, PoolC *pool, int64_t now, BackendC *beside) noexcept nogil:
    # Whether any of its backends, beside that one, is neither left out nor drained, nor has yet to show that it is up again.
    cdef BackendC *backend
    cdef int i
    for i in range(pool.count):
        backend = table.routes[pool.members[i].slot].backend
        if (backend is not beside and not backend_out(backend, now) and not sys_load_acquire(&backend.failures)
                and not sys_load_acquire(&backend.drained)):
            return True
    return False

cdef void backend_post(WorkerC *w, BackendC *backend, uint8_t kind, int64_t duration, uint8_t reason, int error) noexcept nogil:
    # Tells the control plane that a backend went or came back.
    cdef RecordC *record = mail_next_record(&w.mail)
    if record is NULL:
        sys_add_counter(&w.stats.records_dropped, 1)
        return
    memset(record, 0, sizeof(RecordC))
    record.kind = kind
    record.at = w.now
    record.backend = backend.id
    record.duration = duration
    record.ttft = -1
    record.close_time = -1
    record.error = error
    record.reason = reason
    mail_post(&w.mail, True)

cdef void backend_failed(WorkerC *w, BackendC *backend, int slot, uint8_t reason, int error) noexcept nogil:
    # Leaves the backend out for a while, and says so where this failure is the one that did it.
    cdef int64_t out = backend_eject(backend, w.now)
    sys_add_counter(&w.stats.backends[slot].failures, 1)
    if out:
        sys_add_counter(&w.stats.backends[slot].ejections, 1)
        backend_post(w, backend, RECORD_BACKEND_DOWN, out, reason, error)

cdef void backend_well(BackendC *backend) noexcept nogil:
    # It has answered with something else than an error of its own; 503 says that it is busy.
    if sys_load_acquire(&backend.errors):
        sys_store_release(&backend.errors, 0)

cdef bint backend_errs(ExchangeC *x) noexcept nogil:
    # Whether it has answered with so many errors in a row that it may be left out.
    cdef uint32_t most = x.pool.limits.eject_errors
    return most and sys_load_acquire(&x.counted.errors) >= most

cdef void backend_erred(WorkerC *w, ExchangeC *x) noexcept nogil:
    # It has answered with an error of its own. After some of them in a row it is left out, if there is another one (rule L1).
    cdef PoolC *pool = pool_now(w, x)
    sys_add_shared(&x.counted.errors, 1)
    if backend_errs(x) and pool_ready(w.table, pool, w.now, x.counted):
        backend_failed(w, x.counted, x.backend, REASON_ERRORS, 0)

cdef bint backend_answered(WorkerC *w, BackendC *backend) noexcept nogil:
    # Whether it had failed before.
    if not backend_recover(backend, w.now):
        return False
    backend_post(w, backend, RECORD_BACKEND_UP, 0, REASON_NONE, 0)
    return True
