# recovery: a backend that had failed is connected before a request is sent there (rule L1): nobody waits on one that is not there.

cdef void probe_ended(WorkerC *w, UpstreamC *upstream, int error) noexcept nogil:
    # The connect ended: well, where `error` is 0. Then the connection is there for the request that tries the backend.
    cdef int slot = upstream.backend
    cdef BackendC *backend = w.table.routes[slot].backend
    upstream.probes = False
    if error:
        upstream_close(w, upstream)
        sys_add_counter(&w.stats.connect_errors, 1)
        backend_failed(w, backend, slot, REASON_DEADLINE if error == ETIMEDOUT else reason_of_errno(error), error)
        return
    if upstream.full or not w.table.routes[slot].upstream_idle_timeout or w.draining:
        upstream_close(w, upstream)
    else:
        upstream_keep(w, upstream)
    backend_connected(backend)
    pools_serve(w)

cdef void probe_begin(WorkerC *w, int slot) noexcept nogil:
    # Connects the backend at a slot, at the address that was connected last.
    cdef RouteC *route = &w.table.routes[slot]
    cdef uint8_t address = <uint8_t>sys_load_acquire(&route.backend.address)
    cdef UpstreamC *upstream = NULL
    cdef int rc = upstream_open(w, slot, address if address < route.address_count else 0, &upstream)
    if rc < 0:
        if rc != -EMFILE and rc != -ENFILE and rc != -ENOMEM and rc != -ENOBUFS and rc != -ENOSPC:
            sys_add_counter(&w.stats.connect_errors, 1)
            backend_failed(w, route.backend, slot, reason_of_errno(-rc), -rc)
        return
    upstream.probes = True
    # A full backlog is neither refused nor dead (rule E1).
    if rc == RC_OK or upstream.full:
        probe_ended(w, upstream, 0)
    else:
        timer_arm(w, &upstream.conn, upstream_deadline(w, upstream))

cdef void backends_probe(WorkerC *w) noexcept nogil:
    # Begins to connect those that may be back. The time in which nobody else does is longer than the connect.
    cdef BackendC *backend
    cdef int slot
    if not w.table.ailing or w.draining:
        return
    w.table.ailing = False
    for slot in range(w.table.count):
        backend = w.table.routes[slot].backend
        if (backend is not NULL and backend_unproven(backend) and not backend_out(backend, w.now)
                and backend_try(backend, w.now, probe_time(w) + TRIAL_TIME)):
            probe_begin(w, slot)

cdef void step_probe(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # Waits for the connect to end.
    cdef ConnC *conn = &upstream.conn
    cdef int error
    if not conn.readable and not conn.writable:
        return
    error = conn_error(conn)
    if error or conn.writable:
        probe_ended(w, upstream, error)
