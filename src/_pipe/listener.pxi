# listener: one worker accepts for all, each connection for the worker with the fewest clients.
#
# The control plane decides when accepting begins and ends and how many clients there may be. It does not accept itself: a
# Python call, a wake-up of another thread and a socket object for each connection cost more than the connection. Nor does
# each worker for itself: the kernel would give most connections to whichever worker wakes first, and streams live long.

cdef void listener_post(WorkerC *w, uint8_t kind, int64_t clients, int error) noexcept nogil:
    # Tells the control plane how accepting goes.
    cdef RecordC *record = mail_next_record(&w.mail)
    if record is NULL:
        sys_add_counter(&w.stats.records_dropped, 1)
        return
    memset(record, 0, sizeof(RecordC))
    record.kind = kind
    record.at = w.now
    record.clients = clients
    record.error = error
    mail_post(&w.mail, True)

cdef void listener_pause(WorkerC *w, int64_t clients, int error) noexcept nogil:
    # Clients or descriptors have run out. Who is connected stays untouched, and who is not waits in the backlog (rule G2).
    w.listener.paused = True
    timer_arm(w, &w.listener.conn, w.now + ACCEPT_PAUSE)
    if not w.listener.failing:
        listener_post(w, RECORD_ACCEPT_PAUSED, clients, error)

cdef void listener_end(WorkerC *w, ListenerC *ended) noexcept nogil:
    # Accepts no more at this socket. A service manager, or the next process, may hold it too.
    cdef ListenerC *listener = w.listener
    if ended.watched:
        io_unwatch(w.epfd, ended.conn.fd)
    ended.conn.closed = True
    while listener is not NULL:
        if not listener.conn.closed:
            return
        listener = listener.next
    timer_disarm(w, &w.listener.conn)
    sys_store_release(&w.mail.closed, 1)

cdef bint listener_make_room(WorkerC *w) noexcept nogil:
    # Has clients give way that have been idle for longest, in the worker that has the one that has been so for longest of all.
    # False where none is idle for long.
    cdef ListenerC *listener = w.listener
    cdef WorkerC *oldest = NULL
    cdef uint64_t since = <uint64_t>(w.now - ROOM_AFTER)
    cdef uint64_t quiet
    cdef int i
    for i in range(listener.count):
        quiet = sys_read_counter(&listener.workers[i].mail.quiet)
        if quiet and quiet <= since:
            since = quiet
            oldest = listener.workers[i]
    if oldest is w:
        clients_give_way(w)
    elif oldest is not NULL:
        mail_command(&oldest.mail, COMMAND_MAKE_ROOM)
    return oldest is not NULL

cdef void listener_works(WorkerC *w, int64_t clients) noexcept nogil:
    # An accept ended as it should.
    w.listener.failed = 0
    if w.listener.failing:
        w.listener.failing = False
        listener_post(w, RECORD_ACCEPT_RESUMED, clients, 0)

cdef void listener_error(WorkerC *w, ListenerC *socket, int64_t clients, int error) noexcept nogil:
    # An accept failed. Mostly the connection was gone before it could be accepted, and the next is asked for; accept(2) names
    # many errors of the network. A socket that another holder has shut down, or that is none, fails for ever; and what fails
    # again and again, by a security module or a firewall, is asked again after a pause only: no error may keep a worker busy.
    cdef ListenerC *listener = w.listener
    if error == EINVAL or error == EBADF or error == ENOTSOCK:
        listener_post(w, RECORD_ACCEPT_ENDED, clients, error)
        listener_end(w, socket)
        return
    listener.failed += 1
    if listener.failing or listener.failed == ACCEPTS_A_TURN:
        listener_pause(w, clients, error)
        listener.failing = True

cdef inline WorkerC *listener_place(WorkerC *w, int64_t *clients) noexcept nogil:
    # The worker that gets the next client, and how many there are; NULL where there is no place now: then a pause has begun, or
    # others make room.
    cdef ListenerC *listener = w.listener
    cdef WorkerC *best = NULL
    clients[0] = listener_clients(w, &best)
    if clients[0] >= listener.most and listener_make_room(w):
        clients[0] = listener_clients(w, &best)
        if clients[0] >= listener.most:
            timer_arm(w, &listener.conn, w.now + 1)     # another worker makes room
            return NULL
    if clients[0] >= listener.most or best is NULL:
        listener_pause(w, clients[0], 0 if clients[0] >= listener.most else EAGAIN)
        return NULL
    return best

cdef inline void listener_give(WorkerC *w, WorkerC *best, const sockaddr_storage *peer, int64_t clients, AdoptC *adopt) noexcept nogil:
    # A client is here: that worker serves or refuses it, or it is closed.
    if not listener_admits(w, peer, clients, adopt):
        io_close(adopt.fd)
        return
    io_address_text(peer, adopt.address, ADDRESS_ROOM)
    if adopt.refuse_status:
        sys_add_counter(&best.mail.refused, 1)
    sys_add_counter(&best.mail.adopted, 1)
    if best is w:
        client_adopt(w, adopt)
    else:
        mail_put(&best.mail, adopt)

