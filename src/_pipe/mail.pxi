# mail: the two rings of a worker, each with one writer and one reader, and their eventfds.
#
# Into it go accepted descriptors, from the worker that accepts, or into that one's own ring, which has no other use, from the
# control plane that was given them elsewhere. Out of it come records, for the control plane. A full ring never makes anybody wait:
# such a worker gets no new client, and a record is dropped and counted. The words beside the rings each have one writer too, but
# for `commands` and those of the wake-ups. What workers decide together is in shared.

cdef enum:
    MAIL_IN = 4096              # powers of two
    MAIL_OUT = 4096

# What a worker is told, a bit each. The last is told by the worker that accepts, the others by the control plane.
cdef enum:
    COMMAND_DRAIN = 1
    COMMAND_STOP = 2
    COMMAND_END_LISTENING = 4   # accept what waits, and no more
    COMMAND_MAKE_ROOM = 8       # clients that are idle for long are to give way

# Kinds of records; llmpipe.record_kinds has a tuple for each, with the fields that mean something there.
cdef enum:
    RECORD_EXCHANGE = 0
    RECORD_BACKEND_DOWN = 1
    RECORD_BACKEND_UP = 2
    RECORD_ACCEPT_PAUSED = 3
    RECORD_ACCEPT_RESUMED = 4
    RECORD_ACCEPT_ENDED = 5
    RECORD_LIVE = 6             # an exchange that goes on
    RECORD_LIVE_END = 7         # behind those that were asked for

cdef struct AdoptC:
    int fd
    uint16_t refuse_status      # as in ClientC
    uint8_t trusted             # the same
    QuotaC *quota               # the same
    char address[ADDRESS_ROOM]

# An attempt that failed.
cdef struct FailedC:
    int32_t backend         # its id
    uint32_t at             # us from the first byte of the request, as far as they fit
    uint8_t reason          # REASON_*; none for an answer whose status has the next backend asked

# What a record says of some exchanges only, so that not every stream has room for it.
cdef struct StoryC:
    FailedC failed[FAILED_ROOM]
    uint8_t failed_count
    uint8_t model_length
    uint8_t trace_length
    uint8_t model[MODEL_SHOWN]  # that the client asked for
    uint8_t trace[TRACE_ROOM]   # its traceparent

cdef struct RecordC:
    int64_t at                  # us of CLOCK_MONOTONIC
    int64_t ttft                # us, -1 for none
    int64_t duration            # us
    int64_t bytes_up
    int64_t bytes_down
    int64_t clients             # of all workers
    int64_t close_time          # us from the client's disconnect to the upstream's close, -1 for none
    int32_t backend
    int32_t status
    int32_t error
    uint8_t kind
    uint8_t outcome
    uint8_t phase
    uint8_t attempts
    uint8_t reason
    uint8_t request_id_length
    uint8_t method_length
    uint8_t path_length
    int64_t head                # us from the first byte of the request to the end of its head; -1 where it never came
    int64_t last                # the same to the last content; -1 for none
    int64_t prompt              # tokens, -1 for unknown, as the others
    int64_t completion
    int64_t cached
    uint32_t queued             # as in ExchangeC
    uint32_t connected
    uint32_t responded
    uint32_t pieces
    uint32_t list_number        # of the list that it belongs to: an exchange that goes on, and what is behind those
    StoryC story
    char pool[NAME_ROOM]
    char address[ADDRESS_ROOM]
    uint8_t request_id[REQUEST_ID_ROOM]
    uint8_t method[METHOD_ROOM]
    uint8_t path[PATH_ROOM]

cdef struct TapeC

cdef struct MailC:
    uint32_t in_head            # next to be read; written by the worker
    uint32_t in_tail            # next to be written; written by the worker that accepts, its own by the control plane
    uint32_t in_wake_pending    # the worker was woken and has not looked yet; written by both sides
    uint32_t commands           # COMMAND_*; set by others, taken by the worker
    uint32_t out_head           # written by the control plane
    uint32_t out_tail           # written by the worker
    uint32_t out_wake_pending   # the same of the control plane
    uint64_t adopted            # clients that the worker was given; written by the worker that accepts
    uint64_t refused            # of those, with a refusal; the same
    uint64_t quiet              # us, since when the longest idle client is; 0 where none is. Written by the worker
    uint32_t list_asked         # number of the list of exchanges that was asked for last; written by the control plane
    uint32_t list_told          # the same of the one that was told last; written by the worker
    uint32_t wake_on_abort      # the control plane is woken for a client that left; written by it
    uint32_t closed             # it accepts no more; written by the worker, once
    uint32_t granting           # a lock: of the list that follows
    TicketC *granted            # tickets of the worker's exchanges that other workers have granted
    uint32_t taping             # a lock: of the list that follows
    TapeC *tapes                # of exchanges that have ended
    int in_fd                   # eventfds
    int out_fd
    AdoptC *adopts              # MAIL_IN of them
    RecordC *records            # MAIL_OUT of them

cdef bint mail_full(MailC *mail) noexcept nogil:
    return mail.in_tail - sys_load_acquire(&mail.in_head) == MAIL_IN

cdef void mail_put(MailC *mail, AdoptC *adopt) noexcept nogil:
    # The ring's one writer: puts a descriptor into a ring that is not full.
    mail.adopts[mail.in_tail & (MAIL_IN - 1)] = adopt[0]
    sys_store_release(&mail.in_tail, mail.in_tail + 1)
    io_wake_post(mail.in_fd, &mail.in_wake_pending)

cdef void mail_command(MailC *mail, uint32_t command) noexcept nogil:
    # Anybody: tells the worker something. What it has not taken yet is told to it once.
    sys_or_shared(&mail.commands, command)
    io_wake_post(mail.in_fd, &mail.in_wake_pending)

cdef void mail_grant(MailC *mail, TicketC *ticket) noexcept nogil:
    # Another worker: a ticket has a place.
    sys_lock(&mail.granting)
    ticket.next = mail.granted
    mail.granted = ticket
    sys_unlock(&mail.granting)
    io_wake_post(mail.in_fd, &mail.in_wake_pending)

cdef TicketC *mail_take_grants(MailC *mail) noexcept nogil:
    # The worker: those tickets.
    cdef TicketC *granted
    sys_lock(&mail.granting)
    granted = mail.granted
    mail.granted = NULL
    sys_unlock(&mail.granting)
    return granted

cdef RecordC *mail_next_record(MailC *mail) noexcept nogil:
    # Worker: the place of the next record, or NULL where the ring is full. mail_post() hands it over.
    if mail.out_tail - sys_load_acquire(&mail.out_head) == MAIL_OUT:
        return NULL
    return &mail.records[mail.out_tail & (MAIL_OUT - 1)]

cdef void mail_post(MailC *mail, bint urgent) noexcept nogil:
    # Worker: hands the record over. Only an urgent one, or the one that makes the ring half full, costs a system call.
    sys_store_release(&mail.out_tail, mail.out_tail + 1)
    if urgent or mail.out_tail - sys_load_acquire(&mail.out_head) == MAIL_OUT // 2:
        io_wake_post(mail.out_fd, &mail.out_wake_pending)
