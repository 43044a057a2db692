# text: classes of bytes, comparisons without regard to case, and a writer that cannot run over its end.

cdef enum:
    TEXT_TOKEN = 1      # tchar, RFC 9110 section 5.6.2
    TEXT_VALUE = 2      # field-vchar, SP and HTAB, RFC 9110 section 5.5
    TEXT_TARGET = 4     # visible ASCII without "#", which no request target holds (RFC 9112 section 3.2)
    TEXT_DIGIT = 8
    TEXT_HEX = 16
    TEXT_VISIBLE = 64   # visible ASCII
    TEXT_HOST = 32      # what an authority is made of: unreserved, sub-delims without ",", "%", ":", "[", "]"

cdef uint8_t text_class[256]
cdef uint8_t text_lower[256]
cdef uint8_t text_hex[256]

cdef void text_init() noexcept nogil:
    # Fills the tables; called once, when the module is imported.
    cdef int c
    for c in range(256):
        text_class[c] = 0
        text_lower[c] = <uint8_t>c
        if c == 9 or (32 <= c and c != 127):
            text_class[c] |= TEXT_VALUE
        if 33 <= c < 127:
            text_class[c] |= TEXT_VISIBLE
            if c != c"#":
                text_class[c] |= TEXT_TARGET
        if c"0" <= c <= c"9":
            text_class[c] |= TEXT_DIGIT | TEXT_HEX | TEXT_TOKEN | TEXT_HOST
            text_hex[c] = <uint8_t>(c - c"0")
        elif c"A" <= c <= c"Z":
            text_class[c] |= TEXT_TOKEN | TEXT_HOST
            text_lower[c] = <uint8_t>(c + 32)
        elif c"a" <= c <= c"z":
            text_class[c] |= TEXT_TOKEN | TEXT_HOST
        if c"a" <= text_lower[c] <= c"f":
            text_class[c] |= TEXT_HEX
            text_hex[c] = <uint8_t>(text_lower[c] - c"a" + 10)
    text_mark(b"!#$%&'*+-.^_`|~", TEXT_TOKEN)
    text_mark(b"-._~!$&'()*+;=%:[]", TEXT_HOST)

cdef void text_mark(const char *members, uint8_t which) noexcept nogil:
    cdef size_t i
    for i in range(strlen(members)):
        text_class[<uint8_t>members[i]] |= which

cdef bint text_is(const uint8_t *p, size_t n, uint8_t which) noexcept nogil:
    # Whether all of p[0:n] is of the class.
    cdef size_t i
    for i in range(n):
        if not text_class[p[i]] & which:
            return False
    return True

cdef bint text_is_value(const uint8_t *p, size_t n) noexcept nogil:
    # text_is(p, n, TEXT_VALUE), eight bytes at a time: most of a head is values. A word without a byte below SP and without a DEL
    # is good; the sums that tell may see one where there is none, and a tab is one, so then the bytes are looked at.
    cdef uint64_t word
    cdef uint64_t not_del
    while n >= 8:
        memcpy(&word, p, 8)
        not_del = word ^ <uint64_t>0x7F7F7F7F7F7F7F7F
        if ((((word - <uint64_t>0x2020202020202020) & ~word) | ((not_del - <uint64_t>0x0101010101010101) & ~not_del))
                & <uint64_t>0x8080808080808080) and not text_is(p, 8, TEXT_VALUE):
            return False
        p += 8
        n -= 8
    return text_is(p, n, TEXT_VALUE)

cdef bint text_same(const uint8_t *p, size_t n, const char *lower) noexcept nogil:
    # Whether p[0:n] is `lower` (which is in lower case), whatever its own case.
    cdef size_t i
    for i in range(n):
        if text_lower[p[i]] != <uint8_t>lower[i] or lower[i] == 0:
            return False
    return lower[n] == 0

cdef bint text_same_bytes(const uint8_t *p, size_t n, const uint8_t *q, size_t m) noexcept nogil:
    cdef size_t i
    if n != m:
        return False
    for i in range(n):
        if text_lower[p[i]] != text_lower[q[i]]:
            return False
    return True

