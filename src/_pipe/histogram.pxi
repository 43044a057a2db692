# histogram: counts of times with a relative error that is known, in the manner of HdrHistogram (Tene): values below 2^(bits + 1) have
# a count each; above, an octave is 2^bits equal steps. Adding is one count and one sum; percentiles and wider buckets are made from
# the counts when somebody asks. The load generator counts its times here too, in finer steps.

cdef enum:
    HISTOGRAM_SUB_BITS = 5      # steps of 1/32: the middle of one is at most 1.6 % off
    HISTOGRAM_SIZE = 897        # up to 2^32 us, 71 minutes: octaves 0 to 26 of 32 steps, and 32 more; and one for what is longer
    HISTOGRAM_FIRST = 6         # what a scrape gets are octaves: the first ends at 2^6 us ...
    HISTOGRAM_BUCKETS = 27      # ... and the last that has a bound at 2^32 us

cdef inline size_t histogram_at(uint64_t value, int sub_bits) noexcept nogil:
    # Which count is that of a value.
    cdef int shift = sys_highest_bit(value | <uint64_t>1 << sub_bits) - sub_bits
    return (<size_t>shift << sub_bits) + <size_t>(value >> shift)

cdef inline uint64_t histogram_low(size_t at, int sub_bits) noexcept nogil:
    # The least value that is counted there.
    cdef size_t shift = at >> sub_bits
    return at if shift < 2 else <uint64_t>(at - ((shift - 1) << sub_bits)) << (shift - 1)

# Of microseconds.
cdef struct HistogramC:
    uint64_t counts[HISTOGRAM_SIZE]
    uint64_t sum                # us

cdef inline void histogram_add(HistogramC *histogram, int64_t us) noexcept nogil:
    # `us` is not below 0: of one worker's clock.
    cdef size_t at = histogram_at(<uint64_t>us, HISTOGRAM_SUB_BITS)
    sys_add_counter(&histogram.counts[at if at < HISTOGRAM_SIZE else HISTOGRAM_SIZE - 1], 1)
    sys_add_counter(&histogram.sum, <uint64_t>us)

cdef HistogramC *histogram_begin(HistogramC **histogram) noexcept nogil:
    # It takes memory when it is used first; NULL where there is none. One thread writes; others read it behind the pointer.
    if histogram[0] is NULL:
        sys_store_pointer(<void **>histogram, calloc(1, sizeof(HistogramC)))
    return histogram[0]

cdef void histogram_note(HistogramC **histogram, int64_t us) noexcept nogil:
    # One that may be the first; it is not counted where there is no memory.
    if histogram_begin(histogram) is not NULL:
        histogram_add(histogram[0], us if us > 0 else 0)

cdef void histogram_total(const HistogramC *histogram, uint64_t *buckets) noexcept nogil:
    # Adds what is counted to the buckets that a scrape gets, which are one more than have a bound.
    cdef uint64_t n
    cdef int bucket
    cdef size_t i
    for i in range(<size_t>HISTOGRAM_SIZE):
        n = sys_read_counter(&histogram.counts[i])
        if n:
            bucket = sys_highest_bit(histogram_low(i, HISTOGRAM_SUB_BITS) | 1) + 1 - HISTOGRAM_FIRST
            buckets[bucket if bucket > 0 else 0] += n
