# recovery: a backend that had failed is connected before a request is sent there (rule L1): nobody waits on one that is not there.

cdef enum:
    PROBES_A_TURN = 16          # each is some system calls, for which the streams of the same turn wait

cdef void probe_open(WorkerC *w, int slot, int address, uint8_t tried) noexcept nogil:
    # Connects one of a backend's addresses, and where that fails at once the next one; `tried` were tried before.
    cdef RouteC *route = &w.table.routes[slot]
    cdef UpstreamC *upstream = NULL
    cdef int rc = -ECONNREFUSED
    while tried < route.address_count:
        address = address % route.address_count
        tried += 1
        rc = upstream_open(w, slot, <uint8_t>address, &upstream)
        if rc == -EMFILE or rc == -ENFILE or rc == -ENOMEM or rc == -ENOBUFS or rc == -ENOSPC:
            backend_untried(route.backend)      # which says nothing of the backend
            return
        if rc >= 0:
            upstream.probes = tried
            # A full backlog is neither refused nor dead (rule E1).
            if rc == RC_OK or upstream.full:
                probe_ended(w, upstream, 0)
            else:
                timer_arm(w, &upstream.conn, upstream_deadline(w, upstream))
            return
        sys_add_counter(&w.stats.connect_errors, 1)
        address += 1
    backend_failed(w, route.backend, slot, reason_of_errno(-rc), -rc)

cdef void probe_ended(WorkerC *w, UpstreamC *upstream, int error) noexcept nogil:
    # The connect ended: well, where `error` is 0. Then the connection is there for the request that tries the backend.
    cdef int slot = upstream.backend
    cdef RouteC *route = &w.table.routes[slot]
    cdef uint8_t tried = upstream.probes
    cdef uint8_t address = upstream.address
    upstream.probes = 0
    if error:
        upstream_close(w, upstream)
        sys_add_counter(&w.stats.connect_errors, 1)
        if tried < route.address_count:
            probe_open(w, slot, address + 1, tried)
        else:
            backend_failed(w, route.backend, slot, REASON_DEADLINE if error == ETIMEDOUT else reason_of_errno(error), error)
        return
    if upstream.full or not route.upstream_idle_timeout or w.draining:
        upstream_close(w, upstream)
    else:
        upstream_keep(w, upstream)
    sys_store_release(&route.backend.address, address)
    backend_connected(route.backend)
    pools_serve(w)

cdef void backends_probe(WorkerC *w) noexcept nogil:
    # Begins to connect those that may be back, beginning with the address that was connected last. The time in which nobody else does
    # is longer than the connect.
    cdef BackendC *backend
    cdef RouteC *route
    cdef int begun = 0
    cdef int slot
    w.table.ailing = False
    for slot in range(w.table.count):
        route = &w.table.routes[slot]
        backend = route.backend
        if (backend is NULL or not backend_unproven(backend) or backend_out(backend, w.now) or sys_load_acquire(&backend.drained)
                or route.upstream_idle_timeout < 0):        # it is in no pool
            continue
        if begun == PROBES_A_TURN:
            w.table.ailing = True
            return
        if backend_try(backend, w.now, route.address_count * probe_time(w) + TRIAL_TIME):
            begun += 1
            probe_open(w, slot, sys_load_acquire(&backend.address), 0)

cdef void step_probe(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # Waits for the connect to end.
    cdef ConnC *conn = &upstream.conn
    cdef int error
    if not conn.readable and not conn.writable:
        return
    error = conn_error(conn)
    if error or conn.writable:
        probe_ended(w, upstream, error)
