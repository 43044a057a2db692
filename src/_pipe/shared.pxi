# shared: what all workers of a process know together. Workers share no connection, but what is decided is the process's: which
# backend has the fewest exchanges in flight, which is left out, how many retries are left, how much is kept of requests.
#
# Each word is an atomic of its own, touched per request and never per event. A lock was rejected: a worker that is preempted
# while it holds one would make the others wait, and none of these words has to agree with another one.
#
# A backend is an object with a name, not a slot: workers take a new table at different moments, and for that time one worker's
# slot may mean another backend than its neighbour's. Tables point to it and are counted; the control plane, the only one that makes
# backends, frees those that nobody counts when it makes a table.

cdef enum:
    MAX_BACKENDS = 4096         # those that are gone and still have something to do included
    MAX_BACKEND_WORDS = 64      # MAX_BACKENDS / 64
    MAX_MEMBERS = 128           # of a pool
    MAX_MEMBER_WORDS = 2        # MAX_MEMBERS / 64
    RETRY_FIRST = 1000          # retry budget at the start, in hundredths of a retry
    RETRY_MOST = 10000
    RETRY_COST = 100
    RETRY_EARNED = 20           # by each exchange
    EJECT_FIRST = 100000        # us
    EJECT_MOST = 10000000
    TTFT_TIME = 10000000        # us: how long a backend's average of TTFTs remembers
    TRIAL_TIME = 1000000        # us until the next exchange may try a backend that had failed
    NAME_ROOM = 264             # a backend's name, or a pool's
    TAPES_MOST = 1 << 26        # bytes of all recordings that the control plane has not taken yet, and as many of their requests
    TAPE_SIZE = 1 << 20         # bytes of one, where nothing else is said, and of its request
    TAPE_BODIES_ASKED = 1       # the requests' bodies are recorded too: of those that are asked for,
    TAPE_BODIES_SHARE = 2       # and of those of a share

cdef struct BackendC:
    uint32_t in_flight          # exchanges that it works on
    uint32_t failures           # in a row
    uint32_t address            # index of the address that was connected last
    uint32_t users              # tables that point to it; raised by the control plane only
    uint64_t ejected_until      # us of CLOCK_MONOTONIC; 0 where it is not left out
    uint32_t trial              # it had failed, and one exchange tries whether it works again: until `ejected_until` nobody else does
    uint32_t proven             # it was connected since it failed last: an exchange may try it
    uint32_t errors             # answers of 5xx in a row
    uint32_t down               # its health checks fail; the control plane's
    uint32_t ttft               # us from the whole request to the first content: a moving average; 0 before the first
    uint64_t ttft_at            # us: when that was noted last
    uint64_t well_since         # us: when it came back, for a slow start; 0 where it was never away
    uint32_t drained            # it gets no new exchange at all; the control plane's
    int32_t id                  # never given to another one; records and counters name it so. The control plane's, as the rest
    int slot                    # in every table, for as long as anything is left of it
    BackendC *next
    char name[NAME_ROOM]

# What the workers know together of a pool. As a backend, it has a name that outlives tables.
cdef struct PoolStateC:
    uint32_t turn               # where the choice among equals begins
    uint32_t users              # tables that point to it; raised by the control plane only
    uint32_t ttft               # us from the whole request, at a backend, to the first content: a moving average; 0 before the first
    uint32_t ttft_deviation     # us that one differs from it, on average
    PoolStateC *next
    char name[NAME_ROOM]
    QueueC queue

cdef struct SharedC:
    uint32_t engines            # that point to it; the control plane's, as all up to the budget
    BackendC *backends
    PoolStateC *pools
    uint64_t slots[MAX_BACKEND_WORDS]   # that are taken
    int32_t next_id
    uint32_t retry_budget       # hundredths
    uint64_t kept               # bytes of requests that are kept to be sent again
    uint64_t kept_most          # 0 is no limit
    uint32_t waiting            # for a place, in all queues
    uint32_t recording          # whether any answer is to be recorded; the control plane's, as the next ones up to the bytes
    uint32_t tapes_asked        # answers that are asked for still; written by workers too
    uint32_t tape_round         # changes each time that somebody asks
    uint64_t tape_share         # of all others, in 2^32ths
    uint32_t tape_size          # bytes of one
    uint32_t tape_bodies        # TAPE_BODIES_*
    uint64_t tapes              # bytes of those there are
    uint64_t tape_requests      # bytes of requests on them
    uint32_t tapes_dropped      # that there was no room for

