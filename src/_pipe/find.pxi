# find: the names under which an answer tells of its tokens, looked for in vectors of bytes.
#
# "usage" and "timings" have one thing in common: a g, and a quote behind the byte that follows it. Every piece of every answer is
# searched for that. memchr() for any byte of them was rejected: it stops several times in an ordinary event, and each call costs what
# this costs in all. What the processor can do is looked at once; elsewhere than on x86-64 the bytes are looked at one by one.

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    static inline const uint8_t *find_apart_tail(const uint8_t *p, const uint8_t *end) {
        for (; end - p > 2; p++)
            if (p[0] == 'g' && p[2] == '"')
                return p;
        return NULL;
    }
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    #define FIND_IN_32(p) \\
        _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(p)), letter), \\
                         _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)((p) + 2)), quote))
    #define FIND_IN_64(p) _mm256_or_si256(FIND_IN_32(p), FIND_IN_32((p) + 32))
    __attribute__((target("avx2"))) static const uint8_t *find_apart_avx2(const uint8_t *p, const uint8_t *end) {
        const __m256i letter = _mm256_set1_epi8('g'), quote = _mm256_set1_epi8('"');
        const uint8_t *last = end - 130;
        for (;;) {      /* the last look ends with the bytes */
            __m256i any = _mm256_or_si256(FIND_IN_64(p), FIND_IN_64(p + 64));
            if (__builtin_expect(!_mm256_testz_si256(any, any), 0))
                break;
            if (p >= last)
                return NULL;
            p = p + 128 > last ? last : p + 128;
        }
        for (;; p += 32) {
            uint32_t found = (uint32_t)_mm256_movemask_epi8(FIND_IN_32(p));
            if (found)
                return p + __builtin_ctz(found);
        }
    }
    static const uint8_t *find_apart_sse2(const uint8_t *p, const uint8_t *end) {
        const __m128i letter = _mm_set1_epi8('g'), quote = _mm_set1_epi8('"');
        for (; end - p >= 18; p += 16) {
            uint32_t found = (uint32_t)_mm_movemask_epi8(
                _mm_and_si128(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)p), letter),
                              _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + 2)), quote)));
            if (found)
                return p + __builtin_ctz(found);
        }
        return find_apart_tail(p, end);
    }
    static const uint8_t *(*find_apart_long)(const uint8_t *p, const uint8_t *end) = find_apart_sse2;
    __attribute__((constructor)) static void find_init(void) {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2"))
            find_apart_long = find_apart_avx2;
    }
    static inline const uint8_t *find_apart(const uint8_t *p, const uint8_t *end) {
        return end - p < 130 ? find_apart_sse2(p, end) : find_apart_long(p, end);
    }
    #else
    #define find_apart find_apart_tail
    #endif
    """
    # The first g with a quote two bytes behind it in what lies between the two; NULL where there is none.
    const uint8_t *find_apart(const uint8_t *p, const uint8_t *end) noexcept nogil
