# pool: the choice of a backend, and what is told of one (rule K).

cdef PoolC *pool_now(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The exchange's pool in the worker's table, which may be a newer one than the exchange has.
    return x.pool if x.table is w.table else table_pool(w.table, x.pool.state)

cdef bint pool_has_another(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether there is a backend that this exchange has not tried, and that takes new ones.
    cdef PoolC *pool = pool_now(w, x)
    cdef int slot
    cdef int i
    for i in range(pool.count):
        slot = pool.members[i].slot
        if not (x.tried[slot >> 6] >> (slot & 63)) & 1 and not sys_load_acquire(&w.table.routes[slot].backend.drained):
            return True
    return False

cdef int pool_turn(PoolC *pool, uint32_t turn) noexcept nogil:
    # The member whose turn it is.
    cdef int i
    for i in range(pool.count):
        if turn - pool.members[i].first_turn < pool.members[i].weight:
            return i
    return 0            # it was counted up with the table of a worker that has a longer one

cdef bint pool_idle(TableC *table, PoolC *pool) noexcept nogil:
    # Whether it has no backend that may get a request, now or later: there is none, or all are drained, and nobody waits for that.
    cdef int i
    for i in range(pool.count):
        if pool.limits.cold_timeout or not sys_load_acquire(&table.routes[pool.members[i].slot].backend.drained):
            return False
    return True

cdef bint pool_full(TableC *table, PoolC *pool) noexcept nogil:
    # Whether all its backends together have as many exchanges as they may have.
    cdef uint32_t total = 0
    cdef int i
    if not pool.limits.max_in_flight:
        return False
    for i in range(pool.count):
        total += sys_load_ordered(&table.routes[pool.members[i].slot].backend.in_flight)
    return total >= pool.limits.max_in_flight

cdef int pool_reserve(TableC *table, PoolC *pool, const uint64_t *tried, int64_t now) noexcept nogil:
    # The slot of the backend of the pool that is to work on an exchange, with that one counted: one that is not left out, of the
    # lowest tier, with the fewest exchanges in flight for its weight. Equals take turns, each as many as its weight says. None of
    # those that are `tried` (NULL: of none), and none that is drained. SLOT_NONE where none is left, SLOT_BUSY where it has to wait:
    # for a place, or for one that is up.
    cdef RouteC *route
    cdef MemberC *member
    cdef MemberC *best
    cdef BackendC *backend = NULL
    cdef uint32_t fewest = 0
    cdef uint32_t in_flight
    cdef uint32_t turn
    cdef bint best_out = False
    cdef bint best_full = False
    cdef bint out
    cdef bint full
    cdef bint waits = False
    cdef int at
    cdef int i
    if pool_full(table, pool):
        return SLOT_BUSY
    while True:
        best = NULL
        turn = sys_load_acquire(&pool.state.turn) if pool.state is not NULL else 0
        at = pool_turn(pool, turn)
        for i in range(pool.count):
            member = &pool.members[at]
            at = at + 1 if at + 1 < pool.count else 0
            if tried is not NULL and (tried[member.slot >> 6] >> (member.slot & 63)) & 1:
                continue
            route = &table.routes[member.slot]
            if sys_load_acquire(&route.backend.drained):
                waits = pool.limits.cold_timeout != 0
                continue
            out = backend_out(route.backend, now)
            in_flight = sys_load_ordered(&route.backend.in_flight)
            full = route.max_in_flight and in_flight >= route.max_in_flight
            if best is not NULL:
                if out != best_out:
                    if out:
                        continue
                elif member.tier != best.tier:
                    if member.tier > best.tier:
                        continue
                elif full != best_full:
                    if full:
                        continue
                elif <uint64_t>in_flight * best.weight >= <uint64_t>fewest * member.weight:
                    continue
            best = member
            backend = route.backend
            best_out = out
            best_full = full
            fewest = in_flight
        if best is NULL:
            return SLOT_BUSY if waits else SLOT_NONE
        if best_full or (best_out and pool.limits.cold_timeout):
            return SLOT_BUSY
        # Only if nobody else was counted meanwhile: two workers that look at the same time must not both take it for the emptiest.
        if sys_compare_exchange(&backend.in_flight, &fewest, fewest + 1):
            # If it was drained meanwhile, whoever did that may have seen nothing in flight: so nothing may be.
            if sys_load_ordered(&backend.drained) or (not best_out and not backend_try(backend, now)):
                sys_add_shared(&backend.in_flight, <uint32_t>-1)
                continue
            if pool.count > 1:
                if turn - best.first_turn >= best.weight:
                    turn = best.first_turn      # it was not its turn, so it begins
                sys_store_release(&pool.state.turn, turn + 1 if turn + 1 < pool.turns else 0)
            return best.slot

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
    if not backend_recover(backend):
        return False
    backend_post(w, backend, RECORD_BACKEND_UP, 0, REASON_NONE, 0)
    return True
