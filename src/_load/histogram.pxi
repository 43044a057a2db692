# histogram: counts of times with a relative error below 1 %, in the manner of HdrHistogram (Tene).
#
# Nanoseconds up to 255 have a count each; above, an octave is 128 equal steps. Adding is one count; percentiles are made
# in Python from the counts, so that those of several rounds are added before and nobody averages percentiles.

cdef enum:
    HISTOGRAM_SUB_BITS = 7
    HISTOGRAM_SIZE = 4352           # up to 2^40 ns, 18 minutes: shifts 0 to 32 of 128 steps, and 128 more

cdef struct HistogramC:
    uint64_t counts[HISTOGRAM_SIZE]
    uint64_t most                   # the greatest value, exact

cdef void histogram_add(HistogramC *histogram, int64_t ns) noexcept nogil:
    cdef uint64_t value = <uint64_t>ns if ns > 0 else 0
    cdef int shift = 0
    cdef size_t at
    if value > histogram.most:
        sys_set_counter(&histogram.most, value)
    if value >> (HISTOGRAM_SUB_BITS + 1):
        shift = sys_highest_bit(value) - HISTOGRAM_SUB_BITS
    at = (<size_t>shift << HISTOGRAM_SUB_BITS) + <size_t>(value >> shift)
    if at >= HISTOGRAM_SIZE:
        at = HISTOGRAM_SIZE - 1
    sys_add_counter(&histogram.counts[at], 1)
