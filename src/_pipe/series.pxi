# series: the times of exchanges by pool and backend, and by outcome, and the tokens of a model. The control plane makes one for each
# that a table has, and frees it when nobody has it any more; a worker counts in its own.

cdef enum:
    SERIES_TTFT = 0
    SERIES_ITL = 1
    SERIES_CONNECT = 2
    SERIES_DISCONNECT = 3       # from a client's disconnect to its upstream's close
    SERIES_DURATION = 4         # and one for each outcome

BUCKETS = tuple(2.0 ** (HISTOGRAM_FIRST + i) / 1e6 for i in range(HISTOGRAM_BUCKETS))
EDGES = tuple(histogram_low(i, HISTOGRAM_SUB_BITS) / 1e6 for i in range(HISTOGRAM_SIZE + 1))

# Counts of tokens; each has one writer.
cdef struct TokenCountsC:
    uint64_t prompt
    uint64_t completion
    uint64_t cached             # of the prompt's

cdef struct SeriesC:
    TokenCountsC tokens
    HistogramC *times[SERIES_DURATION + OUTCOME_COUNT]      # NULL where nothing was counted yet
    uint32_t users              # tables that point to it
    int32_t backend             # its id; -1 for none: of exchanges that came to no backend
    SeriesC *next
    char pool[NAME_ROOM]        # empty for none

cdef struct TokensC:
    TokenCountsC counts
    uint32_t users              # tables that point to it, and exchanges
    TokensC *next
    size_t length
    uint8_t model[MODEL_ROOM]   # as the file names it; empty for all where none is looked for

cdef void tokens_add(TokenCountsC *counts, int64_t prompt, int64_t completion, int64_t cached) noexcept nogil:
    # Of one answer; -1 is unknown.
    sys_add_counter(&counts.prompt, <uint64_t>prompt if prompt > 0 else 0)
    sys_add_counter(&counts.completion, <uint64_t>completion if completion > 0 else 0)
    sys_add_counter(&counts.cached, <uint64_t>cached if cached > 0 else 0)

cdef inline void series_note(SeriesC *series, int which, int64_t us) noexcept nogil:
    if series is not NULL:
        histogram_note(&series.times[which], us)

cdef HistogramC *series_begin(SeriesC *series, int which) noexcept nogil:
    # For those that are noted often; NULL where nobody counts.
    return NULL if series is NULL else histogram_begin(&series.times[which])

cdef SeriesC *series_find(SeriesC **all, const char *pool, size_t n, int32_t backend) noexcept nogil:
    # Control plane: that of a pool and a backend, made where there is none; NULL where there is no memory. Has one more user.
    cdef SeriesC *series = all[0]
    while series is not NULL and (series.backend != backend or strlen(series.pool) != n or memcmp(series.pool, pool, n) != 0):
        series = series.next
    if series is NULL:
        series = <SeriesC *>calloc(1, sizeof(SeriesC))
        if series is NULL:
            return NULL
        memcpy(series.pool, pool, n)
        series.backend = backend
        series.next = all[0]
        all[0] = series
    sys_add_shared(&series.users, 1)
    return series

cdef void series_release(SeriesC *series) noexcept nogil:
    # A table is freed, by whoever used it last.
    if series is not NULL:
        sys_add_shared(&series.users, <uint32_t>-1)

cdef void series_sweep(SeriesC **all, bint every) noexcept nogil:
    # Control plane: frees those that no table points to, or every one.
    cdef SeriesC *series
    cdef int i
    while all[0] is not NULL:
        series = all[0]
        if sys_load_acquire(&series.users) and not every:
            all = &series.next
            continue
        all[0] = series.next
        for i in range(SERIES_DURATION + OUTCOME_COUNT):
            free(series.times[i])
        free(series)

cdef TokensC *tokens_find(TokensC **all, const uint8_t *model, size_t n) noexcept nogil:
    # Control plane: those of a model; as series_find().
    cdef TokensC *tokens = all[0]
    while tokens is not NULL and (tokens.length != n or memcmp(tokens.model, model, n) != 0):
        tokens = tokens.next
    if tokens is NULL:
        tokens = <TokensC *>calloc(1, sizeof(TokensC))
        if tokens is NULL:
            return NULL
        memcpy(tokens.model, model, n)
        tokens.length = n
        tokens.next = all[0]
        all[0] = tokens
    sys_add_shared(&tokens.users, 1)
    return tokens

cdef void tokens_release(TokensC *tokens) noexcept nogil:
    if tokens is not NULL:
        sys_add_shared(&tokens.users, <uint32_t>-1)

cdef void tokens_sweep(TokensC **all, bint every) noexcept nogil:
    cdef TokensC *tokens
    while all[0] is not NULL:
        tokens = all[0]
        if sys_load_acquire(&tokens.users) and not every:
            all = &tokens.next
            continue
        all[0] = tokens.next
        free(tokens)
