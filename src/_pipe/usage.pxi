# usage: the tokens of an answer, read out of it as it goes by (rule Q). No byte is changed or held: the pieces are searched for the
# two names under which servers tell, and only the object behind such a name is read, byte by byte, wherever the pieces are cut.
#
#   "usage"      prompt_tokens, completion_tokens, prompt_tokens_details.cached_tokens     chat, completions: OpenAI, vLLM, SGLang,
#                                                                                          Ollama
#                input_tokens, output_tokens, input_tokens_details.cached_tokens           responses
#                input_tokens, cache_read_input_tokens, cache_creation_input_tokens,       messages: of the prompt's the first ones are
#                output_tokens                                                             the rest
#   "timings"    prompt_n, cache_n, predicted_n                                            llama.cpp
#
# The last that is told counts, for each number: messages tell the prompt's at the beginning and the answer's at the end. A text that
# shows such an object has its quotes escaped, as the whole is JSON; a name in it is none here.

cdef enum:
    USAGE_SEARCH = 0            # for one of the names
    USAGE_COLON = 1             # behind it
    USAGE_VALUE = 2
    USAGE_KEY_OR_END = 3        # in the object
    USAGE_KEY = 4
    USAGE_KEY_COLON = 5
    USAGE_MEMBER = 6            # a member's value begins
    USAGE_NUMBER = 7
    USAGE_SCALAR = 8            # anything but a whole number, to its end
    USAGE_STRING = 9
    USAGE_ESCAPE = 10           # in a string, behind a backslash
    USAGE_KEY_ESCAPE = 11       # in a key, the same

cdef enum:
    USAGE_DEPTH = 4             # objects and arrays inside of it; deeper ones no server has
    USAGE_KEY_ROOM = 32
    USAGE_NAME_ROOM = 9         # "timings" with its quotes
    USAGE_MOST = 1000000000     # tokens; more are none

cdef enum:
    USAGE_PROMPT = 0            # cached ones included
    USAGE_COMPLETION = 1
    USAGE_CACHED = 2
    USAGE_CREATED = 3           # of the prompt, written into a cache
    USAGE_READ = 4              # of the prompt, read from a cache and not counted in it
    USAGE_TIMED_PROMPT = 5      # the same as llama.cpp has them
    USAGE_TIMED_COMPLETION = 6
    USAGE_TIMED_CACHED = 7
    USAGE_INPUT = 8             # the prompt as messages and responses name it
    USAGE_COUNT = 9

cdef struct UsageC:
    uint8_t state               # USAGE_*
    uint8_t depth
    uint8_t name_length         # of what may be the beginning of a name, at the end of the last piece
    uint8_t key_length
    uint8_t arrays              # a bit for each depth: it is an array
    uint16_t known              # a bit for each count
    uint8_t name[USAGE_NAME_ROOM]
    uint8_t key[USAGE_KEY_ROOM]
    int64_t number
    int64_t counts[USAGE_COUNT]

cdef size_t usage_name_at(const uint8_t *p, const uint8_t *end, const uint8_t *g) noexcept nogil:
    # The length of the name that has this g, quotes included, where one does; else 0.
    if g - p >= 4 and end - g >= 3 and memcmp(g - 4, <const char *>b'"usage"', 7) == 0:
        return 7
    if g - p >= 6 and end - g >= 3 and memcmp(g - 6, <const char *>b'"timings"', 9) == 0:
        return 9
    return 0

cdef uint8_t usage_name_begins(const uint8_t *p, size_t n) noexcept nogil:
    # How many of the last bytes may be the beginning of a name.
    cdef size_t length = 1
    while length <= n and p[n - length] != c'"':
        length += 1
        if length == USAGE_NAME_ROOM:
            return 0
    if length <= n and ((length < 7 and memcmp(p + n - length, <const char *>b'"usage"', length) == 0)
                        or memcmp(p + n - length, <const char *>b'"timings"', length) == 0):
        return <uint8_t>length
    return 0

cdef bint key_is(const UsageC *usage, const char *key) noexcept nogil:
    return usage.key_length == strlen(key) and memcmp(usage.key, key, usage.key_length) == 0

