# choice: which backend of a pool works on an exchange, and the count of it there (rule K).

cdef enum:
    RANK_OUT = 1 << 16          # above that of any tier: only where there is no other
    RANK_LAST = 1 << 17         # of those the ones that are known to be gone
    RANK_NONE = 1 << 18
    SHARE_ONE = 1024            # of a backend's weight, outside its slow start
    MAX_ORDER = 4096            # turns of a pool whose order is computed; longer ones are made shorter

# What a look at the members of a pool came to.
cdef struct LookC:
    uint64_t best[MAX_MEMBER_WORDS]     # those that are asked first: only one of them may be chosen
    uint32_t rank               # theirs; RANK_NONE where there is no member left
    bint waits                  # a drained one may come back

cdef inline bint member_in(const uint64_t *set, int member) noexcept nogil:
    return (set[member >> 6] >> (member & 63)) & 1

cdef inline void member_put(uint64_t *set, int member) noexcept nogil:
    set[member >> 6] |= <uint64_t>1 << (member & 63)

cdef int pool_turn(PoolC *pool, uint32_t turn) noexcept nogil:
    # The member whose turn it is, each having as many turns in a row as its weight says.
    cdef int i
    for i in range(pool.count):
        if turn - pool.members[i].first_turn < pool.members[i].weight:
            return i
    return 0            # it was counted up with the table of a worker that has a longer one

cdef uint32_t common_divisor(uint32_t a, uint32_t b) noexcept nogil:
    cdef uint32_t rest
    while b:
        rest = a % b
        a = b
        b = rest
    return a

