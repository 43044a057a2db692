# admit: how many clients there are, which worker gets the next one, and whether that is served.

# A listening socket, in the one worker that accepts for all. There may be several; the first of their list holds what they
# share: the limits, the pause and its timer, the workers.
cdef struct ListenerC:
    ConnC conn
    ListenerC *next
    int64_t most                # clients of all workers; then accepting pauses ...
    int64_t resume_at           # ... until there are no more than these
    int64_t max_connections     # clients that are served; those above get an error answer. 0 is no limit
    int64_t max_per_address     # the same, of one address
    QuotaTableC *quotas         # NULL without max_per_address
    bint paused
    bint watched                # in the epoll set
    bint failing                # accept gave nothing but errors
    int failed                  # of those in a row
    int count
    WorkerC *workers[MAX_WORKERS]

cdef int64_t worker_clients(WorkerC *w) noexcept nogil:
    return <int64_t>(sys_read_counter(&w.mail.adopted) - sys_read_counter(&w.stats.closed))

cdef int64_t listener_clients(WorkerC *w, WorkerC **best) noexcept nogil:
    # Clients of all workers, and the worker that gets the next; NULL where every mailbox is full. Its own it does not need.
    cdef ListenerC *listener = w.listener
    cdef int64_t total = 0
    cdef int64_t fewest = 0
    cdef int64_t clients
    cdef int i
    best[0] = NULL
    for i in range(listener.count):
        clients = worker_clients(listener.workers[i])
        total += clients
        if (best[0] is NULL or clients < fewest) and (listener.workers[i] is w or not mail_full(&listener.workers[i].mail)):
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
    adopt.refuse_status = 0
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
            adopt.refuse_status = 429
    if not adopt.refuse_status and listener.max_connections and clients - listener_refused(listener) >= listener.max_connections:
        sys_add_counter(&w.stats.over_total, 1)
        adopt.refuse_status = 503
    if adopt.quota is not NULL:
        sys_add_shared(&adopt.quota.refused if adopt.refuse_status else &adopt.quota.served, 1)
    return True
