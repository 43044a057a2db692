# tape: the bytes of an answer with their times, of the few exchanges that are recorded. Nothing is recorded unless it is asked for;
# then an exchange has a tape from the head of its request on, and the control plane takes it when the exchange has ended.
#
# All tapes together have room for TAPES_MOST bytes, and each for what the control plane says; what is more is cut off, and said to be.

cdef struct TapeC:
    TapeC *next                 # in the worker's list of those that have ended
    uint8_t asked               # it was asked for, and is none of a share
    uint8_t keeps_request       # the request's body too
    uint8_t answered            # the head of an answer came: else there is nothing to keep
    uint8_t cut
    uint32_t round              # of what it was asked for in
    int64_t requested           # bytes of the request's body on it
    uint16_t status             # that the backend gave
    uint8_t content_type_length
    uint8_t content_type[CONTENT_TYPE_ROOM]
    size_t used
    size_t room
    uint8_t *data               # a TapePieceC and its bytes, one behind the other
    RecordC record              # of its exchange, once that has ended

cdef struct TapePieceC:
    int64_t at                  # us from the first byte of the request
    uint32_t length
    uint32_t of_request

cdef void tape_free(SharedC *shared, TapeC *tape) noexcept nogil:
    # Anybody.
    sys_add_shared_counter(&shared.tapes, <uint64_t>-<int64_t>(sizeof(TapeC) + tape.room))
    free(tape.data)
    free(tape)

cdef void tapes_free(SharedC *shared, TapeC *tape) noexcept nogil:
    # It, and those behind it.
    cdef TapeC *following
    while tape is not NULL:
        following = tape.next
        tape_free(shared, tape)
        tape = following

cdef bint tape_claim(SharedC *shared, size_t n) noexcept nogil:
    # Whether there is room for so many bytes more; then they are counted.
    if sys_add_shared_counter(&shared.tapes, n) <= TAPES_MOST:
        return True
    sys_add_shared_counter(&shared.tapes, <uint64_t>-<int64_t>n)
    return False

cdef bint tape_next(SharedC *shared) noexcept nogil:
    # Whether the next one is asked for; then one less is.
    cdef uint32_t left = sys_load_acquire(&shared.tapes_asked)
    while left:
        if sys_compare_exchange(&shared.tapes_asked, &left, left - 1):
            return True
    return False

cdef void tape_begin(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Something is recorded: chooses whether this exchange is.
    cdef SharedC *shared = w.shared
    cdef bint asked = tape_next(shared)
    cdef uint32_t bodies = sys_load_acquire(&shared.tape_bodies)
    if not asked and worker_random(w) >> 32 >= sys_read_counter(&shared.tape_share):
        return
    if tape_claim(shared, sizeof(TapeC)):
        x.tape = <TapeC *>calloc(1, sizeof(TapeC))
        if x.tape is NULL:
            sys_add_shared_counter(&shared.tapes, <uint64_t>-<int64_t>sizeof(TapeC))
    if x.tape is NULL:
        if asked:
            sys_add_shared(&shared.tapes_asked, 1)      # another one takes its place
        else:
            sys_add_shared(&shared.tapes_dropped, 1)
        return
    x.tape.asked = asked
    x.tape.round = sys_load_acquire(&shared.tape_round)
    x.tape.keeps_request = (bodies & (TAPE_BODIES_ASKED if asked else TAPE_BODIES_SHARE)) != 0

cdef bint tape_grow(SharedC *shared, TapeC *tape, size_t n) noexcept nogil:
    # Makes room for so many bytes more. False where there is none.
    cdef size_t most = sys_load_acquire(&shared.tape_size)
    cdef size_t room = tape.room * 2 if tape.room else 4096
    cdef uint8_t *grown
    if tape.used + n > most:
        return False
    if tape.used + n <= tape.room:
        return True
    while room < tape.used + n:
        room *= 2
    if room > most:
        room = most
    if not tape_claim(shared, room - tape.room):
        return False
    grown = <uint8_t *>realloc(tape.data, room)
    if grown is NULL:
        sys_add_shared_counter(&shared.tapes, <uint64_t>-<int64_t>(room - tape.room))
        return False
    tape.data = grown
    tape.room = room
    return True

cdef void tape_note(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n, bint of_request) noexcept nogil:
    # The next piece of a body. Behind one that there was no room for comes no other.
    cdef TapeC *tape = x.tape
    cdef TapePieceC piece
    if tape.cut:
        return
    if n > UINT32_MAX or not tape_grow(w.shared, tape, sizeof(TapePieceC) + n):
        tape.cut = True
        return
    piece.at = w.now - x.begun_at
    piece.length = <uint32_t>n
    piece.of_request = of_request
    memcpy(tape.data + tape.used, &piece, sizeof(piece))
    memcpy(tape.data + tape.used + sizeof(piece), data, n)
    tape.used += sizeof(piece) + n
    if of_request:
        tape.requested += n

cdef void tape_head(TapeC *tape, int status, const FieldC *content_type) noexcept nogil:
    # The answer that will be forwarded begins; of its fields only that one is kept, NULL for none. A status that no server gives (RFC
    # 9110 section 15) nobody could play back.
    cdef size_t n
    tape.answered = status < 600
    tape.status = <uint16_t>status
    if content_type is not NULL:
        n = content_type.value_length
        tape.content_type_length = <uint8_t>(n if n < CONTENT_TYPE_ROOM else CONTENT_TYPE_ROOM)
        memcpy(tape.content_type, content_type.value, tape.content_type_length)

cdef void tape_end(WorkerC *w, ExchangeC *x, const char *address, uint8_t phase, uint8_t outcome, int64_t close_time) noexcept nogil:
    # The exchange ends: hands the tape over. One without an answer is not what was asked for, and the next one takes its place.
    cdef TapeC *tape = x.tape
    x.tape = NULL
    if not tape.answered:
        if tape.asked and tape.round == sys_load_acquire(&w.shared.tape_round):
            sys_add_shared(&w.shared.tapes_asked, 1)
        tape_free(w.shared, tape)
        return
    if tape.keeps_request and (not x.up_body.done or tape.requested != x.up_body.total):
        tape.cut = True         # what came of it behind the answer was thrown away
    record_fill(w, x, &tape.record, address, phase, outcome, close_time)
    sys_lock(&w.mail.taping)
    tape.next = w.mail.tapes
    w.mail.tapes = tape
    sys_unlock(&w.mail.taping)

cdef TapeC *mail_take_tapes(MailC *mail) noexcept nogil:
    # Control plane: those that have ended, the latest first.
    cdef TapeC *tapes
    sys_lock(&mail.taping)
    tapes = mail.tapes
    mail.tapes = NULL
    sys_unlock(&mail.taping)
    return tapes
