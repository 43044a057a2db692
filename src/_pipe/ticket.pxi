# ticket: the queue of a pool, and the tickets of those who wait in it for a place (rule M).
#
# A queue belongs to the process, as the places do: a ticket is granted by whichever worker frees a place, and its exchange is told in
# its own worker's mailbox. Of those that wait, the highest class goes first, in it the tenant that was served least, and of its
# tickets the one with the earliest deadline. Who waits costs a ticket, and no timer and no wake-up of its own.
#
# Everything of a queue but `waiting` is touched under its lock: an order needs more than a word. Nobody takes it while nobody waits.

cdef struct ConnC
cdef struct WorkerC
cdef struct BackendC

cdef enum:
    CLASSES = 3                 # of priority: high, normal, low
    CLASS_NORMAL = 1
    CLASS_TURNS = 8             # one grant in so many goes to a lower class that waits, so that none starves
    TENANT_BUCKETS = 64         # a power of two
    RATE_TIME = 10000000        # us: what is older counts less and less in the rate at which places become free
    ESTIMATE_MOST = 120000000   # us; an estimate of more is not worth more. OpenAI's client gives up above 120 s

cdef enum:
    TICKET_OUT = 0              # in no queue
    TICKET_WAITS = 1
    TICKET_GRANTED = 2          # has a place, which is counted
    TICKET_GIVES_WAY = 3        # another one has its place in the full queue

# Those who share what a queue gives them.
cdef struct TenantC:
    HeapC heap                  # among the tenants that wait; the key is how often it was served
    uint64_t id
    HeapC *tickets              # by deadline
    uint32_t waiting
    TenantC *next               # in its bucket

# The tenants of one class of priority.
cdef struct ClassC:
    HeapC *tenants
    TenantC *buckets[TENANT_BUCKETS]
    int64_t served              # of the tenant served last. Who comes anew begins behind it: with no credit for the time before, and
    # with the debt of one that has just been served and left
    uint32_t waiting
    uint32_t count              # tenants

cdef struct QueueC:
    uint32_t lock
    uint32_t waiting            # tickets; others look at it without the lock
    uint32_t *total             # those of all queues, the same
    uint64_t order              # of the last ticket, or of the last tenant that was served
    uint64_t grants
    ClassC classes[CLASSES]
    SlabC tenants
    double freed                # places that became free while somebody waited ...
    double busy                 # ... and how long somebody waited, us; both with less and less of what is older
    int64_t measured_at
    HistogramC *wait            # of those that were granted; NULL where there was no memory
    uint64_t full               # refused because the queue was full
    uint64_t late               # refused because their deadline has passed, or would

cdef struct TicketC:
    HeapC heap                  # in its tenant's; the key is its deadline
    TenantC *tenant
    QueueC *queue
    ConnC *conn                 # of its client; NULL where its exchange has ended meanwhile
    WorkerC *worker             # that its exchange belongs to
    BackendC *granted
    TicketC *next               # in its worker's mailbox
    int64_t since
    uint64_t tenant_id
    uint8_t priority            # its class
    uint8_t state               # TICKET_*
    uint8_t abroad              # another worker hands it over: it is freed when it is taken out of the mailbox
    uint8_t ready               # what became of it its worker knows: its own field

cdef uint32_t tenant_bucket(uint64_t id) noexcept nogil:
    return <uint32_t>(id >> 7) & (TENANT_BUCKETS - 1)

cdef TenantC *tenant_find(QueueC *queue, ClassC *line, uint64_t id) noexcept nogil:
    # The tenant of that id, which waits or is about to; NULL where there is no memory.
    cdef TenantC **bucket = &line.buckets[tenant_bucket(id)]
    cdef TenantC *tenant = bucket[0]
    while tenant is not NULL and tenant.id != id:
        tenant = tenant.next
    if tenant is NULL:
        queue.tenants.size = sizeof(TenantC)
        tenant = <TenantC *>slab_get(&queue.tenants)
        if tenant is NULL:
            return NULL
        tenant.id = id
        tenant.heap.key = line.served + 1
        tenant.next = bucket[0]
        bucket[0] = tenant
        queue.order += 1
        tenant.heap.order = queue.order
        heap_put(&line.tenants, &tenant.heap)
        line.count += 1
    return tenant

cdef void tenant_leave(QueueC *queue, ClassC *line, TenantC *tenant) noexcept nogil:
    # None of its tickets waits any more.
    cdef TenantC **link = &line.buckets[tenant_bucket(tenant.id)]
    while link[0] is not tenant:
        link = &link[0].next
    link[0] = tenant.next
    heap_take(&line.tenants, &tenant.heap)
    line.count -= 1
    slab_put(&queue.tenants, tenant)

cdef void queue_measure(QueueC *queue, int64_t now, uint32_t freed) noexcept nogil:
    # Somebody waited until now, and so many places became free.
    cdef double passed = <double>(now - queue.measured_at) if now > queue.measured_at else 0
    cdef double kept = RATE_TIME / (RATE_TIME + passed)
    queue.freed = queue.freed * kept + freed
    queue.busy = queue.busy * kept + passed
    queue.measured_at = now

cdef void queue_rest(QueueC *queue, int64_t now) noexcept nogil:
    # Nobody waits. What was seen long ago says nothing of now.
    if now - queue.measured_at > RATE_TIME:
        queue.freed = 0
        queue.busy = 0

cdef int64_t queue_estimate(QueueC *queue, uint32_t ahead) noexcept nogil:
    # How long one with so many ahead of it has to wait, us; -1 where too little was seen to tell.
    cdef double wait
    if queue.freed < 1 or queue.busy < 1000:
        return -1
    wait = (ahead + 1) * queue.busy / queue.freed
    return ESTIMATE_MOST if wait > ESTIMATE_MOST else <int64_t>wait

