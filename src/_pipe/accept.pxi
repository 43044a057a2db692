# accept: one worker accepts for all, each connection for the worker with the fewest clients.
#
# The control plane decides when accepting begins and ends and how many clients there may be. It does not accept itself: a
# Python call, a wake-up of another thread and a socket object for each connection cost more than the connection. Nor does
# each worker for itself: the kernel would give most connections to whichever worker wakes first, and streams live long.

cdef void client_adopt(WorkerC *w, AdoptC *adopt) noexcept nogil:
    # A client connection that the control plane accepted. Without memory for it, it is closed.
    cdef ClientC *client = <ClientC *>slab_get(&w.clients)
    sys_add_counter(&w.stats.accepted, 1)
    if client is NULL:
        sys_add_counter(&w.stats.over_memory, 1)
        io_close(adopt.fd)
        client_uncount(w, adopt.refusal, adopt.quota)
        return
    conn_open(w, &client.conn, adopt.fd, SIDE_CLIENT)
    w.client_count += 1
    client.trusted = adopt.trusted
    client.refusal = adopt.refusal
    client.quota = adopt.quota
    memcpy(client.address, adopt.address, ADDRESS_ROOM)
    if io_watch(w.epfd, adopt.fd, &client.conn) < 0:
        sys_add_counter(&w.stats.over_memory, 1)
        client_close(w, client, False)
        return
    client_await(w, client, CLIENT_NEW)

cdef int64_t worker_clients(WorkerC *w) noexcept nogil:
    return <int64_t>(sys_read_counter(&w.mail.adopted) - sys_read_counter(&w.stats.closed))

cdef void listener_post(WorkerC *w, uint8_t kind, int64_t clients, int error) noexcept nogil:
    # Tells the control plane how accepting goes; the number of clients is in `bytes_up`.
    cdef RecordC *record = mail_next_record(&w.mail)
    if record is NULL:
        sys_add_counter(&w.stats.records_dropped, 1)
        return
    memset(record, 0, sizeof(RecordC))
    record.kind = kind
    record.at = w.now
    record.backend = -1
    record.ttft = -1
    record.close_time = -1
    record.bytes_up = clients
    record.error = error
    mail_post(&w.mail, True)

cdef void listener_pause(WorkerC *w, int64_t clients, int error) noexcept nogil:
    # Clients or descriptors have run out. Who is connected stays untouched, and who is not waits in the backlog (rule G2).
    w.listener.paused = True
    timer_arm(w, &w.listener.conn, w.now + ACCEPT_PAUSE)
    listener_post(w, KIND_ACCEPT_PAUSED, clients, error)

cdef int64_t listener_clients(ListenerC *listener, WorkerC **best) noexcept nogil:
    # Clients of all workers, and the worker that gets the next; NULL where every mailbox is full.
    cdef int64_t total = 0
    cdef int64_t fewest = 0
    cdef int64_t clients
    cdef int i
    best[0] = NULL
    for i in range(listener.count):
        clients = worker_clients(listener.workers[i])
        total += clients
        if (best[0] is NULL or clients < fewest) and not mail_full(&listener.workers[i].mail):
            best[0] = listener.workers[i]
            fewest = clients
    return total

cdef int64_t listener_refused(ListenerC *listener) noexcept nogil:
    # Open connections that only get an error answer.
    cdef int64_t total = 0
    cdef WorkerC *worker
    cdef int i
    for i in range(listener.count):
        worker = listener.workers[i]
        total += <int64_t>(sys_read_counter(&worker.mail.refused) - sys_read_counter(&worker.stats.refused_closed))
    return total

cdef bint listener_admits(WorkerC *w, const sockaddr_storage *peer, int64_t clients, AdoptC *adopt) noexcept nogil:
    # Counts a new client in its address and decides whether it is served, or gets an error answer to its request. False
    # where it gets not even that: its address has as many refused connections as it may have served ones. A trusted proxy
    # stands for many clients, and is not counted in its address.
    cdef ListenerC *listener = w.listener
    cdef uint64_t key[2]
    adopt.refusal = 0
    adopt.quota = NULL
    adopt.trusted = trust_peer(&w.settings.trust, peer)
    if not adopt.trusted and listener.quotas is not NULL and quota_key(peer, key):
        adopt.quota = quota_find(listener.quotas, key)
        if adopt.quota is NULL:
            sys_add_counter(&w.stats.over_memory, 1)
            return False
        if <int64_t>sys_load_acquire(&adopt.quota.served) >= listener.max_per_address:
            sys_add_counter(&w.stats.over_address, 1)
            if <int64_t>sys_load_acquire(&adopt.quota.refused) >= listener.max_per_address:
                return False
            adopt.refusal = 429
    if not adopt.refusal and listener.max_connections and clients - listener_refused(listener) >= listener.max_connections:
        sys_add_counter(&w.stats.over_total, 1)
        adopt.refusal = 503
    if adopt.quota is not NULL:
        sys_add_shared(&adopt.quota.refused if adopt.refusal else &adopt.quota.served, 1)
    return True

