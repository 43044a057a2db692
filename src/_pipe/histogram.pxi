# histogram: how often something took how long, in buckets that double.

cdef enum:
    HISTOGRAM_FIRST = 6         # the first bucket ends at 2^6 us
    HISTOGRAM_BUCKETS = 24      # the last with a bound at 2^29 us, nine minutes

BUCKETS = tuple(2.0 ** (HISTOGRAM_FIRST + i) / 1e6 for i in range(HISTOGRAM_BUCKETS))

cdef struct HistogramC:
    uint64_t counts[HISTOGRAM_BUCKETS + 1]
    uint64_t sum                # microseconds

cdef void histogram_add(HistogramC *histogram, int64_t us) noexcept nogil:
    # One count and one sum; the bucket is the value's highest bit.
    cdef int bucket = 0
    if us < 0:
        us = 0
    if us > 1 << HISTOGRAM_FIRST:
        bucket = sys_highest_bit(<uint64_t>(us - 1)) + 1 - HISTOGRAM_FIRST
        if bucket > HISTOGRAM_BUCKETS:
            bucket = HISTOGRAM_BUCKETS
    sys_add_counter(&histogram.counts[bucket], 1)
    sys_add_counter(&histogram.sum, <uint64_t>us)