cdef uint32_t queue_ahead(QueueC *queue, uint8_t priority, uint64_t tenant) noexcept nogil:
    # How many would be served before one more ticket of that tenant: those of higher classes, and as many of each tenant as it has
    # itself.
    cdef ClassC *line = &queue.classes[priority]
    cdef TenantC *found = line.buckets[tenant_bucket(tenant)]
    cdef uint64_t ahead = 0
    cdef int i
    while found is not NULL and found.id != tenant:
        found = found.next
    if found is NULL:
        ahead = line.count
    else:
        ahead = <uint64_t>found.waiting * line.count
    if ahead > line.waiting:
        ahead = line.waiting
    for i in range(priority):
        ahead += queue.classes[i].waiting
    return <uint32_t>ahead

cdef bint queue_add(QueueC *queue, TicketC *ticket, int64_t now) noexcept nogil:
    # A ticket waits from now on; its deadline, its tenant and its class are set. False where there is no memory.
    cdef ClassC *line = &queue.classes[ticket.priority]
    ticket.tenant = tenant_find(queue, line, ticket.tenant_id)
    if ticket.tenant is NULL:
        return False
    if queue.waiting:
        queue_measure(queue, now, 0)
    else:
        queue_rest(queue, now)
        queue.measured_at = now     # while nobody waited, places became free as fast as requests came
    queue.order += 1
    ticket.heap.order = queue.order
    heap_put(&ticket.tenant.tickets, &ticket.heap)
    ticket.tenant.waiting += 1
    line.waiting += 1
    ticket.queue = queue
    ticket.state = TICKET_WAITS
    sys_add_shared(&queue.waiting, 1)
    sys_add_shared(queue.total, 1)
    return True

cdef void queue_remove(QueueC *queue, TicketC *ticket) noexcept nogil:
    # A ticket that waits does so no more.
    cdef ClassC *line = &queue.classes[ticket.priority]
    heap_take(&ticket.tenant.tickets, &ticket.heap)
    ticket.tenant.waiting -= 1
    line.waiting -= 1
    if not ticket.tenant.waiting:
        tenant_leave(queue, line, ticket.tenant)
    ticket.tenant = NULL
    ticket.state = TICKET_OUT
    sys_add_shared(&queue.waiting, <uint32_t>-1)
    sys_add_shared(queue.total, <uint32_t>-1)

cdef TicketC *queue_displace(QueueC *queue, uint8_t priority, uint64_t tenant) noexcept nogil:
    # The queue is full: takes out a ticket of a lower class, or of a tenant that has two more than this one, for one more of this
    # tenant; NULL where that would be unjust.
    cdef ClassC *line
    cdef TenantC *found
    cdef TenantC *most = NULL
    cdef TicketC *ticket
    cdef HeapC *member
    cdef uint32_t own = 0
    cdef int at = CLASSES - 1
    cdef int i
    while at > priority and not queue.classes[at].waiting:
        at -= 1
    line = &queue.classes[at]
    for i in range(TENANT_BUCKETS):
        found = line.buckets[i]
        while found is not NULL:
            if found.id == tenant:
                own = found.waiting
            if most is NULL or found.waiting > most.waiting:
                most = found
            found = found.next
    if most is NULL or (at == priority and most.waiting < own + 2):
        return NULL
    member = most.tickets
    while member.child is not NULL:
        member = member.child       # not the first of them, unless it is the only one
    ticket = <TicketC *>member
    queue_remove(queue, ticket)
    ticket.state = TICKET_GIVES_WAY
    return ticket

cdef ClassC *queue_class(QueueC *queue) noexcept nogil:
    # The class that is served next, of those that wait: the highest, and now and then one of the lower ones, in turn.
    cdef ClassC *line = NULL
    cdef uint64_t turn = (queue.grants + 1) // CLASS_TURNS
    cdef bint lower = (queue.grants + 1) % CLASS_TURNS == 0
    cdef int passed = 0
    cdef int i
    for i in range(CLASSES):
        if not queue.classes[i].waiting or (passed == 2 and turn & 1):
            continue
        if line is NULL or lower:
            line = &queue.classes[i]
        passed += 1
    return line

cdef TicketC *queue_first(QueueC *queue) noexcept nogil:
    # The ticket that is served next, of those that wait; there is one.
    return <TicketC *>(<TenantC *>queue_class(queue).tenants).tickets       # a heap's member is the first of its owner's fields

cdef bint queue_drop_late(QueueC *queue, int64_t now) noexcept nogil:
    # Takes out those that would be served next and whose deadline is over: they are not served late, and their own workers answer
    # them. Whether one waits that is not late.
    cdef TicketC *ticket
    while queue.waiting:
        ticket = queue_first(queue)
        if ticket.heap.key > now:
            return True
        queue_remove(queue, ticket)
    return False

cdef TicketC *queue_next(QueueC *queue) noexcept nogil:
    # Takes out the ticket that is served next, which its tenant is charged for; there is one.
    cdef ClassC *line = queue_class(queue)
    cdef TenantC *tenant = <TenantC *>line.tenants
    cdef TicketC *ticket = queue_first(queue)
    queue.grants += 1
    line.served = tenant.heap.key
    heap_take(&line.tenants, &tenant.heap)
    tenant.heap.key += 1
    queue.order += 1
    tenant.heap.order = queue.order     # of those that were served as often it comes last
    heap_put(&line.tenants, &tenant.heap)
    queue_remove(queue, ticket)
    return ticket
