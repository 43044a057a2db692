# member: what a request's JSON says of its stream: whether it asks for one, and for its usage (rule Q2). json reads; here it is kept.

cdef struct JsonC

# The member whose value comes next: one of the object itself, or of its stream_options.
cdef enum:
    MEMBER_OTHER = 0
    MEMBER_MODEL = 1
    MEMBER_STREAM = 2
    MEMBER_OPTIONS = 3
    MEMBER_USAGE = 4            # include_usage

# What the object says of stream_options so far.
cdef enum:
    OPTIONS_NONE = 0
    OPTIONS_NULL = 1
    OPTIONS_EMPTY = 2           # an object without members
    OPTIONS_OTHERS = 3          # one without include_usage
    OPTIONS_DECLINE = 4         # include_usage is there, and not true
    OPTIONS_ASK = 5             # it is true; or something that nobody can add to

cdef enum:
    OF_NOTHING = 0
    OF_STREAM = 1
    OF_OPTIONS = 2

cdef bint json_key_is(const JsonC *json, const char *name) noexcept nogil:
    # Whether a key that is the same but for its case is so in its case too: not every reader tells them apart.
    return memcmp(json.key, name, strlen(name)) == 0

cdef void json_option(JsonC *json) noexcept nogil:
    # The name of a member of the options is whole.
    if not text_same(json.key, json.key_length, b"include_usage"):
        if json.options == OPTIONS_EMPTY:
            json.options = OPTIONS_OTHERS
        return
    json.leave |= json.options > OPTIONS_OTHERS or not json_key_is(json, b"include_usage")
    json.member = MEMBER_USAGE

cdef void json_member(JsonC *json, uint8_t c) noexcept nogil:
    # The first byte of the value of a member that is looked for, other than the model.
    cdef bint literal = c == c"t" or c == c"f" or c == c"n"
    if json.member == MEMBER_STREAM:
        json.literal = OF_STREAM if literal else OF_NOTHING
    elif json.member == MEMBER_OPTIONS and c == JSON_OPEN:
        json.options = OPTIONS_EMPTY
        json.options_from = json.options_to = json.at + 1
        json.in_options = True
    else:
        json.options = OPTIONS_ASK
        json.options_from = json.at
        json.literal = OF_OPTIONS if literal else OF_NOTHING
    json.key[0] = c             # what there was is no longer wanted
    json.key_length = 1
    json.member = MEMBER_OTHER

cdef void json_literal_end(JsonC *json) noexcept nogil:
    # A literal is whole that is the value of a member that is looked for.
    cdef bint yes = json.key_length == 4 and memcmp(json.key, <const char *>b"true", 4) == 0
    cdef bint none = json.key_length == 4 and memcmp(json.key, <const char *>b"null", 4) == 0
    if not yes and not none and not (json.key_length == 5 and memcmp(json.key, <const char *>b"false", 5) == 0):
        json.leave = True
    elif json.literal == OF_STREAM:
        json.streams = yes
    elif not yes:
        # Inside of the options it is include_usage; else it is the options themselves.
        json.options = OPTIONS_DECLINE if json.in_options else OPTIONS_NULL if none else OPTIONS_ASK
        json.options_to = json.at
    json.literal = OF_NOTHING