cdef uint64_t text_hash(const uint8_t *p, size_t n) noexcept nogil:
    # FNV-1a (Fowler, Noll and Vo, 1991).
    cdef uint64_t hashed = 0xcbf29ce484222325ULL
    cdef size_t i
    for i in range(n):
        hashed = (hashed ^ p[i]) * 0x100000001b3ULL
    return hashed

cdef int64_t text_number(const uint8_t *p, size_t n) noexcept nogil:
    # A decimal number of 1 to 18 digits and nothing else, or -1.
    cdef int64_t value = 0
    cdef size_t i
    if n < 1 or n > 18 or not text_is(p, n, TEXT_DIGIT):
        return -1
    for i in range(n):
        value = value * 10 + (p[i] - c"0")
    return value

cdef void text_digits(uint8_t *to, uint64_t value, int digits) noexcept nogil:
    # The last `digits` hexadecimal digits of a number, 8 or 16.
    cdef uint64_t spread
    cdef uint64_t text
    while digits >= 8:
        # Eight digits at once, one in each byte of a word.
        spread = value & 0xFFFFFFFFULL
        spread = (spread | spread << 16) & 0x0000FFFF0000FFFFULL
        spread = (spread | spread << 8) & 0x00FF00FF00FF00FFULL
        spread = (spread | spread << 4) & 0x0F0F0F0F0F0F0F0FULL
        text = spread + 0x3030303030303030ULL + ((spread + 0x0606060606060606ULL) >> 4 & 0x0101010101010101ULL) * 39
        text = sys_big_endian(text)
        digits -= 8
        memcpy(to + digits, &text, 8)
        value >>= 32

# Takes the next member of a comma separated list off the front of p[0:n]; white space is trimmed, empty members are
# skipped (RFC 9110 section 5.6.1). False when there is none left.
cdef bint text_next_member(const uint8_t **p, size_t *n, const uint8_t **member, size_t *length) noexcept nogil:
    cdef size_t i = 0
    cdef size_t start
    while i < n[0] and (p[0][i] == c"," or p[0][i] == c" " or p[0][i] == c"\t"):
        i += 1
    if i == n[0]:
        return False
    start = i
    while i < n[0] and p[0][i] != c",":
        i += 1
    member[0] = p[0] + start
    length[0] = i - start
    while length[0] and (member[0][length[0] - 1] == c" " or member[0][length[0] - 1] == c"\t"):
        length[0] -= 1
    p[0] += i
    n[0] -= i
    return True

cdef bint text_lists_nothing(const uint8_t *p, size_t n) noexcept nogil:
    # Whether a list has no member.
    cdef const uint8_t *member = NULL
    cdef size_t length = 0
    return not text_next_member(&p, &n, &member, &length)

# Writes into data[0:size]. What does not fit is not written and sets `full`; look at it once, at the end.
cdef struct WriterC:
    uint8_t *data
    size_t size
    size_t used
    bint full

cdef void write_start(WriterC *out, uint8_t *data, size_t size) noexcept nogil:
    out.data = data
    out.size = size
    out.used = 0
    out.full = False

cdef void write_bytes(WriterC *out, const void *p, size_t n) noexcept nogil:
    if n == 0:
        return
    if n > out.size - out.used:
        out.full = True
        return
    memcpy(out.data + out.used, p, n)
    out.used += n

cdef void write_text(WriterC *out, const char *text) noexcept nogil:
    write_bytes(out, text, strlen(text))

cdef void write_chunk_size(WriterC *out, size_t n) noexcept nogil:
    # The line in front of a chunk (RFC 9112 section 7.1). No snprintf: it costs a third of all that is done for an event.
    cdef const char *digits = b"0123456789abcdef"
    cdef char line[18]
    cdef int at = 16
    line[16] = c"\r"
    line[17] = c"\n"
    while True:
        at -= 1
        line[at] = digits[n & 15]
        n >>= 4
        if not n:
            break
    write_bytes(out, line + at, <size_t>(18 - at))

cdef void write_number(WriterC *out, int64_t value) noexcept nogil:
    cdef char digits[24]
    write_bytes(out, digits, <size_t>snprintf(digits, sizeof(digits), "%lld", <long long>value))