cdef int slot_take(SharedC *shared) noexcept nogil:
    # The first slot that is free, or -1.
    cdef int word
    cdef int slot
    for word in range(MAX_BACKEND_WORDS):
        if ~shared.slots[word]:
            slot = word * 64 + sys_lowest_bit(~shared.slots[word])
            shared.slots[word] |= <uint64_t>1 << (slot & 63)
            return slot
    return -1

cdef BackendC *backend_find(SharedC *shared, const char *name, size_t n) noexcept nogil:
    # Control plane: the backend of that name, made where there is none, with one more user; NULL where there is no memory, or no
    # slot. One that nobody counts any more is freed, and so is its slot.
    cdef BackendC **link = &shared.backends
    cdef BackendC *backend
    cdef BackendC *found = NULL
    while link[0] is not NULL:
        backend = link[0]
        if strlen(backend.name) == n and memcmp(backend.name, name, n) == 0:
            found = backend
        elif not sys_load_acquire(&backend.users) and not sys_load_acquire(&backend.in_flight):
            link[0] = backend.next
            shared.slots[backend.slot >> 6] &= ~(<uint64_t>1 << (backend.slot & 63))
            free(backend)
            continue
        link = &backend.next
    if found is NULL:
        found = <BackendC *>calloc(1, sizeof(BackendC))
        if found is NULL:
            return NULL
        found.slot = slot_take(shared)
        if found.slot < 0:
            free(found)
            return NULL
        memcpy(found.name, name, n)
        found.id = shared.next_id
        shared.next_id += 1
        link[0] = found
    sys_add_shared(&found.users, 1)
    return found