cdef int usage_count_of(const UsageC *usage) noexcept nogil:
    # What a number behind this key counts; -1 for nothing that is looked for.
    if key_is(usage, b"cached_tokens"):
        return USAGE_CACHED
    if usage.depth > 1:
        return -1
    if key_is(usage, b"prompt_tokens"):
        return USAGE_PROMPT
    if key_is(usage, b"input_tokens"):
        return USAGE_INPUT
    if key_is(usage, b"completion_tokens") or key_is(usage, b"output_tokens"):
        return USAGE_COMPLETION
    if key_is(usage, b"cache_read_input_tokens"):
        return USAGE_READ
    if key_is(usage, b"cache_creation_input_tokens"):
        return USAGE_CREATED
    if key_is(usage, b"prompt_n"):
        return USAGE_TIMED_PROMPT
    if key_is(usage, b"predicted_n"):
        return USAGE_TIMED_COMPLETION
    if key_is(usage, b"cache_n"):
        return USAGE_TIMED_CACHED
    return -1

cdef void usage_number_ends(UsageC *usage) noexcept nogil:
    cdef int which = usage_count_of(usage)
    if which >= 0 and usage.number <= USAGE_MOST:
        usage.counts[which] = usage.number
        usage.known |= <uint16_t>(1 << which)

cdef bint usage_inside(UsageC *usage, uint8_t c) noexcept nogil:
    # In the object: takes one byte. Whether more of it is to come; False behind its end, and where it is none.
    if usage.state == USAGE_STRING or usage.state == USAGE_KEY:
        if c == c"\\":
            if usage.state == USAGE_KEY:
                usage.key_length = USAGE_KEY_ROOM + 1       # no name that is looked for has an escape
            usage.state = USAGE_KEY_ESCAPE if usage.state == USAGE_KEY else USAGE_ESCAPE
        elif c == c'"':
            usage.state = USAGE_KEY_COLON if usage.state == USAGE_KEY else USAGE_KEY_OR_END
        elif usage.state == USAGE_KEY and usage.key_length < USAGE_KEY_ROOM:
            usage.key[usage.key_length] = c
            usage.key_length += 1
        elif usage.state == USAGE_KEY:
            usage.key_length = USAGE_KEY_ROOM + 1
        return True
    if usage.state == USAGE_ESCAPE or usage.state == USAGE_KEY_ESCAPE:
        usage.state = USAGE_STRING if usage.state == USAGE_ESCAPE else USAGE_KEY
        return True
    if usage.state == USAGE_NUMBER:
        if c"0" <= c <= c"9":
            if usage.number <= USAGE_MOST:
                usage.number = usage.number * 10 + (c - c"0")
            return True
        if c == c"." or c == c"e" or c == c"E":
            usage.state = USAGE_SCALAR
            return True
        usage_number_ends(usage)
        usage.state = USAGE_KEY_OR_END
    elif usage.state == USAGE_SCALAR:
        if c != c"," and c != JSON_CLOSE and c != c"]":
            return True
        usage.state = USAGE_KEY_OR_END
    if c == c" " or c == c"\t" or c == c"\r" or c == c"\n":
        return True
    if usage.state == USAGE_KEY_COLON:
        usage.state = USAGE_MEMBER
        return c == c":"
    if c == JSON_CLOSE or c == c"]":
        if (c == c"]") != (((usage.arrays >> usage.depth) & 1) != 0):
            return False
        usage.depth -= 1
        usage.state = USAGE_KEY_OR_END
        return usage.depth > 0
    if c == c",":
        return usage.state == USAGE_KEY_OR_END
    if usage.state == USAGE_KEY_OR_END and not (usage.arrays >> usage.depth) & 1:
        usage.key_length = 0
        usage.state = USAGE_KEY
        return c == c'"'
    # A value, of a member or in an array.
    if c == JSON_OPEN or c == c"[":
        usage.depth += 1
        usage.arrays &= <uint8_t>~(1 << usage.depth)
        if c == c"[":
            usage.arrays |= <uint8_t>(1 << usage.depth)
            usage.key_length = 0        # numbers in it are no counts
        usage.state = USAGE_KEY_OR_END
        return usage.depth <= USAGE_DEPTH
    if c == c'"':
        usage.state = USAGE_STRING
    elif c"0" <= c <= c"9":
        usage.number = c - c"0"
        usage.state = USAGE_NUMBER
    else:
        usage.state = USAGE_SCALAR
    return True

