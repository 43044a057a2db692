# worker: all that one worker owns, and its settings in the units of the engine.

cdef enum:
    MAX_WORKERS = 256
    MAX_LISTENERS = 64
    ACCEPTS_A_TURN = 16         # some 4 us each, for which the streams of the same turn wait
    SPIN_GAP = 12               # us; after waits that were shorter on average, the next one begins with looking
    SPIN_MOST = 15              # us that it looks for
    ROOM_AFTER = 1000000        # us that a client without a request keeps its place when others wait for one
    ROOM_BATCH = 16             # clients that give way at once
    PROBE_TIME = 5000000        # us for the connect of a backend that had failed, where connects have no limit
    CONNECT_PAUSE = 5000        # us before a full backlog is tried again, more where it lasts
    ACCEPT_PAUSE = 50000        # us between two looks whether accepting can go on
    WHEEL_SLOTS = 1024          # of 2^14 us each: it looks 16.8 s ahead
    WHEEL_WORDS = 16            # WHEEL_SLOTS / 64
    WHEEL_SHIFT = 14
    BATCH = 256                 # epoll events a turn
    FIELD_ROOM = 64             # the name of a field, in lower case, with its colon
    TURN_READS = 16             # recv calls a connection and turn, so that one fast stream starves nobody
    BULK_SIZE = 65536
    LENGTH_DIGITS = 24          # room for those of a Content-Length
    HOLD_MOST = 16384           # bytes of an event stream that wait for its first event
    AWAIT_TIME = 30000000       # us that a body may take to come whole, where that is only waited for to add something
    BULK_LOOKS = 2              # a connection and turn
    LINGER_TIME = 30000000      # us that a linger lasts at most; the three are nginx's and HAProxy's order of magnitude
    RESET_LOOK = 10000          # us from one look to the next, at first, whether a client's kernel has taken all that it is to get
    RESET_LOOK_MOST = 500000    # the same after a while
    LINGER_SILENCE = 5000000    # the same, without a byte
    LINGER_DRAIN = 2000000      # the same, once the worker drains
    FIRST_REQUEST_TIME = 1000000  # us that a drain gives a connection for its first request: it is on its way

# How a pool chooses among its backends (rule K).
cdef enum:
    POLICY_LEAST_IN_FLIGHT = 0
    POLICY_ROUND_ROBIN = 1
    POLICY_P2C = 2

POLICIES = ("least_in_flight", "round_robin", "p2c")

# Time-outs and limits of a pool's exchanges and upstreams.
cdef struct LimitsC:
    size_t max_response_head
    int max_response_fields
    int64_t max_body
    int64_t failover_body
    int64_t connect_timeout     # us, as all time-outs; 0 is off
    int64_t ttft_timeout
    int64_t idle_timeout
    int64_t total_timeout
    int64_t upstream_idle_timeout
    uint32_t max_in_flight      # of all backends of the pool; 0 is no limit
    uint8_t policy              # POLICY_*
    uint32_t queue_size
    uint32_t eject_errors       # answers of 5xx in a row after which a backend is left out; 0 is off
    int64_t slow_start          # how long a backend that came back gets less than its share
    int64_t queue_timeout
    int64_t cold_timeout        # how long a request may wait for a backend while none is usable
    bint retry_429
    bint retry_502
    bint retry_503
    bint midstream_error_event
    bint comments_count_as_content
    bint reads_usage            # tokens are read from answers (rule Q)
    bint adds_usage             # requests for streams are made to ask for them
    bint holds_event_streams    # until their first event, which may be an error (rule N1)

# What holds for all clients of the process.
cdef struct SettingsC:
    size_t max_request_line
    size_t max_head
    int max_fields
    int64_t head_timeout
    int64_t keepalive_timeout
    int64_t send_timeout
    int64_t dead_peer_timeout
    bint access_records
    char tenant[FIELD_ROOM]     # the field that says who shares a place in a queue; empty for none
    char priority[FIELD_ROOM]   # the one that says how urgent a request is
    TrustC trust

cdef struct TableC
cdef struct ListenerC
cdef struct UpstreamC
cdef struct ClientC

cdef struct WorkerC:
    int epfd
    int64_t now                 # us; read once a turn
    int64_t gap                 # sixteenths of a us; how long the last waits were, the latest counting most
    uint32_t turn               # from 1; its number may come round again
    int64_t date_second         # that `date` was made for
    char date[80]               # room for whatever the C library may hold for a date
    bint draining               # as the mail said
    int64_t drained             # us, when it said so
    bint stopping
    void *new_table             # a TableC handed over by the control plane, or NULL
    void *new_listener          # a list of ListenerC, the same
    ListenerC *listener         # the first of them; NULL where another worker accepts
    TableC *table               # the one that new exchanges and attempts take
    SharedC *shared             # what all workers of the process know together
    UpstreamC *idle[MAX_BACKENDS]  # idle upstreams by slot, the last used first
    SettingsC settings
    LimitsC limits              # of a pool that says nothing else
    BufC *hot                   # every recv goes here
    uint8_t *bulk               # an unpaced stream is looked at here, BULK_SIZE bytes at once
    uint8_t *unframed           # where response_unframe has put what the client gets
    BufSlabC bufs
    SlabC clients
    SlabC upstreams
    SlabC exchanges
    SlabC lingers
    SlabC scans                 # JsonC
    SlabC usages                # UsageC
    SlabC stories               # StoryC
    SlabC sieves                # SieveC
    SlabC tickets
    uint32_t tickets_out        # those that exchanges have
    uint32_t orphans            # tickets whose exchanges have ended, and that another worker still hands over
    uint32_t served             # which pool is served first
    ConnC queue_conn            # the timer of those that wait for a place
    int64_t estimate            # of an answer that is being made: how long one would have to wait, us; -1 for unknown
    uint32_t ahead              # the same: how many wait
    int64_t client_count
    int64_t exchange_count
    int64_t lingering           # upstreams that linger
    WriterC out                 # heads are written here
    HeadC *head                 # heads are read into this
    ConnC *busy                 # connections with work left, first come first served
    ConnC **busy_end
    ConnC *all                  # every open connection
    ClientC *quiet              # clients without an exchange, the longest first
    ClientC **quiet_end
    ConnC *parked               # closed in this turn
    ExchangeC *ended            # in this turn
    void *long_heads            # free areas for long heads
    int long_heads_free
    int long_heads_held         # those in use
    ConnC *wheel[WHEEL_SLOTS]
    uint64_t wheel_used[WHEEL_WORDS]
    int64_t wheel_tick          # first slot, counted from the beginning of time, that was not looked at
    uint64_t random[2]
    ConnC mail_conn             # the mailbox's entry in the epoll set
    MailC mail
    SeriesC *series             # all that its tables point to; the control plane's list, as the next one
    TokensC *tokens
    StatsC stats
    epoll_event events[BATCH]

cdef uint64_t worker_random(WorkerC *w) noexcept nogil:
    # The next number of a xorshift128+ generator (Vigna, 2017) with a seed from the system: not secret.
    cdef uint64_t a = w.random[0]
    cdef uint64_t b = w.random[1]
    w.random[0] = b
    a ^= a << 23
    w.random[1] = a ^ b ^ (a >> 18) ^ (b >> 5)
    return w.random[1] + b
