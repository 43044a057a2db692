# table: where requests may go: the backends, the pools that they are in, and which pool a request is for (rules J and K).
#
# The control plane makes a table for each worker and never changes it again; a worker swaps it between two turns, and the last
# exchange that uses an old one frees it.

# A backend in a table, as configure() made it.
cdef struct RouteC:
    BackendC *backend           # NULL where the slot is not in use
    uint8_t finish_on_abort
    uint8_t address_count
    uint32_t max_in_flight      # 0 is no limit
    int64_t upstream_idle_timeout   # us; the shortest of its pools, -1 where it is in none
    char authority[AUTHORITY_ROOM]
    char host[AUTHORITY_ROOM]   # the Host that it gets; empty: the client's
    char prefix[PREFIX_ROOM]    # what stands before the client's path
    uint16_t prefix_length
    AddressC addresses[MAX_ADDRESSES]

# A backend in a pool.
cdef struct MemberC:
    int slot
    uint32_t weight
    uint32_t tier               # 0 is asked first
    SeriesC *series             # of its exchanges for this pool; NULL where nobody counts, as the others
    uint32_t first_turn         # it has `weight` turns of its pool, from this one on, where the pool has no order

# Backends that are equally good for a request, and what holds for exchanges with them.
cdef struct PoolC:
    LimitsC limits
    PoolStateC *state           # NULL: of no pool
    SeriesC *series             # of exchanges that come to none of its backends
    MemberC *members
    int count
    uint32_t turns              # of all its members together
    uint8_t *order              # whose turn each of them is, of these policies that go by one; else NULL

# A name of a model, and the pool that it leads to.
cdef struct ModelC:
    const uint8_t *name
    size_t length
    const uint8_t *target       # the name that the backend gets, of an alias; NULL for the client's own
    size_t target_length
    TokensC *tokens             # that its answers are counted in; NULL where nobody counts
    int pool
    ModelC *next                # with the same hash

# A path or a field that leads to a pool whatever the model is.
cdef struct RuleC:
    const uint8_t *path         # the beginning of the target
    size_t path_length
    const uint8_t *field        # a field's name, in lower case; length 0 is any
    size_t field_length
    const uint8_t *value        # what it must say; length 0 is anything
    size_t value_length
    int pool

cdef enum:
    MODEL_BUCKETS = 256         # a power of two
    MAX_WEIGHT = 1000           # of a backend; as many tiers

# A worker has one at a time; an exchange keeps the one that its attempt began with.
cdef struct TableC:
    RouteC *routes              # by slot, `room` of them; table_route() looks one up
    int room
    int count                   # slots in use
    PoolC *pools
    int pool_count
    bint chooses                # the pool is found for each request; else there is one for all
    PoolC *entry                # what holds for a request before its pool is known: the one pool, or `front`
    PoolC front                 # the most generous limits, and no backend
    bint reads_model            # some pool is found by a model's name
    int default_pool            # -1 for none
    MemberC *members            # of all pools
    int member_count
    ModelC *models
    ModelC *buckets[MODEL_BUCKETS]
    ModelC *wildcards           # those that end with *, which is left out; the longest first
    int wildcard_count
    RuleC *rules                # the first that fits counts
    int rule_count
    uint8_t *text               # what names point to
    const uint8_t *listing      # the answer to GET /v1/models
    size_t listing_length       # 0: that is for a backend
    int model_count
    TokensC *tokens             # of requests whose model is not looked for
    bint ailing                 # a backend had failed and may be back: backends_probe() is to look
    uint32_t users              # the worker whose table it is, and exchanges; the worker's

cdef RouteC NO_ROUTE

cdef RouteC *table_route(TableC *table, int slot) noexcept nogil:
    # The route at a slot, which may be that of an older table: an empty one where this table has none there.
    return &table.routes[slot] if slot < table.count else &NO_ROUTE

cdef TableC *table_make(const LimitsC *limits, int room, int pools, int members) noexcept nogil:
    # A table with room for so many routes, pools and members, and none of them yet, for one worker; NULL where there is no memory. No
    # longer than it has to be, since old ones stay for as long as streams that began with them.
    cdef TableC *table = <TableC *>calloc(1, sizeof(TableC) + room * sizeof(RouteC) + pools * sizeof(PoolC)
                                          + members * sizeof(MemberC))
    if table is not NULL:
        table.routes = <RouteC *>(table + 1)
        table.room = room
        table.pools = <PoolC *>(table.routes + room)
        table.members = <MemberC *>(table.pools + pools)
        table.users = 1
        table.default_pool = -1
        table.front.limits = limits[0]
        table.entry = &table.front
    return table