cdef size_t usage_take(UsageC *usage, const uint8_t *p, size_t n) noexcept nogil:
    # Behind a name: takes bytes until its object has ended, or is none. How many.
    cdef size_t i
    for i in range(n):
        if usage.state >= USAGE_KEY_OR_END:
            if not usage_inside(usage, p[i]):
                usage.state = USAGE_SEARCH
        elif p[i] == c" " or p[i] == c"\t" or p[i] == c"\r" or p[i] == c"\n":
            continue
        elif usage.state == USAGE_COLON and p[i] == c":":
            usage.state = USAGE_VALUE
        elif usage.state == USAGE_VALUE and p[i] == JSON_OPEN:
            usage.state = USAGE_KEY_OR_END
            usage.depth = 1
            usage.arrays = 0
        else:
            usage.state = USAGE_SEARCH
        if usage.state == USAGE_SEARCH:
            return i + 1
    return n

cdef size_t usage_name_goes_on(UsageC *usage, const uint8_t *p, size_t n) noexcept nogil:
    # The last piece ended with what may be the beginning of a name: how many bytes of this one belong to it.
    cdef size_t taken = 0
    while usage.name_length and taken < n:
        usage.name[usage.name_length] = p[taken]
        usage.name_length += 1
        taken += 1
        if memcmp(usage.name, <const char *>b'"usage"', usage.name_length if usage.name_length < 7 else 7) == 0:
            if usage.name_length == 7:
                usage.state = USAGE_COLON
                usage.name_length = 0
        elif memcmp(usage.name, <const char *>b'"timings"', usage.name_length) == 0:
            if usage.name_length == USAGE_NAME_ROOM:
                usage.state = USAGE_COLON
                usage.name_length = 0
        else:
            usage.name_length = 0
            taken -= 1          # it may be the quote of another name
    return taken

cdef void usage_read(UsageC *usage, const uint8_t *p, size_t n) noexcept nogil:
    # Looks through the next piece of an answer.
    cdef const uint8_t *end = p + n
    cdef const uint8_t *from_here
    cdef const uint8_t *g
    p += usage_name_goes_on(usage, p, n)
    while p < end:
        if usage.state != USAGE_SEARCH:
            p += usage_take(usage, p, end - p)
            continue
        from_here = p
        g = find_apart(p, end)
        while g is not NULL and not usage_name_at(from_here, end, g):
            g = find_apart(g + 1, end)
        if g is NULL:
            usage.name_length = usage_name_begins(from_here, end - from_here)
            memcpy(usage.name, end - usage.name_length, usage.name_length)
            return
        usage.state = USAGE_COLON
        p = g + 3

cdef bint usage_begins(const uint8_t *p, size_t n) noexcept nogil:
    # Whether something is to be read in a piece, or its end may be the beginning of a name.
    cdef const uint8_t *g = find_apart(p, p + n)
    while g is not NULL and not usage_name_at(p, p + n, g):
        g = find_apart(g + 1, p + n)
    return g is not NULL or usage_name_begins(p, n) > 0

ctypedef void (*UsageReadF)(UsageC *usage, const uint8_t *p, size_t n) noexcept nogil
ctypedef bint (*UsageBeginsF)(const uint8_t *p, size_t n) noexcept nogil

# Called through pointers, so that no compiler puts them into the loop that follows every event's framing.
cdef UsageReadF usage_reader = usage_read
cdef UsageBeginsF usage_beginner = usage_begins

cdef int64_t usage_known(const UsageC *usage, int which) noexcept nogil:
    # A count, or -1 where the backend did not tell.
    return usage.counts[which] if (usage.known >> which) & 1 else -1

cdef void usage_total(const UsageC *usage, int64_t *prompt, int64_t *completion, int64_t *cached) noexcept nogil:
    # What all that was told comes to: -1 for unknown, which is not 0.
    cdef int64_t read = usage_known(usage, USAGE_READ)
    cdef int64_t created = usage_known(usage, USAGE_CREATED)
    prompt[0] = usage_known(usage, USAGE_PROMPT)
    completion[0] = usage_known(usage, USAGE_COMPLETION)
    cached[0] = usage_known(usage, USAGE_CACHED)
    if prompt[0] < 0 and usage_known(usage, USAGE_INPUT) >= 0:
        prompt[0] = (usage_known(usage, USAGE_INPUT) + (read if read > 0 else 0) + (created if created > 0 else 0))
    if read >= 0:
        cached[0] = read
    if prompt[0] < 0 and completion[0] < 0:
        prompt[0] = usage_known(usage, USAGE_TIMED_PROMPT)
        completion[0] = usage_known(usage, USAGE_TIMED_COMPLETION)
        cached[0] = usage_known(usage, USAGE_TIMED_CACHED)
        if prompt[0] >= 0 and cached[0] > 0:
            prompt[0] += cached[0]
    elif cached[0] < 0:
        cached[0] = usage_known(usage, USAGE_TIMED_CACHED)
