# outcome: how an exchange ends, and why: the enums and, in one table each, the words that logs, metrics and error answers use
# for them.

# How an exchange ended; each exchange counts exactly one.
cdef enum:
    OUTCOME_OK = 0
    OUTCOME_CLIENT_ABORT = 1
    OUTCOME_UPSTREAM_ABORT = 2
    OUTCOME_UPSTREAM_ERROR = 3
    OUTCOME_CONNECT_ERROR = 4
    OUTCOME_NO_BACKEND = 5
    OUTCOME_TIMEOUT_CONNECT = 6
    OUTCOME_TIMEOUT_TTFT = 7
    OUTCOME_TIMEOUT_IDLE = 8
    OUTCOME_TIMEOUT_TOTAL = 9
    OUTCOME_TIMEOUT_SEND = 10
    OUTCOME_TIMEOUT_HEAD = 11
    OUTCOME_TIMEOUT_BODY = 12
    OUTCOME_BAD_REQUEST = 13
    OUTCOME_OVERLOAD = 14
    OUTCOME_SHUTDOWN = 15
    OUTCOME_QUEUE_FULL = 16
    OUTCOME_QUEUE_TIMEOUT = 17
    OUTCOME_COUNT = 18

# Why an attempt failed, or a request was refused (rule E4). Each is a label of a metric and a word list for operators: what
# they read must tell where to look, without a capture.
cdef enum:
    REASON_NONE = 0
    # of the network
    REASON_FIN_BEFORE_HEAD = 1
    REASON_FIN_IN_HEAD = 2
    REASON_FIN_IN_BODY = 3
    REASON_ECONNRESET = 4
    REASON_EPIPE = 5
    REASON_ECONNREFUSED = 6
    REASON_ETIMEDOUT = 7
    REASON_EHOSTUNREACH = 8
    REASON_ENETUNREACH = 9
    REASON_ERRNO = 10           # any other; the log line has its number
    # a time-out of the proxy's own: the outcome says which
    REASON_DEADLINE = 11
    # of a head, of either side (rules A2, A4 and C2)
    REASON_FIRST_LINE = 12
    REASON_HEAD_TOO_LONG = 13
    # of the backend's bytes
    REASON_BEHIND_END = 14
    REASON_UNASKED = 15
    REASON_UNASKED_UPGRADE = 16
    # of the proxy itself
    REASON_NO_MEMORY = 17
    REASON_NO_DESCRIPTORS = 18
    # of a head again
    REASON_FIELDS = 19
    REASON_TLS = 20
    REASON_BARE_LF = 21
    REASON_BARE_CR = 22
    REASON_CONTROL = 23
    REASON_FOLDED = 24
    REASON_SPACE_BEFORE_COLON = 25
    REASON_FIELD_NAME = 26
    REASON_LENGTH = 27
    REASON_TWO_LENGTHS = 28
    REASON_CODING = 29
    REASON_TWO_CODINGS = 30
    REASON_TWO_FRAMINGS = 31
    REASON_OLD_CHUNKED = 32
    REASON_CONNECTION = 33
    REASON_HOST = 34
    REASON_TWO_HOSTS = 35
    # of a request's head
    REASON_NO_HOST = 36
    REASON_LINE_TOO_LONG = 37
    REASON_TARGET = 38
    REASON_VERSION = 39
    REASON_CONNECT = 40
    REASON_EXPECTATION = 41
    REASON_BODY_TOO_LONG = 42
    # of a response's head
    REASON_INTERIM_BODY = 43
    REASON_EMPTY_BODY = 44
    # of the chunks of either side
    REASON_CHUNK_SIZE = 45
    REASON_CHUNK_EXTENSION = 46
    REASON_CHUNK_END = 47
    REASON_TRAILER = 48
    # of too many clients
    REASON_CONNECTIONS_OF_ADDRESS = 49
    REASON_CONNECTIONS = 50
    # of the way to a backend (rule J)
    REASON_NO_ROUTE = 51
    REASON_KEPT_MEMORY = 52
    REASON_CHARSET = 53
    REASON_JSON = 54
    REASON_TWO_MODELS = 55
    REASON_MODEL_CASE = 56
    REASON_MODEL_TYPE = 57
    REASON_NO_MODEL = 58
    REASON_UNKNOWN_MODEL = 59
    # of a queue (rule M)
    REASON_QUEUE_FULL = 60
    REASON_TOO_LATE = 61
    # of the backend's answers (rule L1)
    REASON_ERRORS = 62
    # of the beginning of an event stream (rule N1)
    REASON_ERROR_EVENT = 63
    REASON_NO_EVENT = 64
    REASON_COUNT = 65