cdef void step_listener(WorkerC *w, ConnC *conn) noexcept nogil:
    # Accepts what waits at one of the listening sockets, a turn's share of it.
    cdef WorkerC *best
    cdef sockaddr_storage peer
    cdef AdoptC adopt
    cdef int64_t clients = 0
    cdef int i
    for i in range(ACCEPTS_A_TURN):
        if not conn.readable or w.listener.paused:
            return
        best = listener_place(w, &clients)
        if best is NULL:
            return
        adopt.fd = conn_accept(conn, &peer)
        if adopt.fd == -EAGAIN:
            listener_works(w, clients)
            return
        if adopt.fd == -EMFILE or adopt.fd == -ENFILE or adopt.fd == -ENOBUFS or adopt.fd == -ENOMEM:
            listener_pause(w, clients, -adopt.fd)
            return
        if adopt.fd < 0:
            listener_error(w, <ListenerC *>conn, clients, -adopt.fd)
            if conn.closed:
                return
            continue
        listener_works(w, clients)
        listener_give(w, best, &peer, clients, &adopt)
    conn_queue(w, conn)

cdef void listener_adopt(WorkerC *w) noexcept nogil:
    # Takes what was accepted elsewhere, a turn's share of it. Without a place it waits in the mailbox, as others in the backlog.
    cdef WorkerC *best
    cdef AddressC peer
    cdef AdoptC adopt
    cdef int64_t clients = 0
    cdef int i
    for i in range(ACCEPTS_A_TURN):
        if w.mail.in_head == sys_load_acquire(&w.mail.in_tail) or w.listener.paused:
            return
        best = listener_place(w, &clients)
        if best is NULL:
            return
        adopt = w.mail.adopts[w.mail.in_head & (MAIL_IN - 1)]
        sys_store_release(&w.mail.in_head, w.mail.in_head + 1)
        if io_address(&peer, adopt.address, 0) != RC_OK:
            peer.address.ss_family = AF_UNIX        # it came without one
        listener_give(w, best, &peer.address, clients, &adopt)
    conn_queue(w, &w.mail_conn)

cdef int listener_watch(WorkerC *w) noexcept nogil:
    # Puts them into the epoll set, each once. 0 or -errno.
    cdef ListenerC *listener = w.listener
    cdef int rc = 0
    while listener is not NULL and rc == 0:
        if not listener.watched and not listener.conn.closed:
            rc = io_watch(w.epfd, listener.conn.fd, &listener.conn)
            listener.watched = rc == 0
        listener = listener.next
    return rc

cdef void listener_step_all(WorkerC *w) noexcept nogil:
    cdef ListenerC *listener = w.listener
    while listener is not NULL:
        if not listener.conn.closed:
            step_listener(w, &listener.conn)
        listener = listener.next
    listener_adopt(w)

cdef void listener_resume(WorkerC *w) noexcept nogil:
    # The pause may be over: what was lacking must be there before anybody is told that it is.
    cdef WorkerC *best = NULL
    cdef int64_t clients = listener_clients(w, &best)
    if not w.listener.paused:
        listener_step_all(w)    # others have made room
        return
    if clients > w.listener.resume_at and listener_make_room(w):
        clients = listener_clients(w, &best)
    if (clients > w.listener.resume_at or best is NULL or not io_descriptor_free()
            or listener_watch(w) < 0):
        timer_arm(w, &w.listener.conn, w.now + ACCEPT_PAUSE)
        return
    w.listener.paused = False
    if not w.listener.failing:      # else the accept itself tells
        listener_post(w, RECORD_ACCEPT_RESUMED, clients, 0)
    listener_step_all(w)

cdef void listener_take(WorkerC *w) noexcept nogil:
    # Begins to accept, where the control plane has handed listening sockets over.
    cdef ListenerC *listener = <ListenerC *>sys_exchange_pointer(&w.new_listener, NULL)
    cdef int rc
    if listener is NULL:
        return
    w.listener = listener
    rc = listener_watch(w)
    if rc == 0:
        listener_step_all(w)
    else:
        listener_pause(w, 0, -rc)   # epoll_ctl may find no memory, now

cdef void listener_end_all(WorkerC *w) noexcept nogil:
    # Ends accepting. What waits in the backlogs is taken first, as far as there is room.
    cdef ListenerC *listener = w.listener
    cdef WorkerC *best = NULL
    if listener is NULL or sys_load_acquire(&w.mail.closed):
        return
    while listener is not NULL:
        if not listener.conn.closed:
            conn_reread(&listener.conn)
        while listener.conn.readable and not w.listener.paused and not listener.conn.closed:
            if listener_clients(w, &best) >= w.listener.most:
                break           # who waits for room waits in vain: the next process accepts it, or nobody
            step_listener(w, &listener.conn)
        if not listener.conn.closed:
            listener_end(w, listener)
        listener = listener.next

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