cdef void table_free(TableC *table) noexcept nogil:
    # A table that nobody uses, or NULL.
    cdef int i
    if table is NULL:
        return
    for i in range(table.count):
        if table.routes[i].backend is not NULL:
            sys_add_shared(&table.routes[i].backend.users, <uint32_t>-1)
    for i in range(table.pool_count):
        sys_add_shared(&table.pools[i].state.users, <uint32_t>-1)
        series_release(table.pools[i].series)
        free(table.pools[i].order)
    series_release(table.front.series)
    for i in range(table.member_count):
        series_release(table.members[i].series)
    for i in range(table.model_count):
        tokens_release(table.models[i].tokens)
    tokens_release(table.tokens)
    free(table.models)
    free(table.rules)
    free(table.text)
    free(table)

cdef void table_release(TableC *table) noexcept nogil:
    # One user less; the last one frees it.
    table.users -= 1
    if not table.users:
        table_free(table)

cdef PoolC *table_pool(TableC *table, PoolStateC *state) noexcept nogil:
    # The pool that goes by that state; the entry where there is none: it has no backend, or is the only pool.
    cdef int i
    if state is not NULL:
        for i in range(table.pool_count):
            if table.pools[i].state is state:
                return &table.pools[i]
    return table.entry

cdef SeriesC *pool_series(TableC *table, PoolC *pool, int32_t backend) noexcept nogil:
    # That of exchanges with the backend of that id, for this pool.
    cdef int i
    if backend >= 0:
        for i in range(pool.count):
            if table.routes[pool.members[i].slot].backend.id == backend:
                return pool.members[i].series
    return pool.series

cdef void pool_put(TableC *table, PoolC *pool, int slot, uint32_t weight, uint32_t tier) noexcept nogil:
    # Puts the backend at a slot, which is in the table, into the pool that was made last.
    cdef MemberC *member
    cdef RouteC *route = &table.routes[slot]
    member = &pool.members[pool.count]
    member.slot = slot
    member.weight = weight
    member.tier = tier
    member.first_turn = pool.turns
    pool.turns += weight
    pool.count += 1
    table.member_count += 1
    if route.upstream_idle_timeout < 0 or pool.limits.upstream_idle_timeout < route.upstream_idle_timeout:
        route.upstream_idle_timeout = pool.limits.upstream_idle_timeout

cdef PoolC *pool_add(TableC *table, PoolStateC *state, const LimitsC *limits) noexcept nogil:
    # One more pool, without members. Where it stays the only one, it is every request's from the beginning.
    cdef PoolC *pool = &table.pools[table.pool_count]
    pool.limits = limits[0]
    pool.state = state
    pool.members = (pool - 1).members + (pool - 1).count if table.pool_count else table.members
    sys_add_shared(&state.users, 1)
    table.pool_count += 1
    table.entry = pool
    return pool

cdef int64_t longer(int64_t one, int64_t other) noexcept nogil:
    # The longer of two time-outs; 0 is off.
    return 0 if not one or not other else one if one > other else other

cdef void table_choose(TableC *table) noexcept nogil:
    # Has the pool found for each request. Until then no limit is stricter than that of any pool.
    cdef LimitsC *limits = &table.front.limits
    cdef const LimitsC *more
    cdef int i
    limits[0] = table.pools[0].limits
    for i in range(1, table.pool_count):
        more = &table.pools[i].limits
        if more.max_body > limits.max_body:
            limits.max_body = more.max_body
        limits.idle_timeout = longer(limits.idle_timeout, more.idle_timeout)
        limits.total_timeout = longer(limits.total_timeout, more.total_timeout)
        limits.ttft_timeout = longer(limits.ttft_timeout, more.ttft_timeout)
    table.entry = &table.front
    table.chooses = True

cdef uint32_t model_hash(const uint8_t *name, size_t n) noexcept nogil:
    # The names are the operator's: nobody can choose them so that they collide.
    return <uint32_t>text_hash(name, n) & (MODEL_BUCKETS - 1)

cdef ModelC *model_exact(TableC *table, const uint8_t *name, size_t n) noexcept nogil:
    # The entry of that very name, or NULL.
    cdef ModelC *model = table.buckets[model_hash(name, n)]
    while model is not NULL and (model.length != n or memcmp(model.name, name, n) != 0):
        model = model.next
    return model

cdef ModelC *model_find(TableC *table, const uint8_t *name, size_t n) noexcept nogil:
    # What a model's name leads to: the entry of that name, or the longest wildcard that fits; NULL where there is neither.
    cdef ModelC *model = model_exact(table, name, n)
    cdef int i
    if model is not NULL:
        return model
    for i in range(table.wildcard_count):
        model = &table.wildcards[i]
        if model.length <= n and memcmp(model.name, name, model.length) == 0:
            return model
    return NULL