cdef void pool_note_ttft(PoolStateC *state, int64_t us) noexcept nogil:
    # The first content of an answer is there. As TCP measures a round trip (Jacobson and Karels, 1988). Of two workers that note at
    # the same time one may be forgotten.
    cdef int64_t mean = sys_load_acquire(&state.ttft)
    cdef int64_t deviation = sys_load_acquire(&state.ttft_deviation)
    cdef int64_t off
    if us > INT32_MAX:
        us = INT32_MAX
    off = us - mean
    if not mean:
        sys_store_release(&state.ttft, <uint32_t>(us + (us == 0)))
        sys_store_release(&state.ttft_deviation, <uint32_t>(us // 2))
        return
    mean += off // 8
    sys_store_release(&state.ttft, <uint32_t>(mean if mean > 0 else 1))
    sys_store_release(&state.ttft_deviation, <uint32_t>(deviation + ((off if off > 0 else -off) - deviation) // 4))

cdef int64_t pool_latest_ttft(PoolStateC *state) noexcept nogil:
    # How long the first content may take, us: what nearly all take no longer than.
    return <int64_t>sys_load_acquire(&state.ttft) + 4 * <int64_t>sys_load_acquire(&state.ttft_deviation)

cdef void pool_state_free(PoolStateC *state) noexcept nogil:
    slab_free_all(&state.queue.tenants)
    free(state.queue.wait)
    free(state)

cdef PoolStateC *pool_state_find(SharedC *shared, const char *name, size_t n) noexcept nogil:
    # Control plane: the state of the pool of that name, made where there is none, with one more user; NULL where there is no memory.
    # One that no table points to any more is freed.
    cdef PoolStateC **link = &shared.pools
    cdef PoolStateC *state
    cdef PoolStateC *found = NULL
    while link[0] is not NULL:
        state = link[0]
        if strlen(state.name) == n and memcmp(state.name, name, n) == 0:
            found = state
        elif not sys_load_acquire(&state.users):
            link[0] = state.next
            pool_state_free(state)
            continue
        link = &state.next
    if found is NULL:
        found = <PoolStateC *>calloc(1, sizeof(PoolStateC))
        if found is NULL:
            return NULL
        memcpy(found.name, name, n)
        found.queue.total = &shared.waiting
        found.queue.wait = <HistogramC *>calloc(1, sizeof(HistogramC))      # here, and not under the queue's lock
        link[0] = found
    sys_add_shared(&found.users, 1)
    return found

cdef void shared_free(SharedC *shared) noexcept nogil:
    # Control plane: one engine less.
    cdef BackendC *backend
    cdef PoolStateC *pool
    if shared is NULL:
        return
    shared.engines -= 1
    if shared.engines:
        return
    while shared.pools is not NULL:
        pool = shared.pools
        shared.pools = pool.next
        pool_state_free(pool)
    while shared.backends is not NULL:
        backend = shared.backends
        shared.backends = backend.next
        free(backend)
    free(shared)

cdef bint retry_take(SharedC *shared) noexcept nogil:
    # Takes one retry out of the budget. False where none is left.
    cdef uint32_t budget = sys_load_acquire(&shared.retry_budget)
    while budget >= RETRY_COST:
        if sys_compare_exchange(&shared.retry_budget, &budget, budget - RETRY_COST):
            return True
    return False

cdef void retry_earn(SharedC *shared) noexcept nogil:
    # An exchange has ended. Two workers may go over the most by a part of a retry.
    if sys_load_acquire(&shared.retry_budget) < RETRY_MOST:
        sys_add_shared(&shared.retry_budget, RETRY_EARNED)

cdef bint backend_out(BackendC *backend, int64_t now) noexcept nogil:
    # Whether others are asked in its place, as long as there are any.
    return <int64_t>sys_read_counter(&backend.ejected_until) > now or sys_load_acquire(&backend.down) != 0

cdef int64_t backend_eject(BackendC *backend, int64_t now) noexcept nogil:
    # Leaves the backend out for a time that doubles with each failure in a row: that time, or 0 where it is left out already.
    # Failures that come while it is left out, of exchanges that were already there, do not make it longer.
    cdef uint64_t until = sys_read_counter(&backend.ejected_until)
    cdef uint32_t failures = sys_load_acquire(&backend.failures)
    cdef int64_t out = EJECT_MOST
    if <int64_t>until > now and not sys_exchange(&backend.trial, 0):
        return 0
    if failures < 16 and EJECT_FIRST << failures < EJECT_MOST:
        out = EJECT_FIRST << failures
    if not sys_compare_exchange_counter(&backend.ejected_until, &until, <uint64_t>(now + out)):
        return 0                # another worker was faster
    sys_store_release(&backend.proven, 0)
    sys_add_shared(&backend.failures, 1)
    return out

cdef bint backend_recover(BackendC *backend, int64_t now) noexcept nogil:
    # It has answered. Whether it had failed before, which one worker is told.
    if not sys_load_acquire(&backend.failures) or not sys_exchange(&backend.failures, 0):
        return False
    sys_store_release(&backend.trial, 0)
    sys_set_counter(&backend.ejected_until, 0)
    sys_set_counter(&backend.well_since, <uint64_t>now)
    return True

cdef void backend_note_ttft(BackendC *backend, int64_t now, int64_t us) noexcept nogil:
    # The first content of an answer is there. What is older counts the less, the longer ago it was. Of two workers that note at the
    # same time one may be forgotten.
    cdef int64_t mean = sys_load_acquire(&backend.ttft)
    cdef int64_t age = now - <int64_t>sys_read_counter(&backend.ttft_at)
    if us > INT32_MAX:
        us = INT32_MAX
    if age > <int64_t>TTFT_TIME * 1000:
        age = <int64_t>TTFT_TIME * 1000     # by then nothing is left of it, and the product below must not overflow
    if mean and age >= 0:
        us = mean + (us - mean) * (age + TTFT_TIME // 16) // (age + TTFT_TIME)     # answers of one moment count a little each
    sys_store_release(&backend.ttft, <uint32_t>(us if us > 0 else 1))
    sys_set_counter(&backend.ttft_at, <uint64_t>now)

cdef bint backend_unproven(BackendC *backend) noexcept nogil:
    # Whether it had failed, and was not connected since.
    return sys_load_acquire(&backend.failures) and not sys_load_acquire(&backend.proven)

cdef void backend_untried(BackendC *backend) noexcept nogil:
    # Nothing came of a try, and the backend is not the reason.
    sys_store_release(&backend.trial, 0)
    sys_set_counter(&backend.ejected_until, 0)

cdef void backend_connected(BackendC *backend) noexcept nogil:
    # It had failed, and was connected: an exchange may try it now.
    sys_store_release(&backend.proven, 1)
    backend_untried(backend)

cdef bint backend_try(BackendC *backend, int64_t now, int64_t time) noexcept nogil:
    # Whether it may be tried now: if it had failed, one at a time does, for so long, so that few meet a server that is still gone.
    cdef uint64_t until
    if not sys_load_acquire(&backend.failures):
        return True
    until = sys_read_counter(&backend.ejected_until)
    if <int64_t>until > now or not sys_compare_exchange_counter(&backend.ejected_until, &until, <uint64_t>(now + time)):
        return False
    sys_store_release(&backend.trial, 1)
    return True