cdef struct WordsC:
    const char *name        # in logs and metrics; of an outcome, the code of an error answer too
    const char *message     # what an error answer says to a person who wrote a client

cdef WordsC outcome_words[OUTCOME_COUNT]
cdef WordsC reason_words[REASON_COUNT]
cdef const char *status_phrases[600]    # of the statuses that we answer with ourselves (RFC 9110 section 15)

cdef void outcome_set(int outcome, const char *name, const char *message) noexcept nogil:
    outcome_words[outcome].name = name
    outcome_words[outcome].message = message

cdef void reason_set(int reason, const char *name, const char *message) noexcept nogil:
    reason_words[reason].name = name
    reason_words[reason].message = message

cdef void outcome_init() noexcept nogil:
    cdef const char *refused = b"The request was refused."
    cdef const char *broken = b"The request is not well-formed HTTP/1."
    outcome_set(OUTCOME_OK, b"ok", refused)
    outcome_set(OUTCOME_CLIENT_ABORT, b"client_abort", refused)
    outcome_set(OUTCOME_UPSTREAM_ABORT, b"upstream_abort", b"The inference server broke off its answer.")
    outcome_set(OUTCOME_UPSTREAM_ERROR, b"upstream_error",
                b"The inference server closed the connection or broke the protocol before it answered.")
    outcome_set(OUTCOME_CONNECT_ERROR, b"connect_error", b"No inference server could be connected.")
    outcome_set(OUTCOME_NO_BACKEND, b"no_backend", b"No inference server takes requests now.")
    outcome_set(OUTCOME_TIMEOUT_CONNECT, b"timeout_connect", b"The inference server did not accept the connection in time.")
    outcome_set(OUTCOME_TIMEOUT_TTFT, b"timeout_ttft", b"The inference server did not begin to answer in time.")
    outcome_set(OUTCOME_TIMEOUT_IDLE, b"timeout_idle", b"The inference server stalled.")
    outcome_set(OUTCOME_TIMEOUT_TOTAL, b"timeout_total", b"The exchange took longer than it may.")
    outcome_set(OUTCOME_TIMEOUT_SEND, b"timeout_send", refused)
    outcome_set(OUTCOME_TIMEOUT_HEAD, b"timeout_head", b"The request head did not arrive in time.")
    outcome_set(OUTCOME_TIMEOUT_BODY, b"timeout_body", b"The request body did not arrive in time.")
    outcome_set(OUTCOME_BAD_REQUEST, b"bad_request", refused)
    outcome_set(OUTCOME_OVERLOAD, b"overload", b"The proxy has no descriptors or memory left; try again soon.")
    outcome_set(OUTCOME_SHUTDOWN, b"shutdown", b"The proxy is shutting down.")
    outcome_set(OUTCOME_QUEUE_FULL, b"queue_full", b"Every inference server is busy, and the queue is full.")
    outcome_set(OUTCOME_QUEUE_TIMEOUT, b"queue_timeout", b"No inference server has a free place in time.")
    reason_set(REASON_NONE, b"", broken)
    reason_set(REASON_FIN_BEFORE_HEAD, b"FIN before the head", broken)
    reason_set(REASON_FIN_IN_HEAD, b"FIN in the head", broken)
    reason_set(REASON_FIN_IN_BODY, b"FIN in the body", broken)
    reason_set(REASON_ECONNRESET, b"ECONNRESET", broken)
    reason_set(REASON_EPIPE, b"EPIPE", broken)
    reason_set(REASON_ECONNREFUSED, b"ECONNREFUSED", broken)
    reason_set(REASON_ETIMEDOUT, b"ETIMEDOUT", broken)
    reason_set(REASON_EHOSTUNREACH, b"EHOSTUNREACH", broken)
    reason_set(REASON_ENETUNREACH, b"ENETUNREACH", broken)
    reason_set(REASON_ERRNO, b"other errno", broken)
    reason_set(REASON_DEADLINE, b"deadline", broken)
    reason_set(REASON_FIRST_LINE, b"broken first line",
               b"The first line is no request line: METHOD, one space, target, one space, HTTP/1.1, CRLF.")
    reason_set(REASON_HEAD_TOO_LONG, b"head over the limit", b"The request head is longer than the limit.")
    reason_set(REASON_BEHIND_END, b"bytes behind the end", broken)
    reason_set(REASON_UNASKED, b"bytes before the request", broken)
    reason_set(REASON_UNASKED_UPGRADE, b"101 without a request to upgrade", broken)
    reason_set(REASON_NO_MEMORY, b"no memory", broken)
    reason_set(REASON_NO_DESCRIPTORS, b"no descriptors", broken)
    reason_set(REASON_FIELDS, b"more fields than the limit", b"The request head has more fields than the limit.")
    reason_set(REASON_TLS, b"TLS", b"This port speaks plain HTTP, and TLS was sent to it; use http:// in the URL.")
    reason_set(REASON_BARE_LF, b"bare LF", b"A line ends with LF; each has to end with CRLF.")
    reason_set(REASON_BARE_CR, b"bare CR", b"There is a CR without an LF behind it.")
    reason_set(REASON_CONTROL, b"control character", b"There is a control character in the head.")
    reason_set(REASON_FOLDED, b"folded line", b"A line begins with white space; fields may not be folded.")
    reason_set(REASON_SPACE_BEFORE_COLON, b"space before the colon",
               b"There is white space between the name of a field and its colon.")
    reason_set(REASON_FIELD_NAME, b"bad field name",
               b"A line of the head is no field: the name has a character that none may have, or the colon is missing.")
    reason_set(REASON_LENGTH, b"bad Content-Length", b"Content-Length is not a number of at most 18 digits.")
    reason_set(REASON_TWO_LENGTHS, b"two Content-Lengths", b"There is more than one Content-Length.")
    reason_set(REASON_CODING, b"bad Transfer-Encoding", b"Transfer-Encoding is something else than chunked.")
    reason_set(REASON_TWO_CODINGS, b"two Transfer-Encodings", b"There is more than one Transfer-Encoding.")
    reason_set(REASON_TWO_FRAMINGS, b"Content-Length and Transfer-Encoding",
               b"There are both Content-Length and Transfer-Encoding.")
    reason_set(REASON_OLD_CHUNKED, b"Transfer-Encoding in HTTP/1.0", b"HTTP/1.0 has no Transfer-Encoding.")
    reason_set(REASON_CONNECTION, b"bad Connection",
               b"Connection is not a list of at most 16 names, or names Host or a field of the framing.")
    reason_set(REASON_HOST, b"bad Host", b"Host is not a host and perhaps a port.")
    reason_set(REASON_TWO_HOSTS, b"two Hosts", b"There is more than one Host.")
    reason_set(REASON_NO_HOST, b"no Host", b"There is no Host.")
    reason_set(REASON_LINE_TOO_LONG, b"request line over the limit", b"The request line is longer than the limit.")
    reason_set(REASON_TARGET, b"bad target",
               b"The request target is neither a path, an http URL nor the * of OPTIONS, or holds a character that none may.")
    reason_set(REASON_VERSION, b"other version", b"Only HTTP/1.0 and HTTP/1.1 are supported.")
    reason_set(REASON_CONNECT, b"CONNECT", b"The method CONNECT is not supported.")
    reason_set(REASON_EXPECTATION, b"other expectation", b"No other expectation than 100-continue is understood.")
    reason_set(REASON_BODY_TOO_LONG, b"body over the limit", b"The request body is longer than the limit.")
    reason_set(REASON_INTERIM_BODY, b"1xx with a body", broken)
    reason_set(REASON_EMPTY_BODY, b"204 with a body", broken)
    reason_set(REASON_CHUNK_SIZE, b"bad chunk size",
               b"The size of a chunk is not a hexadecimal number below 2^63 of at most 16 digits with CRLF or an extension behind it.")
    reason_set(REASON_CHUNK_EXTENSION, b"bad chunk extension",
               b"A chunk extension is not ;name, ;name=token or ;name=quoted-string, or longer than 256 bytes.")
    reason_set(REASON_CHUNK_END, b"no line end behind a chunk", b"There is no CRLF behind the data of a chunk.")
    reason_set(REASON_TRAILER, b"bad trailer", b"A trailer is no field, is too long, or is a field that no trailer may be.")
    reason_set(REASON_CONNECTIONS_OF_ADDRESS, b"connections of one address", broken)
    reason_set(REASON_CONNECTIONS, b"connections of all", broken)
    reason_set(REASON_NO_ROUTE, b"no route", b"No route is configured for this path, and its body names no model that could be read: "
               b"send JSON with a model, or ask the operator for a route.")
    reason_set(REASON_KEPT_MEMORY, b"kept memory over the limit", broken)
    reason_set(REASON_CHARSET, b"other charset", b"JSON is UTF-8; the Content-Type names another charset.")
    reason_set(REASON_JSON, b"bad JSON", b"The request body is not a JSON object.")
    reason_set(REASON_TWO_MODELS, b"two models", b"The request body names a model twice.")
    reason_set(REASON_MODEL_CASE, b"model in another case",
               b"A name in the request body differs from model in its case only; some servers would read it as the model.")
    reason_set(REASON_MODEL_TYPE, b"model is no string", b"The model in the request body is not a string.")
    reason_set(REASON_NO_MODEL, b"no model", b"The request body names no model; one is needed to find the servers that have it.")
    reason_set(REASON_UNKNOWN_MODEL, b"unknown model", b"No server here has the model that the request names.")
    reason_set(REASON_QUEUE_FULL, b"queue full", broken)
    reason_set(REASON_TOO_LATE, b"its turn would come too late", broken)
    reason_set(REASON_ERRORS, b"5xx in a row", broken)
    reason_set(REASON_ERROR_EVENT, b"error event first", broken)
    reason_set(REASON_NO_EVENT, b"end without an event", broken)
    status_phrases[400] = b"Bad Request"
    status_phrases[404] = b"Not Found"
    status_phrases[408] = b"Request Timeout"
    status_phrases[413] = b"Content Too Large"
    status_phrases[414] = b"URI Too Long"
    status_phrases[417] = b"Expectation Failed"
    status_phrases[429] = b"Too Many Requests"
    status_phrases[431] = b"Request Header Fields Too Large"
    status_phrases[501] = b"Not Implemented"
    status_phrases[502] = b"Bad Gateway"
    status_phrases[503] = b"Service Unavailable"
    status_phrases[504] = b"Gateway Timeout"
    status_phrases[505] = b"HTTP Version Not Supported"

outcome_init()

OUTCOMES = tuple(outcome_words[i].name.decode() for i in range(OUTCOME_COUNT))
REASONS = tuple(reason_words[i].name.decode() for i in range(REASON_COUNT))

cdef uint8_t reason_of_errno(int error) noexcept nogil:
    if error == ECONNRESET:
        return REASON_ECONNRESET
    if error == EPIPE:
        return REASON_EPIPE
    if error == ECONNREFUSED:
        return REASON_ECONNREFUSED
    if error == ETIMEDOUT:
        return REASON_ETIMEDOUT
    if error == EHOSTUNREACH:
        return REASON_EHOSTUNREACH
    if error == ENETUNREACH:
        return REASON_ENETUNREACH
    if error == ENOMEM:
        return REASON_NO_MEMORY
    return REASON_ERRNO