cdef bint pool_order(PoolC *pool) noexcept nogil:
    # Computes the order of the members' turns, for a policy that goes by it: each as often as its weight says, and spread evenly. As
    # nginx's smooth weighted round-robin does for each request: with each turn everybody's credit rises by his weight, who has most
    # is next and pays the sum of all. False where there is no memory.
    cdef int64_t credit[MAX_MEMBERS]
    cdef uint32_t weights[MAX_MEMBERS]
    cdef uint32_t divisor = 0
    cdef uint32_t total = 0
    cdef uint32_t turn
    cdef int best
    cdef int i
    if pool.limits.policy == POLICY_LEAST_IN_FLIGHT or not pool.count:
        return True
    for i in range(pool.count):
        divisor = common_divisor(divisor, pool.members[i].weight)
    for i in range(pool.count):
        weights[i] = pool.members[i].weight // divisor
        total += weights[i]
        credit[i] = 0
    if total > MAX_ORDER:
        divisor = total
        total = 0
        for i in range(pool.count):
            weights[i] = (weights[i] * MAX_ORDER + divisor // 2) // divisor
            weights[i] += weights[i] == 0
            total += weights[i]
    pool.order = <uint8_t *>malloc(total)
    if pool.order is NULL:
        return False
    pool.turns = total
    for turn in range(total):
        best = 0
        for i in range(pool.count):
            credit[i] += weights[i]
            if credit[i] > credit[best]:
                best = i
        credit[best] -= total
        pool.order[turn] = <uint8_t>best
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

cdef inline bint route_full(RouteC *route, uint32_t in_flight) noexcept nogil:
    return route.max_in_flight and in_flight >= route.max_in_flight

cdef void pool_look(TableC *table, PoolC *pool, const uint64_t *tried, int64_t now, LookC *look) noexcept nogil:
    # Which members are asked first: those that are not left out, of the lowest tier, with a place. None of those that are `tried`
    # (NULL: of none), and none that is drained.
    cdef RouteC *route
    cdef uint32_t rank
    cdef int i
    memset(look, 0, sizeof(LookC))
    look.rank = RANK_NONE
    look.waits = not pool.count and pool.limits.cold_timeout != 0      # names that do not resolve, for one
    for i in range(pool.count):
        if tried is not NULL and member_in(tried, i):
            continue
        route = &table.routes[pool.members[i].slot]
        if sys_load_acquire(&route.backend.drained):
            look.waits = pool.limits.cold_timeout != 0
            continue
        rank = pool.members[i].tier * 2 + route_full(route, sys_load_ordered(&route.backend.in_flight))
        if backend_out(route.backend, now):
            rank += RANK_OUT | RANK_LAST
        elif backend_unproven(route.backend):
            rank += RANK_OUT
            table.ailing |= pool.count > 1 or pool.limits.cold_timeout != 0
        if rank > look.rank:
            continue
        if rank < look.rank:
            look.rank = rank
            memset(look.best, 0, sizeof(look.best))
        member_put(look.best, i)

cdef uint32_t member_share(TableC *table, PoolC *pool, int member, int64_t now) noexcept nogil:
    # How much of its weight counts, of SHARE_ONE: less while it starts slowly.
    cdef int64_t since
    if not pool.limits.slow_start:
        return SHARE_ONE
    since = <int64_t>sys_read_counter(&table.routes[pool.members[member].slot].backend.well_since)
    if not since or now - since >= pool.limits.slow_start:
        return SHARE_ONE
    since = (now - since) * SHARE_ONE // pool.limits.slow_start if now > since else 0
    return <uint32_t>since if since > SHARE_ONE // 16 else SHARE_ONE // 16

cdef int choose_least(TableC *table, PoolC *pool, LookC *look, uint32_t turn, int64_t now, uint32_t *seen) noexcept nogil:
    # The one with the fewest exchanges in flight for its weight, and how many those are. Equals take turns.
    cdef int at = pool_turn(pool, turn)
    cdef int best = -1
    cdef uint64_t share = 1
    cdef uint32_t in_flight
    cdef uint64_t own
    cdef int i
    for i in range(pool.count):
        if member_in(look.best, at):
            in_flight = sys_load_ordered(&table.routes[pool.members[at].slot].backend.in_flight)
            own = <uint64_t>pool.members[at].weight * member_share(table, pool, at, now)
            if best < 0 or <uint64_t>in_flight * share < <uint64_t>seen[0] * own:
                best = at
                seen[0] = in_flight
                share = own
        at = at + 1 if at + 1 < pool.count else 0
    return best

cdef uint32_t turn_hash(uint32_t turn) noexcept nogil:
    # A number as good as a random one for each turn (the finalizer of MurmurHash3), the same for every worker.
    turn ^= turn >> 16
    turn *= 0x85EBCA6BU
    turn ^= turn >> 13
    turn *= 0xC2B2AE35U
    return turn ^ turn >> 16

cdef int choose_in_order(PoolC *pool, LookC *look, uint32_t turn) noexcept nogil:
    # The member whose turn it is, or of those that come next the first that may be chosen.
    cdef uint32_t i
    turn %= pool.turns
    for i in range(pool.turns):
        if member_in(look.best, pool.order[turn]):
            return pool.order[turn]
        turn = turn + 1 if turn + 1 < pool.turns else 0
    return -1

cdef int choose_round_robin(TableC *table, PoolC *pool, LookC *look, uint32_t *turn, int64_t now) noexcept nogil:
    # In turn; who starts slowly lets some of its turns go by. The turn is left where the choice was.
    cdef int first = -1
    cdef int member
    cdef uint32_t i
    cdef uint32_t begin = turn[0]
    for i in range(pool.turns):
        member = pool.order[(begin + i) % pool.turns]
        if not member_in(look.best, member):
            continue
        if turn_hash(begin + i) % SHARE_ONE < member_share(table, pool, member, now):
            turn[0] = begin + i
            return member
        if first < 0:
            first = member
    return first

cdef uint64_t member_cost(TableC *table, PoolC *pool, int member, int64_t now) noexcept nogil:
    # What one more exchange there is expected to wait: those in flight, times the average TTFT, which fades while nobody is sent
    # there, so that a backend that was slow once is tried again.
    cdef BackendC *backend = table.routes[pool.members[member].slot].backend
    cdef uint64_t ttft = sys_load_acquire(&backend.ttft)
    cdef int64_t age = now - <int64_t>sys_read_counter(&backend.ttft_at)
    if not ttft and pool.state is not NULL:
        ttft = sys_load_acquire(&pool.state.ttft)       # nothing is known of it: as the others
    elif age > 0:
        ttft = ttft * TTFT_TIME // <uint64_t>(TTFT_TIME + age)
    ttft += ttft == 0
    return ((<uint64_t>sys_load_ordered(&backend.in_flight) + 1) * ttft * SHARE_ONE
            // (<uint64_t>pool.members[member].weight * member_share(table, pool, member, now)))

cdef int choose_of_two(TableC *table, PoolC *pool, LookC *look, uint32_t turn, int64_t now) noexcept nogil:
    # The better one of two at random (Mitzenmacher, "The power of two choices in randomized load balancing", 2001), each as likely
    # as its weight says.
    cdef uint32_t random = turn_hash(turn)
    cdef int one = choose_in_order(pool, look, random)
    cdef LookC others = look[0]
    cdef int other
    if one < 0:
        return -1
    others.best[one >> 6] &= ~(<uint64_t>1 << (one & 63))
    other = choose_in_order(pool, &others, turn_hash(random + 1))
    if other < 0 or member_cost(table, pool, one, now) <= member_cost(table, pool, other, now):
        return one
    return other

cdef int pool_reserve(TableC *table, PoolC *pool, const uint64_t *tried, int64_t now) noexcept nogil:
    # The member that is to work on an exchange, with that one counted at its backend. None of those that are `tried` (NULL: of
    # none), and none that is drained. MEMBER_NONE where none is left, MEMBER_BUSY where it has to wait: for a place, or for a backend.
    cdef LookC look
    cdef BackendC *backend
    cdef uint32_t in_flight
    cdef uint32_t turn
    cdef int best
    if pool_full(table, pool):
        return MEMBER_BUSY
    while True:
        pool_look(table, pool, tried, now, &look)
        if look.rank == RANK_NONE:
            return MEMBER_BUSY if look.waits else MEMBER_NONE
        if look.rank & 1 or (look.rank & RANK_OUT and pool.limits.cold_timeout):
            return MEMBER_BUSY
        turn = sys_load_acquire(&pool.state.turn) if pool.state is not NULL else 0
        best = 0
        in_flight = 0
        if pool.count == 1 or pool.limits.policy != POLICY_LEAST_IN_FLIGHT:
            if pool.count > 1 and pool.limits.policy == POLICY_ROUND_ROBIN:
                best = choose_round_robin(table, pool, &look, &turn, now)
            elif pool.count > 1:
                best = choose_of_two(table, pool, &look, turn, now)
            in_flight = sys_load_ordered(&table.routes[pool.members[best].slot].backend.in_flight)
        else:
            best = choose_least(table, pool, &look, turn, now, &in_flight)
        backend = table.routes[pool.members[best].slot].backend
        # Only if nobody else was counted meanwhile: two workers that look at the same time must not both take it for the emptiest.
        if (route_full(&table.routes[pool.members[best].slot], in_flight)
                or not sys_compare_exchange(&backend.in_flight, &in_flight, in_flight + 1)):
            continue
        # If it was drained meanwhile, whoever did that may have seen nothing in flight: so nothing may be.
        if sys_load_ordered(&backend.drained) or (not look.rank & RANK_OUT and not backend_try(backend, now, TRIAL_TIME)):
            sys_add_shared(&backend.in_flight, <uint32_t>-1)
            continue
        if pool.count > 1:
            if pool.limits.policy == POLICY_LEAST_IN_FLIGHT and turn - pool.members[best].first_turn >= pool.members[best].weight:
                turn = pool.members[best].first_turn    # it was not its turn, so it begins
            turn += 1
            if pool.limits.policy == POLICY_LEAST_IN_FLIGHT and turn >= pool.turns:
                turn = 0
            sys_store_release(&pool.state.turn, turn)
        return best