cdef void step_listener(WorkerC *w, ConnC *conn) noexcept nogil:
    # Accepts what waits at one of the listening sockets, a turn's share of it.
    cdef ListenerC *listener = w.listener
    cdef WorkerC *best = NULL
    cdef sockaddr_storage peer
    cdef AdoptC adopt
    cdef int64_t clients
    cdef int i
    for i in range(ACCEPTS_A_TURN):
        if not conn.readable or listener.paused:
            return
        clients = listener_clients(listener, &best)
        if clients >= listener.most or best is NULL:
            listener_pause(w, clients, 0 if clients >= listener.most else EAGAIN)
            return
        adopt.fd = io_accept(conn.fd, &peer)
        if adopt.fd == -EAGAIN:
            conn.readable = False
            return
        if adopt.fd == -EMFILE or adopt.fd == -ENFILE or adopt.fd == -ENOBUFS or adopt.fd == -ENOMEM:
            listener_pause(w, clients, -adopt.fd)
            return
        if adopt.fd < 0:
            continue        # it was gone before it could be accepted (accept(2) names many errors of the network)
        if not listener_admits(w, &peer, clients, &adopt):
            io_close(adopt.fd)
            continue
        io_address_text(&peer, adopt.address, ADDRESS_ROOM)
        if adopt.refusal:
            sys_add_counter(&best.mail.refused, 1)
        sys_add_counter(&best.mail.adopted, 1)
        if best is w:
            client_adopt(w, &adopt)
        else:
            mail_put(&best.mail, &adopt)
    conn_queue(w, conn)

cdef int listener_watch(WorkerC *w) noexcept nogil:
    # Puts them into the epoll set, each once. 0 or -errno.
    cdef ListenerC *listener = w.listener
    cdef int rc = 0
    while listener is not NULL and rc == 0:
        if not listener.watched:
            rc = io_watch(w.epfd, listener.conn.fd, &listener.conn)
            listener.watched = rc == 0
        listener = listener.next
    return rc

cdef void listener_step_all(WorkerC *w) noexcept nogil:
    cdef ListenerC *listener = w.listener
    while listener is not NULL:
        step_listener(w, &listener.conn)
        listener = listener.next

cdef void listener_resume(WorkerC *w) noexcept nogil:
    # The pause may be over: what was lacking must be there before anybody is told that it is.
    cdef WorkerC *best = NULL
    cdef int64_t clients = listener_clients(w.listener, &best)
    if (clients > w.listener.resume_at or best is NULL or not io_descriptor_free()
            or listener_watch(w) < 0):
        timer_arm(w, &w.listener.conn, w.now + ACCEPT_PAUSE)
        return
    w.listener.paused = False
    listener_post(w, KIND_ACCEPT_RESUMED, clients, 0)
    listener_step_all(w)

cdef void listener_take(WorkerC *w) noexcept nogil:
    # Begins to accept, or ends it: then what waits in the backlog is taken first, as far as there is room.
    cdef ListenerC *listener = <ListenerC *>sys_exchange_pointer(&w.new_listener, NULL)
    cdef int rc
    if listener is not NULL:
        w.listener = listener
        rc = listener_watch(w)
        if rc == 0:
            listener_step_all(w)
        else:
            listener_pause(w, 0, -rc)   # epoll_ctl may find no memory, now
    if w.listener is not NULL and not w.listener.conn.closed and sys_load_acquire(&w.mail.closing):
        listener = w.listener
        while listener is not NULL:
            listener.conn.readable = True
            while listener.conn.readable and not w.listener.paused:
                step_listener(w, &listener.conn)
            io_unwatch(w.epfd, listener.conn.fd)    # a service manager, or the next process, may hold the socket too
            listener.conn.closed = True
            listener = listener.next
        timer_disarm(w, &w.listener.conn)
        sys_store_release(&w.mail.closed, 1)

cdef void listener_free(ListenerC *listener) noexcept nogil:
    # Frees a list of them.
    cdef ListenerC *following
    if listener is not NULL and listener.quotas is not NULL:
        slab_free_all(&listener.quotas.entries)
        free(listener.quotas)
    while listener is not NULL:
        following = listener.next
        free(listener)
        listener = following
