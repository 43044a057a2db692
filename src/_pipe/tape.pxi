# tape: the bytes of an answer with their times, of the few exchanges that are recorded. Nothing is recorded unless it is asked for;
# then an exchange has a tape from the head of its request on, and the control plane takes it when the exchange has ended.
#
# All tapes together have room for TAPES_MOST bytes of answers, and each for what the control plane says; what is more is cut off, and
# said to be. Bodies of requests have as much of their own: what clients send takes no room of an answer.

cdef struct ReelC:
    uint8_t *data
    size_t used
    size_t room
    uint8_t cut                 # there was more, or may have been

cdef struct TapeC:
    TapeC *next                 # in the worker's list of those that have ended
    uint8_t asked               # it was asked for, and is none of a share
    uint8_t keeps_request       # the request's body too
    uint8_t answered            # the head of an answer came: else there is nothing to keep
    uint32_t round              # of what it was asked for in
    uint16_t status             # that the backend gave
    uint8_t content_type_length
    uint8_t content_type[CONTENT_TYPE_ROOM]
    ReelC answer                # a TapePieceC and its bytes, one behind the other
    ReelC request               # the bytes of its body
    RecordC record              # of its exchange, once that has ended

cdef struct TapePieceC:
    int64_t at                  # us from the first byte of the request
    size_t length

cdef void tape_free(SharedC *shared, TapeC *tape) noexcept nogil:
    # Anybody.
    sys_add_shared_counter(&shared.tapes, <uint64_t>-<int64_t>(sizeof(TapeC) + tape.answer.room))
    sys_add_shared_counter(&shared.tape_requests, <uint64_t>-<int64_t>tape.request.room)
    free(tape.answer.data)
    free(tape.request.data)
    free(tape)

cdef void tapes_free(SharedC *shared, TapeC *tape) noexcept nogil:
    # It, and those behind it.
    cdef TapeC *following
    while tape is not NULL:
        following = tape.next
        tape_free(shared, tape)
        tape = following

cdef bint tape_claim(uint64_t *taken, size_t n) noexcept nogil:
    # Whether there is room for so many bytes more, of SharedC.tapes or tape_requests; then they are counted.
    if sys_add_shared_counter(taken, n) <= TAPES_MOST:
        return True
    sys_add_shared_counter(taken, <uint64_t>-<int64_t>n)
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
    if tape_claim(&shared.tapes, sizeof(TapeC)):
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

cdef bint reel_grow(SharedC *shared, ReelC *reel, uint64_t *taken, size_t n) noexcept nogil:
    # Makes room for so many bytes more, which count in `taken`. False where there is none.
    cdef size_t most = sys_load_acquire(&shared.tape_size)
    cdef size_t room = reel.room * 2 if reel.room else 4096
    cdef uint8_t *grown
    if reel.used + n > most:
        return False
    if reel.used + n <= reel.room:
        return True
    while room < reel.used + n:
        room *= 2
    if room > most:
        room = most
    if not tape_claim(taken, room - reel.room):
        return False
    grown = <uint8_t *>realloc(reel.data, room)
    if grown is NULL:
        sys_add_shared_counter(taken, <uint64_t>-<int64_t>(room - reel.room))
        return False
    reel.data = grown
    reel.room = room
    return True

cdef void reel_put(ReelC *reel, const void *data, size_t n) noexcept nogil:
    # There is room.
    memcpy(reel.data + reel.used, data, n)
    reel.used += n

cdef void tape_note(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # The next piece of the answer's body. Behind one that there was no room for comes no other.
    cdef ReelC *reel = &x.tape.answer
    cdef TapePieceC piece
    if reel.cut:
        return
    if not reel_grow(w.shared, reel, &w.shared.tapes, sizeof(piece) + n):
        reel.cut = True
        return
    piece.at = w.now - x.begun_at
    piece.length = n
    reel_put(reel, &piece, sizeof(piece))
    reel_put(reel, data, n)

cdef void tape_note_request(WorkerC *w, TapeC *tape, const uint8_t *data, size_t n) noexcept nogil:
    # The same of the request's body, where that is kept.
    cdef ReelC *reel = &tape.request
    if not tape.keeps_request or reel.cut:
        return
    if reel_grow(w.shared, reel, &w.shared.tape_requests, n):
        reel_put(reel, data, n)
    else:
        reel.cut = True

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
    if tape.keeps_request and (not x.up_body.done or tape.request.used != <size_t>x.up_body.total):
        tape.request.cut = True         # what came of it behind the answer was thrown away
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
