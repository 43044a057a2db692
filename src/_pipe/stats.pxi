# stats: the counters of a worker. Plain integers with one writer, the worker; Python reads them when it is scraped.

cdef struct BackendStatsC:
    uint64_t whose              # the backend's id + 1; 0 for nobody's yet
    uint64_t idle
    uint64_t exchanges
    uint64_t connects
    uint64_t reuses
    uint64_t failures
    uint64_t ejections          # failures that had it left out
    uint64_t flowing            # event streams with content that wait for it
    uint64_t content_at         # us; when content last came from it

cdef void backend_stats_take(BackendStatsC *stats, int32_t id) noexcept nogil:
    # A slot's counters are those of the backend with that id from now on: where they were another's, they begin anew. Idle
    # upstreams are there or not, whoever counts them.
    if stats.whose == <uint64_t>id + 1:
        return
    sys_set_counter(&stats.exchanges, 0)
    sys_set_counter(&stats.connects, 0)
    sys_set_counter(&stats.reuses, 0)
    sys_set_counter(&stats.failures, 0)
    sys_set_counter(&stats.ejections, 0)
    sys_set_counter(&stats.content_at, 0)
    sys_set_counter(&stats.whose, <uint64_t>id + 1)

cdef struct StatsC:
    uint64_t accepted
    uint64_t closed             # client connections
    uint64_t refused_closed     # of those, with a refusal
    uint64_t over_total         # client connections refused because there are too many in all
    uint64_t over_address       # because there are too many of their address
    uint64_t gave_way           # idle client connections closed to make room for others
    uint64_t silent             # closed because they never sent a byte
    uint64_t over_memory        # closed without an answer, because there was no memory for them
    uint64_t streaming_active
    uint64_t finishing          # exchanges whose client left and whose backend may finish
    uint64_t streaming_bytes    # of response bodies and tunnels, towards clients
    uint64_t bytes_up
    uint64_t reads_forwarded    # pieces of response bodies forwarded, one a recv
    uint64_t outcomes[OUTCOME_COUNT]
    uint64_t reasons[REASON_COUNT]
    uint64_t discarded[DISCARD_COUNT]  # bytes
    uint64_t connects
    uint64_t connect_errors
    uint64_t reuses
    uint64_t stale
    uint64_t retries[RETRY_COUNT]
    uint64_t records_dropped
    uint64_t upstreams          # open now
    BackendStatsC backends[MAX_BACKENDS]

cdef void discard(StatsC *stats, int why, size_t n) noexcept nogil:
    # Counts bytes that were received and will go nowhere (rule C1).
    if n:
        sys_add_counter(&stats.discarded[why], n)
