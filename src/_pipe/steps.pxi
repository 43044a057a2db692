# steps: what is done when something happens to an exchange, in the order of its life.
#
# A step never frees, and never touches an exchange after RC_GONE, which says that the exchange ended in the call. The
# reading order is that of a connection: adopted, head, dispatch, body up, response head, body down, tunnel, the end.
#
# How things close. "Error" is an RST or any other error of the socket; bytes held are those that the slower side has
# not yet taken. Each row is a test.
#
#   what happened             before a response byte was forwarded     after
#   ------------------------  ---------------------------------------  --------------------------------------------
#   client FIN or error       upstream closed at once, bytes held are thrown away, outcome client_abort. A backend with
#                             on-abort=finish that has the whole request is read to its end instead (STATE_FINISH). Where
#                             the client had the whole body and only the last chunk was missing, and is there: ok
#   upstream FIN              sent again, or 502                       until-close: the end, after the bytes held
#                                                                      else: truncated, outcome upstream_abort
#   upstream error            sent again, or 502                       truncated, outcome upstream_abort
#   upstream broke HTTP       502                                      truncated, outcome upstream_abort
#   connect refused, too slow the next address, sent again, 502 or 504 -
#   TTFT time-out             504, never sent again                    truncated, outcome timeout_ttft
#   idle time-out             (the request is not taken) sent again,   truncated, outcome timeout_idle
#                             or 504
#   total time-out            504                                      truncated, outcome timeout_total; in STATE_FLUSH reset
#   head, body time-out       408, linger                              -
#   send time-out             -                                        upstream closed, client reset
#   answer before the end     -                                        upstream closed behind the answer, the rest of the
#   of the request                                                     request is thrown away, linger
#   stop                      503                                      truncated, outcome shutdown
#   tunnel: client FIN        -                                        the same to the backend behind all bytes, linger there.
#                                                                      Ok, or client_abort where the client had not taken all
#   tunnel: client error      -                                        the same to the backend at once, outcome client_abort
#   tunnel: upstream FIN      -                                        the same to the client behind all bytes, linger. Ok, or
#                                                                      upstream_abort where the backend had not taken all
#   tunnel: upstream error    -                                        truncated, outcome upstream_abort
#   tunnel: send time-out     -                                        (either side takes nothing) both closed, client reset
#   tunnel: stop              -                                        both closed, outcome shutdown
#
#   sent again: as the table in upstream_failed says (rule E1), within the retry budget.
#   truncated: chunked ends without the last chunk, Content-Length short, until-close with an RST; bytes held go first. So a
#   tunnel's client gets an RST.
#   linger: what still comes is read and thrown away, until a FIN, for 30 s at most, 5 s without a byte, 2 s of a drain.
#
# What epoll reports on Linux 6.18 over loopback, edge-triggered: a FIN gives IN|RDHUP (with OUT while there is room), even
# behind bytes that were not read, so it is seen during backpressure; an RST gives IN|ERR|HUP|RDHUP; a FIN after our own
# gives IN|HUP|RDHUP; an urgent byte gives PRI, and a recv stops before it. After a recv that came back short nothing is left,
# unless RDHUP or PRI was seen (ConnC.to_end): then recv again.

# ---------------------------------------------------------------------------------------------------- the client leaves

cdef size_t body_skip(uint8_t *framing, int64_t *left, ChunkC *chunk, const uint8_t *data, size_t n) noexcept nogil:
    # Follows a request body that nobody wants, so that its end is known: how many of the bytes belong to it. `framing` is
    # FRAMING_NONE behind its end.
    cdef const uint8_t *body = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef int rc = RC_OK
    if framing[0] == FRAMING_NONE:
        return 0
    if framing[0] == FRAMING_LENGTH:
        used = n if <int64_t>n < left[0] else <size_t>left[0]
        left[0] -= used
        if left[0] == 0:
            framing[0] = FRAMING_NONE
        return used
    if framing[0] == FRAMING_CHUNKED:
        while rc == RC_OK:
            rc = chunk_next(chunk, data, n, &used, &body, &length)
        if rc == RC_DONE:
            framing[0] = FRAMING_NONE
            return used
        if rc == RC_BAD:
            framing[0] = FRAMING_CLOSE      # who knows where it ends
    return n

cdef void client_linger(WorkerC *w, ClientC *client, const LingerC *rest) noexcept nogil:
    # Sends our FIN and throws away what still comes, so that no RST destroys an answer that the client has not read: the
    # rest of its request, and what stands behind that, until its FIN (rule A6).
    inbox_drop(w, &client.inbox, DISCARD_BEHIND_REQUEST)
    if client.conn.hung_up and not client.conn.readable:
        client_close(w, client, False)
        return
    client.linger = <LingerC *>slab_get(&w.lingers)
    if client.linger is NULL:
        sys_add_counter(&w.stats.over_memory, 1)
        client_close(w, client, False)
        return
    client.linger[0] = rest[0]
    io_shut(client.conn.fd)
    if client.conn.readable:
        conn_queue(w, &client.conn)
    client.state = CLIENT_LINGER
    client.since = w.now
    timer_arm(w, &client.conn, client_deadline(w, client))

cdef void step_linger(WorkerC *w, ClientC *client) noexcept nogil:
    cdef ssize_t got
    cdef LingerC *rest = client.linger
    cdef size_t used
    cdef int i
    for i in range(TURN_READS):
        if not client.conn.readable:
            if rest.closes and rest.framing == FRAMING_NONE:
                client_close(w, client, False)      # it said that it sends no more
            return
        got = io_recv(client.conn.fd, w.hot.data, BUF_SIZE)
        if got == -EAGAIN:
            client.conn.readable = False
            continue
        if got <= 0:
            client_close(w, client, False)
            return
        conn_received(&client.conn, got)
        rest.heard = w.now
        used = body_skip(&rest.framing, &rest.left, &rest.chunk, w.hot.data, got)
        discard(&w.stats, rest.reason, used)
        discard(&w.stats, DISCARD_BEHIND_REQUEST, got - used)
    conn_queue(w, &client.conn)

cdef int64_t upstream_deadline(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # When an upstream without an exchange has had its time.
    if upstream.lingers:
        return linger_deadline(w, upstream.since, upstream.heard)
    return upstream.since + w.settings.upstream_idle_timeout

cdef void upstream_linger(WorkerC *w, UpstreamC *upstream, ClientC *client) noexcept nogil:
    # As client_linger, for what a tunnel of that client has sent to its backend. The exchange has let go of it. It counts as a
    # client, or who opens and leaves tunnels could have any number of them.
    upstream.conn.exchange = NULL
    if upstream.conn.hung_up and not upstream.conn.readable:
        upstream_close(w, upstream)
        return
    io_shut(upstream.conn.fd)
    upstream.lingers = True
    upstream.since = w.now
    upstream.heard = w.now
    w.lingering += 1
    upstream.quota = client.quota
    client_recount(w, client.quota)
    if upstream.conn.readable:
        conn_queue(w, &upstream.conn)
    timer_arm(w, &upstream.conn, upstream_deadline(w, upstream))

cdef void step_upstream_linger(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    cdef ssize_t got
    cdef int i
    for i in range(TURN_READS):
        if not upstream.conn.readable:
            return
        got = io_recv(upstream.conn.fd, w.hot.data, BUF_SIZE)
        if got == -EAGAIN:
            upstream.conn.readable = False
            return
        if got <= 0:
            upstream_close(w, upstream)
            return
        conn_received(&upstream.conn, got)
        upstream.heard = w.now
        discard(&w.stats, DISCARD_TUNNEL, got)
    conn_queue(w, &upstream.conn)

cdef void client_await(WorkerC *w, ClientC *client, uint8_t state) noexcept nogil:
    # For a request. A pipelined one is read in the next turn, not here: its answer would come back here.
    client.state = state
    client.since = w.now
    quiet_enter(w, client)
    if client.inbox.buf is not NULL or client.inbox.wide is not NULL or client.conn.readable:
        conn_queue(w, &client.conn)
    timer_arm(w, &client.conn, client_deadline(w, client))

cdef void client_drain(WorkerC *w, ClientC *client) noexcept nogil:
    # The drain meets a connection without an exchange. One that has been answered is closed, unless its next request is
    # here already. One that has not, was opened to send a request: closing it at once would lose what is on its way.
    if (client.state == CLIENT_IDLE and not client.conn.readable and not client.conn.queued
            and io_peek(client.conn.fd) == -EAGAIN):
        client_close(w, client, False)
    else:
        client_await(w, client, client.state)

cdef void clients_give_way(WorkerC *w) noexcept nogil:
    # Closes those that have been without a request for longest: others wait for their places. One whose request is on its
    # way stays.
    cdef ClientC *client = w.quiet
    cdef ClientC *following
    cdef int i
    for i in range(ROOM_BATCH):
        if client is NULL or client.since > w.now - ROOM_AFTER:
            return
        following = client.quiet_next
        if not client.conn.readable and not client.conn.queued and io_peek(client.conn.fd) == -EAGAIN:
            sys_add_counter(&w.stats.gave_way, 1)
            client_close(w, client, False)
        client = following

cdef int exchange_finish(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The client has all that it will get: ends the exchange and decides what becomes of the connection. RC_GONE.
    cdef ClientC *client = x.client
    cdef bint keeps = x.client_keeps and x.up_done and not w.draining
    cdef bint reset = x.reset
    cdef bint wanted = x.up_done and x.client_closes    # then it sends no more, and no RST can follow
    cdef LingerC rest
    if client is not NULL and not keeps:
        rest.heard = w.now
        rest.framing = <uint8_t>(FRAMING_NONE if x.up_done else x.framing_up)
        rest.reason = <uint8_t>(DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_REQUEST)
        rest.left = x.up_left
        rest.chunk = x.up_chunk
        rest.closes = x.client_closes
    exchange_end(w, x, exchange_phase(x), x.outcome)
    if client is NULL:
        return RC_GONE
    if keeps:
        client_await(w, client, CLIENT_IDLE)
    elif reset or (wanted and not client.conn.readable):
        client_close(w, client, reset)
    else:
        client_linger(w, client, &rest)
    return RC_GONE

cdef int client_left(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # FIN or RST of the client, seen in any phase (rule D). RC_GONE; RC_OK where the backend is to finish.
    cdef ClientC *client = x.client
    cdef uint8_t phase = <uint8_t>exchange_phase(x)
    x.left = w.now
    x.error = error
    if x.state == STATE_TUNNEL and error and x.upstream is not NULL:
        x.upstream.reset = True         # passed on: a FIN would say that all has come
    if (x.upstream is not NULL and w.table.routes[x.backend].finish_on_abort and x.up_done and not x.up.unsent
            and (x.state == STATE_WAIT or x.state == STATE_STREAM)):
        discard(&w.stats, DISCARD_RESPONSE, x.down.unsent)
        chain_clear(&x.down, &w.bufs)
        client.conn.exchange = NULL
        x.quota = client.quota
        sys_add_counter(&w.stats.finishing, 1)
        client_release(w, client, False)
        x.client = NULL
        x.waited = w.now
        exchange_set_state(w, x, STATE_FINISH)
        if x.upstream.conn.readable:
            conn_queue(w, &x.upstream.conn)     # it was not read while the client was blocked
        return RC_OK
    exchange_end(w, x, phase, OUTCOME_CLIENT_ABORT)
    client_close(w, client, False)
    return RC_GONE

# ------------------------------------------------------------------------------------------------ bytes for the client

cdef int client_takes_no_more(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # A send to the client failed. RC_OK where the exchange goes on, or RC_GONE.
    if x.state != STATE_TUNNEL or error != EPIPE:
        return client_left(w, x, error)
    # Its RST came after its FIN, so all that it sent is here, and is still to be passed on.
    x.deaf = True
    discard(&w.stats, DISCARD_TUNNEL, x.down.unsent)
    chain_clear(&x.down, &w.bufs)
    x.client.conn.readable = True
    conn_queue(w, &x.client.conn)
    return RC_OK

cdef int flush_down(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Sends what the client has not taken. RC_OK all taken, RC_AGAIN not yet, RC_GONE.
    cdef ssize_t took
    if not x.down.unsent:
        return RC_OK
    took = io_send_chain(x.client.conn.fd, &x.down, &w.bufs)
    if took < 0:
        return client_takes_no_more(w, x, <int>-took)
    x.bytes_down += took
    if took:
        x.taken = w.now
    if x.down.unsent:
        return RC_AGAIN
    if x.state == STATE_FLUSH:
        return exchange_finish(w, x)
    x.waited = w.now        # the wait for the upstream starts anew: it was not its fault
    exchange_rearm(w, x)
    return RC_OK

cdef int client_send(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Sends, at once; what the socket does not take is kept, and the upstream is not read until it is taken.
    # RC_OK or RC_GONE.
    cdef ssize_t took = 0
    if x.client is NULL or x.deaf:
        discard(&w.stats, DISCARD_TUNNEL if x.deaf else DISCARD_RESPONSE, n)
        return RC_OK
    if n == 0:
        return RC_OK
    if not x.down.unsent:
        took = io_send(x.client.conn.fd, data, n)
        if took == -EAGAIN:
            took = 0
        if took < 0:
            discard(&w.stats, DISCARD_TUNNEL if x.state == STATE_TUNNEL else DISCARD_RESPONSE, n)
            return client_takes_no_more(w, x, <int>-took)
        x.bytes_down += took
        if <size_t>took == n:
            return RC_OK
        x.taken = w.now
    if chain_take_hot(w, &x.down, data + took, n - took) != RC_OK:
        # A hole in the stream would be worse than its end.
        discard(&w.stats, DISCARD_RESPONSE, n - took)
        exchange_blame(w, x, REASON_NO_MEMORY, ENOMEM)
        x.reset = True
        x.client_keeps = False
        x.outcome = OUTCOME_OVERLOAD
        return exchange_finish(w, x)
    if not x.client.patient:
        # The kernel takes a window that stays shut for death too; from here the send time-out decides.
        x.client.patient = True
        io_unanswered(x.client.conn.fd, 0)
    exchange_rearm(w, x)
    return RC_OK

cdef void write_date(WorkerC *w) noexcept nogil:
    # The Date of our own answers (RFC 9110 section 6.6.1), made once a second.
    cdef timespec clock
    cdef tm parts
    cdef const char *days = b"SunMonTueWedThuFriSat"
    cdef const char *months = b"JanFebMarAprMayJunJulAugSepOctNovDec"
    clock_gettime(CLOCK_REALTIME, &clock)
    if clock.tv_sec != w.date_second:
        w.date_second = clock.tv_sec
        gmtime_r(&clock.tv_sec, &parts)
        snprintf(w.date, sizeof(w.date), "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", days + 3 * parts.tm_wday,
                 parts.tm_mday, months + 3 * parts.tm_mon, parts.tm_year + 1900, parts.tm_hour, parts.tm_min,
                 parts.tm_sec)
    write_text(&w.out, w.date)

cdef const char *status_reason(int status) noexcept nogil:
    if status == 400:
        return b"Bad Request"
    if status == 408:
        return b"Request Timeout"
    if status == 413:
        return b"Content Too Large"
    if status == 414:
        return b"URI Too Long"
    if status == 417:
        return b"Expectation Failed"
    if status == 429:
        return b"Too Many Requests"
    if status == 431:
        return b"Request Header Fields Too Large"
    if status == 501:
        return b"Not Implemented"
    if status == 502:
        return b"Bad Gateway"
    if status == 503:
        return b"Service Unavailable"
    if status == 504:
        return b"Gateway Timeout"
    return b"HTTP Version Not Supported"

cdef void write_error(WriterC *out, int status, uint8_t outcome, const char *message) noexcept nogil:
    # The error object that OpenAI clients parse (rule E3). No text of it comes from outside.
    write_text(out, b'{"error": {"message": "')
    write_text(out, message)
    write_text(out, b'", "type": "')
    write_text(out, b"rate_limit_error" if status == 429
               else b"invalid_request_error" if status < 500 or outcome == OUTCOME_BAD_REQUEST else b"server_error")
    write_text(out, b'", "param": null, "code": "')
    write_text(out, outcome_name(outcome))
    write_text(out, b'"}}')

cdef const char *outcome_name(uint8_t outcome) noexcept nogil:
    # The code of an error answer; the same words as OUTCOMES.
    if outcome == OUTCOME_UPSTREAM_ABORT:
        return b"upstream_abort"
    if outcome == OUTCOME_UPSTREAM_ERROR:
        return b"upstream_error"
    if outcome == OUTCOME_CONNECT_ERROR:
        return b"connect_error"
    if outcome == OUTCOME_NO_BACKEND:
        return b"no_backend"
    if outcome == OUTCOME_TIMEOUT_CONNECT:
        return b"timeout_connect"
    if outcome == OUTCOME_TIMEOUT_TTFT:
        return b"timeout_ttft"
    if outcome == OUTCOME_TIMEOUT_IDLE:
        return b"timeout_idle"
    if outcome == OUTCOME_TIMEOUT_TOTAL:
        return b"timeout_total"
    if outcome == OUTCOME_TIMEOUT_HEAD:
        return b"timeout_head"
    if outcome == OUTCOME_TIMEOUT_BODY:
        return b"timeout_body"
    if outcome == OUTCOME_BAD_REQUEST:
        return b"bad_request"
    if outcome == OUTCOME_OVERLOAD:
        return b"overload"
    return b"shutdown"

cdef const char *outcome_message(uint8_t outcome) noexcept nogil:
    # What an error says to a person who wrote a client.
    if outcome == OUTCOME_UPSTREAM_ABORT:
        return b"The inference server broke off its answer."
    if outcome == OUTCOME_UPSTREAM_ERROR:
        return b"The inference server closed the connection or broke the protocol before it answered."
    if outcome == OUTCOME_CONNECT_ERROR:
        return b"No inference server could be connected."
    if outcome == OUTCOME_NO_BACKEND:
        return b"No inference server is configured."
    if outcome == OUTCOME_TIMEOUT_CONNECT:
        return b"The inference server did not accept the connection in time."
    if outcome == OUTCOME_TIMEOUT_TTFT:
        return b"The inference server did not begin to answer in time."
    if outcome == OUTCOME_TIMEOUT_IDLE:
        return b"The inference server stalled."
    if outcome == OUTCOME_TIMEOUT_TOTAL:
        return b"The exchange took longer than it may."
    if outcome == OUTCOME_TIMEOUT_HEAD:
        return b"The request head did not arrive in time."
    if outcome == OUTCOME_TIMEOUT_BODY:
        return b"The request body did not arrive in time."
    if outcome == OUTCOME_OVERLOAD:
        return b"The proxy has no descriptors or memory left; try again soon."
    if outcome == OUTCOME_SHUTDOWN:
        return b"The proxy is shutting down."
    return b"The request was refused."

cdef const char *refusal_message(uint8_t reason) noexcept nogil:
    # What was wrong with a request, to a person who wrote a client.
    if reason == REASON_BODY_TOO_LONG:
        return b"The request body is longer than the limit."
    if reason == REASON_LINE_TOO_LONG:
        return b"The request line is longer than the limit."
    if reason == REASON_EXPECTATION:
        return b"No other expectation than 100-continue is understood."
    if reason == REASON_HEAD_TOO_LONG:
        return b"The request head is longer than the limit."
    if reason == REASON_FIELDS:
        return b"The request head has more fields than the limit."
    if reason == REASON_CONNECT:
        return b"The method CONNECT is not supported."
    if reason == REASON_VERSION:
        return b"Only HTTP/1.0 and HTTP/1.1 are supported."
    if reason == REASON_TLS:
        return b"This port speaks plain HTTP, and TLS was sent to it; use http:// in the URL."
    if reason == REASON_FIRST_LINE:
        return b"The first line is no request line: METHOD, one space, target, one space, HTTP/1.1, CRLF."
    if reason == REASON_TARGET:
        return b"The request target is neither a path, an http URL nor the * of OPTIONS, or holds a character that none may."
    if reason == REASON_BARE_LF:
        return b"A line ends with LF; each has to end with CRLF."
    if reason == REASON_BARE_CR:
        return b"There is a CR without an LF behind it."
    if reason == REASON_CONTROL:
        return b"There is a control character in the head."
    if reason == REASON_FOLDED:
        return b"A line begins with white space; fields may not be folded."
    if reason == REASON_SPACE_BEFORE_COLON:
        return b"There is white space between the name of a field and its colon."
    if reason == REASON_FIELD_NAME:
        return b"A line of the head is no field: the name has a character that none may have, or the colon is missing."
    if reason == REASON_LENGTH:
        return b"Content-Length is not a number of at most 18 digits."
    if reason == REASON_TWO_LENGTHS:
        return b"There is more than one Content-Length."
    if reason == REASON_CODING:
        return b"Transfer-Encoding is something else than chunked."
    if reason == REASON_TWO_CODINGS:
        return b"There is more than one Transfer-Encoding."
    if reason == REASON_TWO_FRAMINGS:
        return b"There are both Content-Length and Transfer-Encoding."
    if reason == REASON_OLD_CHUNKED:
        return b"HTTP/1.0 has no Transfer-Encoding."
    if reason == REASON_CONNECTION:
        return b"Connection is not a list of at most 16 names, or names Host or a field of the framing."
    if reason == REASON_HOST:
        return b"Host is not a host and perhaps a port."
    if reason == REASON_TWO_HOSTS:
        return b"There is more than one Host."
    if reason == REASON_NO_HOST:
        return b"There is no Host."
    if reason == REASON_CHUNK_SIZE:
        return b"The size of a chunk is not a hexadecimal number below 2^63 of at most 16 digits with CRLF or an extension behind it."
    if reason == REASON_CHUNK_EXTENSION:
        return b"A chunk extension is not ;name, ;name=token or ;name=quoted-string, or longer than 256 bytes."
    if reason == REASON_CHUNK_END:
        return b"There is no CRLF behind the data of a chunk."
    if reason == REASON_TRAILER:
        return b"A trailer is no field, is too long, or is a field that no trailer may be."
    return b"The request is not well-formed HTTP/1."

cdef int answer_error(WorkerC *w, ExchangeC *x, int status, uint8_t outcome) noexcept nogil:
    # Our own answer, where nothing was forwarded. The upstream is dropped. RC_GONE, or RC_OK while the client has not
    # taken it all.
    cdef const char *message = outcome_message(outcome)
    cdef WriterC body
    cdef uint8_t room[512]
    upstream_drop(w, x)
    if outcome == OUTCOME_BAD_REQUEST:
        message = refusal_message(x.reason)
        x.client_keeps = False
    elif x.client.refusal and outcome == OUTCOME_OVERLOAD:
        message = (b"Your address has as many connections open as it may have." if status == 429
                   else b"The proxy has as many connections open as it may have; try again soon.")
        x.client_keeps = False
    elif not x.up_done or w.draining:
        x.client_keeps = False
    if not x.request_id_length:
        request_id_make(w, x)
    write_start(&body, room, sizeof(room))
    write_error(&body, status, outcome, message)
    x.status = status
    x.outcome = outcome
    x.forwarded = True
    write_start(&w.out, w.out.data, w.out.size)
    write_text(&w.out, b"HTTP/1.1 ")
    write_number(&w.out, status)
    write_text(&w.out, b" ")
    write_text(&w.out, status_reason(status))
    write_text(&w.out, b"\r\nDate: ")
    write_date(w)
    write_text(&w.out, b"\r\nContent-Type: application/json\r\nContent-Length: ")
    write_number(&w.out, <int64_t>body.used)
    if status == 503 or status == 429:
        write_text(&w.out, b"\r\nRetry-After: 1")
    if not x.client_keeps:
        write_text(&w.out, b"\r\nConnection: close")
    elif x.minor == 0:
        write_text(&w.out, b"\r\nConnection: keep-alive")
    write_text(&w.out, b"\r\nX-Request-ID: ")
    write_bytes(&w.out, x.request_id, x.request_id_length)
    write_text(&w.out, b"\r\n\r\n")
    if not x.to_head:
        write_bytes(&w.out, body.data, body.used)
    if client_send(w, x, w.out.data, w.out.used) == RC_GONE:
        return RC_GONE
    return response_end(w, x)

cdef int response_end(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The client will get no more than what it has not taken yet. RC_GONE, or RC_OK while it has not.
    if x.down.unsent:
        if x.client.conn.hung_up:
            return client_left(w, x, 0)     # its FIN came with the request that is answered; no event will tell of it again
        exchange_set_state(w, x, STATE_FLUSH)
        request_goes_on(w, x)
        return RC_OK
    return exchange_finish(w, x)

cdef int response_truncate(WorkerC *w, ExchangeC *x, uint8_t outcome) noexcept nogil:
    # Ends a response that was begun and can never be whole, so that the client can tell (rule E2).
    # RC_GONE, or RC_OK while the client has not taken what is held.
    cdef uint8_t room[600]
    cdef WriterC event
    cdef WriterC data
    cdef uint8_t text[512]
    cdef char size[16]
    upstream_drop(w, x)
    x.outcome = outcome
    x.client_keeps = False
    x.reset = x.framing_down == FRAMING_CLOSE or x.dechunk
    if (w.settings.midstream_error_event and x.event_stream and x.sse == SSE_EVENT_START
            and (x.reset or (x.framing_down == FRAMING_CHUNKED and x.down_chunk.state == CHUNK_SIZE))):
        write_start(&data, text, sizeof(text))
        write_text(&data, b"data: ")
        write_error(&data, 502, outcome, outcome_message(outcome))
        write_text(&data, b"\n\n")
        write_start(&event, room, sizeof(room))
        if not x.reset:
            snprintf(size, sizeof(size), "%x\r\n", <unsigned int>data.used)
            write_text(&event, size)
        write_bytes(&event, data.data, data.used)
        if not x.reset:
            write_text(&event, b"\r\n")
        if client_send(w, x, event.data, event.used) == RC_GONE:
            return RC_GONE
    return response_end(w, x)

# ---------------------------------------------------------------------------------------------------- the request head

cdef void request_id_make(WorkerC *w, ExchangeC *x) noexcept nogil:
    # 32 hexadecimal digits from a xorshift128+ generator (Vigna, 2017) with a seed from the system: unique, not secret.
    cdef uint64_t a = w.random[0]
    cdef uint64_t b = w.random[1]
    w.random[0] = b
    a ^= a << 23
    a ^= b ^ (a >> 18) ^ (b >> 5)
    w.random[1] = a
    x.request_id_length = 32
    text_digits(x.request_id, a + b, 16)
    text_digits(x.request_id + 16, a * 3 ^ b, 16)

cdef void exchange_note(WorkerC *w, ExchangeC *x, HeadC *head) noexcept nogil:
    # Copies out of the head what is needed after its bytes are gone.
    x.method_length = <uint8_t>(head.method_length if head.method_length < METHOD_ROOM else METHOD_ROOM)
    memcpy(x.method, head.method, x.method_length)
    x.path_length = <uint8_t>(head.target_length if head.target_length < PATH_ROOM else PATH_ROOM)
    memcpy(x.path, head.target, x.path_length)
    x.to_head = head_is(head.method, head.method_length, b"HEAD")
    x.minor = <uint8_t>head.minor
    # Behind a request for an upgrade may stand bytes of the new protocol, of a client that did not wait (RFC 9110 section 7.8).
    # Where the upgrade is refused nobody can tell them from a request, so none is read there (ADR 0014).
    x.client_keeps = head.keep_alive and not head.has_upgrade
    x.client_closes = not head.keep_alive
    x.upgrade = head.has_upgrade
    x.framing_up = head.framing
    x.up_left = head.content_length if head.framing == FRAMING_LENGTH else 0
    x.up_done = head.framing == FRAMING_NONE
    if 0 < head.request_id_length <= REQUEST_ID_ROOM:
        x.request_id_length = <uint8_t>head.request_id_length
        memcpy(x.request_id, head.request_id, head.request_id_length)
    else:
        request_id_make(w, x)

cdef void request_distrust(ExchangeC *x) noexcept nogil:
    # The head was broken: nothing that it says of its body, or of a close, is believed.
    x.framing_up = FRAMING_CLOSE
    x.up_done = False
    x.client_closes = False

cdef int up_follow(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n, size_t *used) noexcept nogil:
    # Follows the request body's framing: data[0:used] belongs to it. RC_OK, or the status to answer with.
    cdef const uint8_t *body = NULL
    cdef size_t length = 0
    cdef int rc = RC_OK
    used[0] = 0
    if x.framing_up == FRAMING_LENGTH:
        used[0] = n if <int64_t>n < x.up_left else <size_t>x.up_left
        x.up_left -= used[0]
        x.up_done = x.up_left == 0
    elif x.framing_up == FRAMING_CHUNKED:
        while rc == RC_OK:
            rc = chunk_next(&x.up_chunk, data, n, used, &body, &length)
            if rc == RC_OK:
                x.up_body += length
                if x.up_body > w.settings.max_body:
                    return up_refused(w, x, data, n, used[0], 413)
        if rc == RC_BAD:
            x.framing_up = FRAMING_CLOSE
            return up_refused(w, x, data, n, used[0], 400)
        # A size that goes over the limit is refused before its data is forwarded; some count in fewer than 64 bits. While its
        # line is not whole the size may still be no size at all.
        if x.up_chunk.state == CHUNK_DATA and x.up_chunk.left > <uint64_t>(w.settings.max_body - x.up_body):
            return up_refused(w, x, data, n, used[0], 413)
        x.up_done = rc == RC_DONE
    if x.up_done:
        x.waited = w.now        # from here the backend is waited for
        x.whole = w.now
        exchange_rearm(w, x)
    return RC_OK

cdef void request_skip(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Throws away what comes of a request that is answered already, or will be.
    cdef size_t used
    if x.up_done:
        used = 0
    else:
        used = body_skip(&x.framing_up, &x.up_left, &x.up_chunk, data, n)
        x.up_done = x.framing_up == FRAMING_NONE
        x.whole = w.now
    discard(&w.stats, DISCARD_REQUEST, used)
    discard(&w.stats, DISCARD_BEHIND_REQUEST, n - used)

cdef int up_refused(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n, size_t used, int status) noexcept nogil:
    # data[0:used] were followed, and none of the bytes will be forwarded. `status`.
    discard(&w.stats, DISCARD_REQUEST, used)
    request_skip(w, x, data + used, n - used)
    return status

cdef void request_goes_on(WorkerC *w, ExchangeC *x) noexcept nogil:
    # From here the rest of the request is thrown away: no event tells of what is there already.
    if not x.up_done and x.client is not NULL and x.client.conn.readable:
        conn_queue(w, &x.client.conn)

cdef int step_skip(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Reads what the client still sends of a request that nobody takes, so that it comes to read its answer (rule A6).
    # RC_OK or RC_GONE.
    cdef ClientC *client = x.client
    cdef ssize_t got
    cdef int i
    for i in range(TURN_READS):
        if x.up_done or not client.conn.readable:
            return RC_OK
        got = io_recv(client.conn.fd, w.hot.data, BUF_SIZE)
        if got == -EAGAIN:
            client.conn.readable = False
            return RC_OK
        if got <= 0:
            return client_left(w, x, <int>-got)
        conn_received(&client.conn, got)
        x.bytes_up += got
        request_skip(w, x, w.hot.data, got)
    conn_queue(w, &client.conn)
    return RC_OK

cdef uint8_t up_fault(ExchangeC *x, int status) noexcept nogil:
    # Why up_follow gave this status.
    return REASON_BODY_TOO_LONG if status == 413 else chunk_fault(&x.up_chunk)

cdef int up_hold(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Puts bytes behind those that wait for the upstream. RC_OK or -ENOMEM.
    cdef int rc
    if x.up.kept and not request_keeps(w, x.up.total + n, n):
        request_forget(w, x)
    # A full buffer changes hands, a short piece is copied: buffers with a few bytes in them would pile up.
    if n > BUF_SIZE // 2:
        rc = chain_take_hot(w, &x.up, data, n)
    else:
        rc = chain_copy(&x.up, &w.bufs, data, n)
    request_count_kept(w, x)
    return rc

cdef int step_request(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t length, size_t n) noexcept nogil:
    # A whole head is there, data[0:length], and n - length bytes behind it. RC_OK or RC_GONE.
    cdef ClientC *client = x.client
    cdef HeadC *head = w.head
    cdef size_t used = 0
    cdef int status
    status = head_read_request(head, data, length, w.settings.max_request_line, w.settings.max_fields)
    x.asked = w.now
    x.whole = w.now
    x.waited = w.now
    x.moved = w.now
    if status != RC_OK:
        head.request_id_length = 0      # it may not have been looked at
    exchange_note(w, x, head)
    if status != RC_OK:
        request_distrust(x)
    elif client.trusted:
        trust_origin(&w.settings.trust, head, &x.origin)
    if status == RC_OK and head.content_length > w.settings.max_body:
        status = head_refused(head, 413, REASON_BODY_TOO_LONG)
    if status != RC_OK or client.refusal:
        request_skip(w, x, data + length, n - length)
    if status != RC_OK:
        return refuse(w, x, status, head.fault)
    if client.refusal:
        inbox_clear(w, &client.inbox)
        exchange_blame(w, x, REASON_CONNECTIONS_OF_ADDRESS if client.refusal == 429 else REASON_CONNECTIONS, 0)
        return answer_error(w, x, client.refusal, OUTCOME_OVERLOAD)
    write_start(&w.out, w.out.data, w.out.size)
    head_write_request(&w.out, head, client.address, client.trusted, b"", x.request_id, x.request_id_length)
    if w.out.full:
        request_skip(w, x, data + length, n - length)
        return refuse(w, x, 431, REASON_HEAD_TOO_LONG)
    x.head_length = <uint32_t>w.out.used
    x.no_host = not head.absolute and head.host_count == 0
    x.up.kept = True
    status = up_follow(w, x, data + length, n - length, &used)
    if status != RC_OK:
        return refuse(w, x, status, up_fault(x, status))
    x.bytes_up = length + used      # and not what stands behind it
    if (chain_copy(&x.up, &w.bufs, w.out.data, w.out.used) != RC_OK
            or (used and chain_copy(&x.up, &w.bufs, data + length, used) != RC_OK)
            or inbox_keep(w, &client.inbox, data + length + used, n - length - used) != RC_OK):
        # The request may stand in the inbox still: it must not be read once more.
        discard(&w.stats, DISCARD_BEHIND_REQUEST, n - length - used)
        inbox_clear(w, &client.inbox)
        x.client_keeps = False
        return answer_error(w, x, 503, OUTCOME_OVERLOAD)
    if client.conn.hung_up:
        return client_left(w, x, 0)
    return dispatch(w, x, -1)

cdef int refuse(WorkerC *w, ExchangeC *x, int status, uint8_t reason) noexcept nogil:
    # Answers a bad request; what stands behind it is not read. RC_OK or RC_GONE.
    inbox_clear(w, &x.client.inbox)
    exchange_blame(w, x, reason, 0)
    return answer_error(w, x, status, OUTCOME_BAD_REQUEST)

cdef void step_head(WorkerC *w, ClientC *client) noexcept nogil:
    # Reads a request head, from the inbox and from the socket.
    cdef ExchangeC *x = client.conn.exchange
    cdef InboxC *inbox = &client.inbox
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    cdef size_t length = 0
    cdef ssize_t got
    cdef int rc
    cdef bint fresh = x is NULL and inbox_holds(inbox, &data, &n)
    while True:
        if not fresh:
            if not client.conn.readable:
                return
            got = inbox_recv(w, inbox, client.conn.fd, &data, &n)
            if got == -EAGAIN:
                client.conn.readable = False
                return
            if got == -ENOMEM and x is not NULL:
                answer_error(w, x, 503, OUTCOME_OVERLOAD)
                return
            if got <= 0:
                if x is NULL:
                    if got == -ENOMEM:
                        sys_add_counter(&w.stats.over_memory, 1)
                    client_close(w, client, False)
                else:
                    client_left(w, x, <int>-got)
                return
            if inbox.wide is NULL and inbox.buf is NULL:
                conn_received(&client.conn, got)
            if x is not NULL:
                x.bytes_up += got
        else:
            got = n
        fresh = False
        if x is NULL:
            x = exchange_begin(w, client)
            if x is NULL:
                sys_add_counter(&w.stats.over_memory, 1)
                client_close(w, client, False)
                return
            x.bytes_up = got
        rc = head_scan(data, n, &inbox.scanned, &length)
        if rc == RC_OK and not x.skipped_line:
            x.skipped_line = True
            data += 2
            n -= 2
            inbox.scanned = 0
            rc = head_scan(data, n, &inbox.scanned, &length) if n else RC_AGAIN
        if rc == RC_DONE and length <= w.settings.max_head:
            inbox.scanned = 0
            step_request(w, x, data, length, n)
            return
        if rc == RC_OK or rc == RC_BAD:
            refuse(w, x, 400, head_scan_fault(data, n))
            return
        # Behind the longest line stand a CR and an LF.
        if n >= w.settings.max_request_line + 2 and memchr(data, c"\n", w.settings.max_request_line + 2) is NULL:
            refuse(w, x, 414, REASON_LINE_TOO_LONG)
            return
        if rc == RC_DONE or n >= w.settings.max_head:
            refuse(w, x, 431, REASON_HEAD_TOO_LONG)
            return
        length = inbox.scanned      # inbox_keep starts a new count
        if inbox_keep(w, inbox, data, n) != RC_OK:
            answer_error(w, x, 503, OUTCOME_OVERLOAD)
            return
        inbox.scanned = <uint32_t>length

# ------------------------------------------------------------------------------------------------ to the backend

cdef bint request_repeats(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether the request can be sent once more, should the connection it goes on prove stale (rule B3). Where it cannot, because
    # it is longer than what is kept, or its end is not in sight, or a backend had it already, it goes on a fresh one.
    if x.unanswered or (x.framing_up == FRAMING_CHUNKED and not x.up_done):
        return False
    return request_keeps(w, x.up.total + <uint64_t>x.up_left, <uint64_t>x.up_left)

cdef int request_set_host(WorkerC *w, ExchangeC *x, int slot) noexcept nogil:
    # Gives the request, of which nothing has been sent, the Host that this backend is to get: its own or the client's (rule B1).
    # RC_OK, RC_BAD where the head becomes too long, -ENOMEM.
    cdef RouteC *route = &w.table.routes[slot]
    cdef bint clients_own = not route.host[0] and not x.no_host
    cdef ChainC made
    cdef BufC *buf = x.up.first
    cdef BufC *following
    cdef const uint8_t *line
    cdef const uint8_t *behind
    cdef const uint8_t *value
    cdef const uint8_t *host = <const uint8_t *>route.authority
    cdef size_t host_length = 0
    cdef size_t n = 0
    cdef size_t left = x.head_length
    if clients_own and x.host is NULL:
        return RC_OK            # it is there
    write_start(&w.out, w.out.data, w.out.size)
    while True:
        n = buf.end - buf.start
        if n >= left:
            n = left
            break
        write_bytes(&w.out, buf.data + buf.start, n)
        left -= n
        buf = buf.next
    write_bytes(&w.out, buf.data + buf.start, n)        # the head ends in this buffer
    if w.out.full:
        return RC_BAD
    # There is exactly one, and we have written it.
    line = w.out.data
    while not text_same(line, 5, b"host:"):
        line = <const uint8_t *>memchr(line, c"\n", w.out.data + w.out.used - line) + 1
    behind = <const uint8_t *>memchr(line, c"\n", w.out.data + w.out.used - line) + 1
    if x.host is NULL and not x.no_host:
        value = line + 5
        while value[0] == c" " or value[0] == c"\t":
            value += 1
        left = behind - value - 2       # white space behind it does no harm
        if left > BUF_SIZE:
            return RC_BAD
        x.host = buf_get(&w.bufs)
        if x.host is NULL:
            return -ENOMEM
        memcpy(x.host.data, value, left)
        x.host.end = <int>left
    if route.host[0]:
        host = <const uint8_t *>route.host
    host_length = strlen(<const char *>host)
    if clients_own:
        host = x.host.data
        host_length = x.host.end
    memset(&made, 0, sizeof(made))
    made.kept = x.up.kept
    if (chain_copy(&made, &w.bufs, w.out.data, line - w.out.data) != RC_OK
            or chain_copy(&made, &w.bufs, <const uint8_t *>b"Host: ", 6) != RC_OK
            or chain_copy(&made, &w.bufs, host, host_length) != RC_OK
            or chain_copy(&made, &w.bufs, <const uint8_t *>b"\r\n", 2) != RC_OK
            or chain_copy(&made, &w.bufs, behind, w.out.data + w.out.used - behind) != RC_OK):
        chain_clear(&made, &w.bufs)
        return -ENOMEM
    x.head_length = made.total
    if chain_copy(&made, &w.bufs, buf.data + buf.start + n, buf.end - buf.start - n) != RC_OK:
        chain_clear(&made, &w.bufs)
        return -ENOMEM
    following = buf.next
    buf.next = NULL
    while following is not NULL:        # the body's other buffers change hands
        buf = following
        following = buf.next
        chain_take(&made, buf)
    while x.up.first is not NULL:
        buf = x.up.first
        x.up.first = buf.next
        buf_put(&w.bufs, buf)
    x.up = made
    return RC_OK

cdef int dispatch(WorkerC *w, ExchangeC *x, int again) noexcept nogil:
    # Finds a backend and an upstream for the exchange and begins to send; `again` is the slot of a backend that must get
    # the request on a fresh connection, or -1. RC_OK or RC_GONE.
    cdef int slot = again
    cdef UpstreamC *upstream = NULL
    cdef RouteC *route
    cdef int rc
    if slot < 0:
        slot = pool_reserve(w, x)
        if slot < 0:
            return answer_error(w, x, 503, OUTCOME_NO_BACKEND)
        route = &w.table.routes[slot]
        x.tried[slot >> 6] |= <uint64_t>1 << (slot & 63)
        x.addresses_tried = 0
        x.tables = w.tables
        x.address = <uint8_t>sys_load_acquire(&route.backend.address)
        if x.address >= route.address_count:
            x.address = 0           # another worker has a longer table
        attempt_begin(w, x, slot)
        if w.idle[slot] is not NULL:
            if request_repeats(w, x):
                upstream = pool_take_idle(w, slot)
            else:
                upstream_close(w, w.idle[slot])     # a fresh one takes its place: else they would pile up
    else:
        route = &w.table.routes[slot]
        if route.backend is NULL:
            return answer_error(w, x, 503, OUTCOME_NO_BACKEND)      # a new table has it no more
        if x.address >= route.address_count:
            x.address = 0
        sys_add_shared(&route.backend.in_flight, 1)
        attempt_begin(w, x, slot)
    rc = request_set_host(w, x, slot) if route.host[0] or x.no_host or x.host is not NULL else RC_OK
    if rc != RC_OK:
        if upstream is not NULL:
            upstream_keep(w, upstream)
        return refuse(w, x, 431, REASON_HEAD_TOO_LONG) if rc == RC_BAD else request_lost(w, x)
    if upstream is not NULL:
        x.upstream = upstream
        upstream.conn.exchange = x
        sys_add_counter(&w.stats.reuses, 1)
        sys_add_counter(&w.stats.backends[slot].reuses, 1)
        exchange_set_state(w, x, STATE_WAIT)
        return step_up(w, x)
    rc = pool_connect(w, slot, x.address, &upstream)
    if rc < 0:
        if rc == -EMFILE or rc == -ENFILE or rc == -ENOMEM or rc == -ENOBUFS or rc == -ENOSPC:
            # Of the proxy, not of the backend; ENOSPC is epoll's limit of watched descriptors.
            exchange_blame(w, x, REASON_NO_MEMORY if rc == -ENOMEM or rc == -ENOBUFS else REASON_NO_DESCRIPTORS, -rc)
            return answer_error(w, x, 503, OUTCOME_OVERLOAD)
        return connect_failed(w, x, OUTCOME_CONNECT_ERROR, reason_of_errno(-rc), -rc)
    x.upstream = upstream
    upstream.conn.exchange = x
    exchange_set_state(w, x, STATE_CONNECT)
    if rc == RC_OK:
        return step_connected(w, x)
    return RC_OK

cdef int step_connected(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The connect ended well. RC_OK or RC_GONE.
    # The address that answers is the first that the next exchange tries; one that does not never changes that: others may be
    # trying it at this moment.
    if x.upstream.address != sys_load_acquire(&x.counted.address) and not x.upstream.orphan:
        sys_store_release(&x.counted.address, x.upstream.address)
    # A fresh connection to the only backend leaves nowhere else to send the request to: nothing needs to be kept.
    if not pool_has_another(w, x):
        request_forget(w, x)
    exchange_set_state(w, x, STATE_WAIT)
    return step_up(w, x)

cdef int connect_failed(WorkerC *w, ExchangeC *x, uint8_t outcome, uint8_t reason, int error) noexcept nogil:
    # Tries the backend's next address, then the next backend. RC_OK or RC_GONE.
    cdef int slot = x.backend
    cdef RouteC *route = &w.table.routes[slot]
    sys_add_counter(&w.stats.connect_errors, 1)
    x.addresses_tried += 1
    if x.tables != w.tables:
        # A new table came meanwhile: what was tried says nothing of its addresses.
        x.tables = w.tables
        x.addresses_tried = 0
    if route.backend is x.counted and x.addresses_tried < route.address_count:
        x.address = <uint8_t>((x.address + 1) % route.address_count)
        upstream_drop(w, x)
        return dispatch(w, x, slot)
    return upstream_failed(w, x, outcome, reason, error)

cdef int upstream_failed(WorkerC *w, ExchangeC *x, uint8_t outcome, uint8_t reason, int error) noexcept nogil:
    # The upstream is of no use to this exchange any more (rules E1 and E2). A truncated response where some was forwarded; else the
    # request is sent once more where it may be, and an error answer where not. RC_OK or RC_GONE.
    #
    #   what the backend may have done with the request    it is sent again
    #   -------------------------------------------------  ----------------------------------------------------------
    #   nothing: not connected, or not a byte was taken    to every backend, once
    #   it took some of it, and ended without a byte       once, whatever ended it: a request that kills its server must
    #                                                      not kill them all. On a connection that was reused, to the
    #                                                      same backend: it may have closed while the request was on
    #                                                      its way (rule B3)
    #   it sent a byte, or the TTFT limit is over          never: it was carried out, or is no longer waited for
    cdef int slot = x.backend
    cdef BackendC *backend = x.counted
    cdef bint unconnected = outcome == OUTCOME_CONNECT_ERROR or outcome == OUTCOME_TIMEOUT_CONNECT
    cdef bint ended = outcome == OUTCOME_UPSTREAM_ERROR and not x.answered
    cdef bint stale
    exchange_blame(w, x, reason, error)
    if x.state == STATE_FINISH:
        upstream_drop(w, x)
        exchange_end(w, x, PHASE_FINISH, OUTCOME_CLIENT_ABORT)
        return RC_GONE
    if x.forwarded:
        return response_truncate(w, x, OUTCOME_UPSTREAM_ABORT if outcome == OUTCOME_UPSTREAM_ERROR else outcome)
    if not unconnected and (x.up.lost or x.up.unsent != x.up.total):
        x.unanswered += 1
    stale = ended and x.upstream is not NULL and x.upstream.reused and x.unanswered < 2
    # What happens at an address that has left the table is no word about the backend.
    if (unconnected or (ended and not stale)) and not (x.upstream is not NULL and x.upstream.orphan):
        backend_failed(w, backend, slot, reason, error)
    upstream_drop(w, x)
    if not x.answered and not x.up.lost and x.unanswered < 2 and outcome != OUTCOME_TIMEOUT_TTFT:
        if stale:
            sys_add_counter(&w.stats.stale, 1)
            request_rewind(x)
            x.addresses_tried = 0
            return dispatch(w, x, slot)
        if pool_has_another(w, x) and retry_take(w.shared):
            sys_add_counter(&w.stats.retries, 1)
            request_rewind(x)
            return dispatch(w, x, -1)
    return answer_error(w, x, 502 if outcome == OUTCOME_CONNECT_ERROR or outcome == OUTCOME_UPSTREAM_ERROR else 504,
                        outcome)

cdef void request_rewind(ExchangeC *x) noexcept nogil:
    # The request will be sent from its beginning.
    x.up_broken = False
    chain_rewind(&x.up)

cdef int step_up_broken(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # The upstream takes no more. It may have answered before it closed; the recv will tell. RC_OK or RC_GONE.
    x.up_broken = True
    x.error = error
    x.upstream.conn.readable = True
    exchange_rearm(w, x)        # only the answer is waited for now
    if x.forwarded:
        request_goes_on(w, x)
    return step_down(w, x)

cdef int step_up(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Moves the request towards the backend. RC_OK or RC_GONE.
    cdef ClientC *client = x.client
    cdef UpstreamC *upstream = x.upstream
    cdef ssize_t took
    cdef ssize_t got
    cdef size_t used = 0
    cdef int status
    cdef int error = 0
    cdef int i
    for i in range(TURN_READS):
        if x.up_broken:
            return step_skip(w, x) if x.forwarded else RC_OK
        if x.up.unsent:
            took = io_send_chain(upstream.conn.fd, &x.up, &w.bufs)
            if took < 0:
                return step_up_broken(w, x, <int>-took)
            if took:
                x.moved = w.now
                if x.state == STATE_WAIT:
                    x.waited = w.now
            exchange_rearm(w, x)    # what is waited for has changed
            if x.up.unsent:
                return RC_OK
        if x.up_done or not client.conn.readable:
            return RC_OK
        got = io_recv(client.conn.fd, w.hot.data, BUF_SIZE)
        if got == -EAGAIN:
            client.conn.readable = False
            return RC_OK
        if got <= 0:
            return client_left(w, x, <int>-got)
        conn_received(&client.conn, got)
        x.moved = w.now
        status = up_follow(w, x, w.hot.data, got, &used)
        if status != RC_OK:
            return request_broken(w, x, status, up_fault(x, status))
        x.bytes_up += used
        took = 0
        if not x.up.kept:
            took = io_send(upstream.conn.fd, w.hot.data, used) if used else 0
            if took < 0:
                error = <int>-took if took != -EAGAIN else 0
                took = 0
        if used < <size_t>got:
            # A pipelined request stands behind the body; it stays for later, and the body is copied.
            if (chain_copy(&x.up, &w.bufs, w.hot.data + took, used - took) != RC_OK
                    or inbox_keep(w, &client.inbox, w.hot.data + used, got - used) != RC_OK):
                discard(&w.stats, DISCARD_BEHIND_REQUEST, got - used)
                return request_lost(w, x)
        elif <size_t>took < used and up_hold(w, x, w.hot.data + took, used - took) != RC_OK:
            return request_lost(w, x)
        if error:
            return step_up_broken(w, x, error)
    conn_queue(w, &client.conn)
    return RC_OK

cdef int request_lost(WorkerC *w, ExchangeC *x) noexcept nogil:
    # No memory for a piece of the request, or of the head of its answer: neither can ever be whole. RC_OK or RC_GONE.
    if x.state == STATE_FINISH:
        return upstream_failed(w, x, OUTCOME_OVERLOAD, REASON_NO_MEMORY, ENOMEM)    # there is no client to tell
    exchange_blame(w, x, REASON_NO_MEMORY, ENOMEM)
    x.client_keeps = False      # what stood behind the request may be lost too
    if x.forwarded:
        return response_truncate(w, x, OUTCOME_OVERLOAD)
    return answer_error(w, x, 503, OUTCOME_OVERLOAD)

cdef int request_broken(WorkerC *w, ExchangeC *x, int status, uint8_t reason) noexcept nogil:
    # The client broke the framing of its body, or went over its limit. RC_OK or RC_GONE.
    if x.forwarded:
        exchange_blame(w, x, reason, 0)
        return response_truncate(w, x, OUTCOME_BAD_REQUEST)
    return refuse(w, x, status, reason)

# -------------------------------------------------------------------------------------------- from the backend, down

cdef int body_measure(ExchangeC *x, uint8_t *data, size_t n, size_t *used, size_t *out, bint *content) noexcept nogil:
    # Follows the response body's framing: data[0:used] belongs to it, data[0:out] is what the client gets (shorter where
    # chunks are taken off for an HTTP/1.0 client); whether there is content in it. RC_OK more is to come, RC_DONE, RC_BAD.
    cdef const uint8_t *body = NULL
    cdef size_t length = 0
    cdef int rc = RC_OK
    used[0] = 0
    out[0] = 0
    content[0] = False
    if x.framing_down == FRAMING_CHUNKED:
        while True:
            rc = chunk_next(&x.down_chunk, data, n, used, &body, &length)
            if rc != RC_OK:
                break
            content[0] |= sse_follow(&x.sse, body, length) if x.event_stream else True
            if x.dechunk:
                memmove(data + out[0], body, length)
                out[0] += length
        if not x.dechunk:
            out[0] = used[0]
        if rc == RC_AGAIN:
            rc = RC_OK
    else:
        used[0] = n
        if x.framing_down == FRAMING_LENGTH:
            if <int64_t>n >= x.down_left:
                used[0] = <size_t>x.down_left
                rc = RC_DONE
            x.down_left -= used[0]
        elif x.framing_down == FRAMING_NONE:
            used[0] = 0
            rc = RC_DONE
        out[0] = used[0]
        if out[0]:
            content[0] = sse_follow(&x.sse, data, out[0]) if x.event_stream else True
    return rc

cdef void content_came(WorkerC *w, ExchangeC *x) noexcept nogil:
    # A piece of the body had content in it: the wait for more begins.
    if not x.content:
        x.content = True
        x.first = w.now
        histogram_add(&w.stats.ttft, w.now - x.asked)
        x.waited = w.now
        exchange_rearm(w, x)
    else:
        if x.event_stream:
            histogram_add(&w.stats.itl, w.now - x.waited)
        x.waited = w.now

cdef int body_follow(WorkerC *w, ExchangeC *x, uint8_t *data, size_t n, size_t *used, size_t *out) noexcept nogil:
    # As body_measure, of bytes that will be forwarded.
    cdef bint content = False
    cdef int rc = body_measure(x, data, n, used, out, &content)
    if content:
        content_came(w, x)
    elif out[0] and w.settings.comments_count_as_content:
        x.waited = x.whole = w.now      # of a backend that sends them to say that it still works on the prompt
    return rc

cdef int response_done(WorkerC *w, ExchangeC *x, bint clean) noexcept nogil:
    # The response's framing has ended. `clean` says that nothing stood behind it. The upstream goes back to the pool, or
    # is closed (rules B3 and C4). RC_OK or RC_GONE.
    cdef UpstreamC *upstream = x.upstream
    if (clean and upstream.keep_alive and not upstream.orphan and x.up_done and not x.up.unsent and not x.up_broken
            and not upstream.conn.hung_up and w.settings.upstream_idle_timeout and not w.stopping):
        x.upstream = NULL
        upstream_keep(w, upstream)
    upstream_drop(w, x)
    if x.client is NULL:
        exchange_end(w, x, PHASE_FINISH, OUTCOME_CLIENT_ABORT)
        return RC_GONE
    return response_end(w, x)

cdef int body_forward(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t out, int rc, bint clean) noexcept nogil:
    # Sends a piece that body_follow has measured and acts on where it ended. RC_OK or RC_GONE.
    if client_send(w, x, data, out) == RC_GONE:
        return RC_GONE
    return RC_OK if rc == RC_OK else body_ended(w, x, rc, clean)

cdef int body_ended(WorkerC *w, ExchangeC *x, int rc, bint clean) noexcept nogil:
    # The framing has come to its end, or is broken. RC_OK or RC_GONE.
    if rc == RC_DONE:
        if not clean and x.reason != REASON_EMPTY_BODY:
            exchange_blame(w, x, REASON_BEHIND_END, 0)
        return response_done(w, x, clean)
    return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, chunk_fault(&x.down_chunk), 0)

cdef bint status_retries(WorkerC *w, ExchangeC *x, int status) noexcept nogil:
    # Whether the next backend is asked instead of forwarding this status: then a retry was taken out of the budget.
    if not ((status == 502 and w.settings.retry_502) or (status == 503 and w.settings.retry_503)
            or (status == 429 and w.settings.retry_429)):
        return False
    return x.client is not NULL and not x.up.lost and pool_has_another(w, x) and retry_take(w.shared)

cdef int response_broken(WorkerC *w, ExchangeC *x, uint8_t reason, size_t n) noexcept nogil:
    # The n bytes that came of a response cannot be understood. RC_OK or RC_GONE.
    if x.upstream.inbox.buf is NULL and x.upstream.inbox.wide is NULL:
        discard(&w.stats, DISCARD_BROKEN, n)        # else upstream_close counts them
    return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason, 0)

cdef int step_response(WorkerC *w, ExchangeC *x, uint8_t *data, size_t n) noexcept nogil:
    # data[0:n] is all that came of the response so far, its head not yet whole. RC_OK or RC_GONE.
    cdef UpstreamC *upstream = x.upstream
    cdef HeadC *head = w.head
    cdef const char *connection = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef size_t out = 0
    cdef int rc
    x.answered = True
    while True:
        rc = head_scan(data, n, &upstream.inbox.scanned, &length)
        if rc == RC_AGAIN and n < w.settings.max_response_head:
            used = upstream.inbox.scanned
            if inbox_keep(w, &upstream.inbox, data, n) != RC_OK:
                return request_lost(w, x)
            upstream.inbox.scanned = <uint32_t>used
            return RC_OK
        if rc == RC_OK or rc == RC_BAD:
            return response_broken(w, x, head_scan_fault(data, n), n)
        if rc == RC_AGAIN or length > w.settings.max_response_head:
            return response_broken(w, x, REASON_HEAD_TOO_LONG, n)
        if head_read_response(head, data, length, w.settings.max_response_fields, x.to_head) != RC_OK:
            return response_broken(w, x, head.fault, n)
        upstream.inbox.scanned = 0
        if head.status >= 200 or head.status == 101:
            break
        # 100 and 103 on their own way; the final response is still to come.
        if x.minor and x.client is not NULL:
            write_start(&w.out, w.out.data, w.out.size)
            head_write_response(&w.out, head, False, NULL, x.request_id, x.request_id_length)
            if client_send(w, x, w.out.data, w.out.used) == RC_GONE:
                return RC_GONE
        else:
            discard(&w.stats, DISCARD_INTERIM, length)
        data += length
        n -= length
        if n == 0:
            inbox_clear(w, &upstream.inbox)
            return RC_OK
    if head.status == 101:
        return step_switch(w, x, data + length, n - length)
    if status_retries(w, x, head.status):
        sys_add_counter(&w.stats.retries, 1)
        discard(&w.stats, DISCARD_RETRIED, n)
        inbox_clear(w, &upstream.inbox)
        upstream_drop(w, x)
        x.answered = False
        request_rewind(x)
        return dispatch(w, x, -1)
    backend_answered(w, x.counted, x.backend)
    request_forget(w, x)
    x.framing_down = head.framing
    x.down_left = head.content_length
    x.event_stream = head.event_stream
    x.dechunk = head.chunked and x.minor == 0
    # An answer that did not wait for the whole request may be one to its head alone; what comes of the body would then be
    # read as the next request. So nobody else is sent there.
    upstream.keep_alive = head.keep_alive and x.up_done and not x.up.unsent
    if not x.up_done or w.draining or head.framing == FRAMING_CLOSE or x.dechunk:
        x.client_keeps = False
    if not x.client_keeps:
        connection = b"close"
    elif x.minor == 0:
        connection = b"keep-alive"
    write_start(&w.out, w.out.data, w.out.size)
    head_write_response(&w.out, head, not x.dechunk, connection, x.request_id, x.request_id_length)
    if w.out.full:
        return response_broken(w, x, REASON_HEAD_TOO_LONG, n)
    x.status = head.status
    if head.unframed:
        exchange_blame(w, x, REASON_EMPTY_BODY, 0)      # the body that it announces is not read, whether it comes or not
    if x.client is not NULL:
        x.forwarded = True
        if x.up_broken:
            request_goes_on(w, x)
        if head.framing != FRAMING_NONE:
            exchange_set_state(w, x, STATE_STREAM)
    # What came with the head goes with it, in one send.
    data += length
    n -= length
    rc = body_follow(w, x, data, n, &used, &out)
    if out:
        sys_add_counter(&w.stats.events, 1)
        sys_add_counter(&w.stats.streaming_bytes, out)
    write_bytes(&w.out, data, out)
    discard(&w.stats, DISCARD_BROKEN if rc == RC_BAD else DISCARD_BEHIND_RESPONSE, n - used)
    inbox_clear(w, &upstream.inbox)
    return body_forward(w, x, w.out.data, w.out.used, rc, used == n)

cdef int step_bulk(WorkerC *w, ExchangeC *x) noexcept nogil:
    # The stream fills every recv: looks at more than a buffer, sends it, and takes what the client took. So nothing has to be
    # held, and three long calls stand for sixteen short ones. RC_OK; RC_AGAIN where nothing was moved: the usual way is to meet
    # what stands there, be it the end, an error or a client that takes no more; RC_GONE.
    cdef int fd = x.upstream.conn.fd
    cdef ChunkC chunk = x.down_chunk
    cdef int64_t left = x.down_left
    cdef uint8_t sse = x.sse
    cdef bint content = False
    cdef size_t used = 0
    cdef size_t out = 0
    cdef ssize_t took = -EAGAIN
    cdef ssize_t got = io_look(fd, w.bulk, BULK_SIZE)
    if got < 0 and got != -EAGAIN:
        return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(<int>-got), <int>-got)     # told once
    if got <= BUF_SIZE:
        return RC_AGAIN
    if body_measure(x, w.bulk, got, &used, &out, &content) == RC_OK and out == <size_t>got:
        took = io_send(x.client.conn.fd, w.bulk, got)
    if took < got:
        x.down_chunk = chunk
        x.down_left = left
        x.sse = sse
        if took < 0:
            return RC_AGAIN if took == -EAGAIN else client_left(w, x, <int>-took)
        body_measure(x, w.bulk, took, &used, &out, &content)
    x.bytes_down += took
    if content:
        content_came(w, x)
    sys_add_counter(&w.stats.events, 1)
    sys_add_counter(&w.stats.streaming_bytes, took)
    if io_skip(fd, w.bulk, took) != took:
        return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, REASON_ERRNO, 0)
    return RC_OK

cdef uint8_t reason_of_end(ExchangeC *x, ssize_t got) noexcept nogil:
    # Why a recv from the upstream that gave no byte ends the exchange: `got` is 0 for a FIN, or -errno.
    if got < 0:
        return reason_of_errno(<int>-got)
    if x.status:
        return REASON_FIN_IN_BODY
    return REASON_FIN_BEFORE_HEAD if x.upstream.inbox.buf is NULL and x.upstream.inbox.wide is NULL else REASON_FIN_IN_HEAD

cdef int step_down(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Moves the response towards the client: one recv, one send. RC_OK or RC_GONE.
    cdef UpstreamC *upstream
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    cdef size_t used = 0
    cdef size_t out = 0
    cdef ssize_t got
    cdef int rc
    cdef int i
    cdef int looks = BULK_LOOKS
    if x.down.unsent:
        rc = flush_down(w, x)
        if rc != RC_OK:
            return rc if rc == RC_GONE else RC_OK
    for i in range(TURN_READS):
        upstream = x.upstream
        if upstream is NULL or x.down.unsent or not upstream.conn.readable or x.state == STATE_CONNECT:
            return RC_OK
        if x.status:            # behind the head nothing is held
            data = w.hot.data
            got = io_recv(upstream.conn.fd, data, BUF_SIZE)
            n = <size_t>got
        else:
            got = inbox_recv(w, &upstream.inbox, upstream.conn.fd, &data, &n)
        if got == -EAGAIN:
            upstream.conn.readable = False
            return RC_OK
        if got <= 0:
            if got == 0 and x.up_broken and x.error != EPIPE:
                got = -x.error      # the kernel tells of an RST once, and told the send: what looks like a FIN is none
            if got == 0 and x.framing_down == FRAMING_CLOSE and x.status:
                return response_done(w, x, False)
            return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_end(x, got), <int>-got)
        if x.status or (upstream.inbox.buf is NULL and upstream.inbox.wide is NULL):
            conn_received(&upstream.conn, got)
        if not x.status:
            rc = step_response(w, x, data, n)
            if rc == RC_OK and x.state == STATE_TUNNEL:
                return RC_OK            # step_tunnel has taken over, and what is left with it
        else:
            rc = body_follow(w, x, data, n, &used, &out)
            sys_add_counter(&w.stats.events, 1)
            sys_add_counter(&w.stats.streaming_bytes, out)
            if used < n:
                discard(&w.stats, DISCARD_BROKEN if rc == RC_BAD else DISCARD_BEHIND_RESPONSE, n - used)
            rc = body_forward(w, x, data, out, rc, used == n)
        if rc == RC_GONE:
            return RC_GONE
        if got == BUF_SIZE and looks and x.state == STATE_STREAM and not x.dechunk and not x.down.unsent:
            looks -= 1
            rc = step_bulk(w, x)
            if rc == RC_GONE:
                return RC_GONE
            if rc == RC_OK and not looks:
                break
    if x.upstream is not NULL:
        conn_queue(w, &x.upstream.conn)
    return RC_OK

# ---------------------------------------------------------------------------------------------------------- the tunnel

cdef int step_switch(WorkerC *w, ExchangeC *x, uint8_t *rest, size_t n) noexcept nogil:
    # The backend answered 101; rest[0:n] stands behind the head. RC_OK or RC_GONE.
    if not x.upgrade or x.client is NULL:
        discard(&w.stats, DISCARD_BROKEN, n)
        inbox_clear(w, &x.upstream.inbox)
        return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, REASON_UNASKED_UPGRADE, 0)
    backend_answered(w, x.counted, x.backend)
    request_forget(w, x)
    write_start(&w.out, w.out.data, w.out.size)
    head_write_response(&w.out, w.head, False, b"Upgrade", x.request_id, x.request_id_length)
    write_bytes(&w.out, rest, n)
    x.status = 101
    x.forwarded = True
    x.client_keeps = False
    x.client_closes = False         # of HTTP: in a tunnel either side sends for as long as it likes
    x.framing_up = FRAMING_CLOSE
    x.framing_down = FRAMING_CLOSE
    x.up_done = False
    x.waited = w.now
    x.moved = w.now
    inbox_clear(w, &x.upstream.inbox)
    exchange_set_state(w, x, STATE_TUNNEL)
    if n:
        sys_add_counter(&w.stats.streaming_bytes, n)
    if client_send(w, x, w.out.data, w.out.used) == RC_GONE:
        return RC_GONE
    return step_tunnel(w, x)

cdef int tunnel_up_broken(WorkerC *w, ExchangeC *x, int error) noexcept nogil:
    # The backend takes no more. An RST is passed on at once: the kernel has told of it now, and will not again. Behind a FIN, what
    # it sent before is still to be read. RC_OK or RC_GONE.
    if error != EPIPE:
        return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(error), error)
    x.up_broken = True
    x.error = error
    discard(&w.stats, DISCARD_TUNNEL, x.up.unsent)
    chain_clear(&x.up, &w.bufs)
    x.upstream.conn.readable = True
    conn_queue(w, &x.client.conn)
    return RC_OK

cdef int tunnel_hold(WorkerC *w, ExchangeC *x, const uint8_t *data, size_t n) noexcept nogil:
    # Keeps what the backend did not take yet; the client is not read meanwhile. RC_OK or RC_GONE.
    if chain_take_hot(w, &x.up, data, n) != RC_OK:
        discard(&w.stats, DISCARD_TUNNEL, n)
        return request_lost(w, x)
    x.moved = w.now
    exchange_rearm(w, x)
    return RC_OK

cdef int tunnel_up(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Client to upstream. RC_OK nothing more now, RC_AGAIN there may be more, RC_GONE.
    cdef ClientC *client = x.client
    cdef uint8_t *data = NULL
    cdef size_t n = 0
    cdef ssize_t got
    cdef ssize_t took = 0
    cdef bint lost
    if x.up.unsent:
        took = io_send_chain(x.upstream.conn.fd, &x.up, &w.bufs)
        if took < 0:
            return tunnel_up_broken(w, x, <int>-took)
        if took:
            x.moved = w.now
        if x.up.unsent:
            return RC_OK
        x.waited = w.now
        exchange_rearm(w, x)
    if inbox_holds(&client.inbox, &data, &n):
        # Bytes of the new protocol that the client sent before it had the 101.
        if tunnel_hold(w, x, data, n) == RC_GONE:
            return RC_GONE
        x.bytes_up += n
        inbox_clear(w, &client.inbox)
        return RC_AGAIN
    if not client.conn.readable:
        return RC_OK
    got = io_recv(client.conn.fd, w.hot.data, BUF_SIZE)
    if got == -EAGAIN:
        client.conn.readable = False
        return RC_OK
    if got < 0 and got != -EPIPE:
        return client_left(w, x, <int>-got)
    if got <= 0:
        # Its FIN (EPIPE is an RST behind one). The backend gets one too, behind all that came before it; what it has sent and
        # the client has not taken is lost (RFC 9110 section 9.3.6).
        lost = x.down.unsent or x.deaf
        upstream_linger(w, x.upstream, client)
        x.upstream = NULL
        return client_left(w, x, 0) if lost else exchange_finish(w, x)
    conn_received(&client.conn, got)
    x.bytes_up += got
    x.waited = w.now
    if x.up_broken:
        discard(&w.stats, DISCARD_TUNNEL, got)
        return RC_AGAIN if client.conn.readable else RC_OK
    took = io_send(x.upstream.conn.fd, w.hot.data, got)
    if took == -EAGAIN:
        took = 0
    if took < 0:
        discard(&w.stats, DISCARD_TUNNEL, got)
        return tunnel_up_broken(w, x, <int>-took)
    if took < got:
        return tunnel_hold(w, x, w.hot.data + took, got - took)
    return RC_AGAIN if client.conn.readable else RC_OK

cdef int tunnel_down(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Upstream to client. RC_OK nothing more now, RC_AGAIN there may be more, RC_GONE.
    cdef UpstreamC *upstream = x.upstream
    cdef ssize_t got
    cdef int rc = flush_down(w, x)
    if rc != RC_OK:
        return RC_GONE if rc == RC_GONE else RC_OK
    if not upstream.conn.readable:
        return RC_OK
    got = io_recv(upstream.conn.fd, w.hot.data, BUF_SIZE)
    if got == -EAGAIN:
        upstream.conn.readable = False
        return RC_OK
    if got == 0 and x.up_broken:
        got = -x.error          # the kernel tells of an RST once, and told the send
    if got < 0 and got != -EPIPE:
        return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(<int>-got), <int>-got)
    if got <= 0:
        if x.deaf:
            return client_left(w, x, 0)
        if x.up.unsent or x.up_broken:
            # It closed before it had all: the client had the whole of what came, but this is no good end.
            exchange_blame(w, x, REASON_FIN_IN_BODY, x.error)
            x.outcome = OUTCOME_UPSTREAM_ABORT
        return exchange_finish(w, x)
    conn_received(&upstream.conn, got)
    x.waited = w.now
    sys_add_counter(&w.stats.streaming_bytes, got)
    if client_send(w, x, w.hot.data, got) == RC_GONE:
        return RC_GONE
    return RC_AGAIN if upstream.conn.readable and not x.down.unsent else RC_OK

cdef int tunnel_failed(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Passes an RST on that no recv will tell of soon, since bytes are held towards the other side. RC_OK or RC_GONE.
    cdef int error
    if x.state != STATE_TUNNEL:
        return RC_OK            # it has ended, and the client has not taken all
    if x.client.conn.failed:
        # Nothing may be read while bytes are held, so the error is asked for. EPIPE is an RST behind a FIN: all that it
        # sent is here.
        x.client.conn.failed = False
        error = -io_error(x.client.conn.fd)
        if error and error != EPIPE:
            return client_left(w, x, error)
    if x.upstream.conn.failed and x.down.unsent:
        x.upstream.conn.failed = False
        error = -io_error(x.upstream.conn.fd)
        if error and error != EPIPE:
            return upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, reason_of_errno(error), error)
    return RC_OK

cdef int step_tunnel(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Bytes both ways. RC_OK or RC_GONE.
    cdef int up = RC_AGAIN
    cdef int down = RC_AGAIN
    cdef int i
    if tunnel_failed(w, x) == RC_GONE:
        return RC_GONE
    for i in range(TURN_READS):
        # Where the backend has failed and the client has not taken all, the exchange goes on, and the tunnel does not.
        if up == RC_AGAIN and x.state == STATE_TUNNEL:
            up = tunnel_up(w, x)
            if up == RC_GONE:
                return RC_GONE
        if down == RC_AGAIN and x.state == STATE_TUNNEL:
            down = tunnel_down(w, x)
            if down == RC_GONE:
                return RC_GONE
    if x.state != STATE_TUNNEL:
        return RC_OK
    if up == RC_AGAIN or down == RC_AGAIN:
        conn_queue(w, &x.client.conn)
    return tunnel_failed(w, x)      # the reads may have come upon a side that takes no more

# ------------------------------------------------------------------------------------- what epoll and the wheel call

cdef bint only_end_missing(WorkerC *w, ExchangeC *x) noexcept nogil:
    # Whether a client that left had the whole body, and the end of the framing has come too; then the exchange ends well.
    # Clients of the OpenAI API close as soon as they have read [DONE], a moment before or after the last chunk is there.
    cdef const uint8_t *body = NULL
    cdef size_t length = 0
    cdef size_t used = 0
    cdef ssize_t got
    if (x.state != STATE_STREAM or x.framing_down != FRAMING_CHUNKED or x.down.unsent or not x.up_done
            or x.down_chunk.state == CHUNK_DATA or w.table.routes[x.backend].finish_on_abort):
        return False        # what is received here is lost, so a backend that may finish is not asked
    got = io_recv(x.upstream.conn.fd, w.hot.data, BUF_SIZE)
    if got > 0:
        discard(&w.stats, DISCARD_RESPONSE, got)
    if got <= 0 or chunk_next(&x.down_chunk, w.hot.data, got, &used, &body, &length) != RC_DONE:
        return False
    response_done(w, x, used == <size_t>got)
    return True

cdef void step_reconnect(WorkerC *w, UpstreamC *upstream) noexcept nogil:
    # The backlog of the Unix socket that it connects to was full (rule E1: that is neither refused nor dead).
    cdef ExchangeC *x = upstream.conn.exchange
    cdef int64_t pause = (w.now - upstream.since) // 8
    cdef int rc = -ECONNREFUSED
    cdef int watched
    if not upstream.orphan:
        rc = io_connect_again(upstream.conn.fd, &w.table.routes[upstream.backend].addresses[upstream.address])
    if rc == RC_FULL:
        timer_arm(w, &upstream.conn, w.now + (pause if pause > CONNECT_PAUSE else CONNECT_PAUSE))
        return
    if rc >= 0:
        upstream.full = False
        watched = io_watch(w.epfd, upstream.conn.fd, &upstream.conn)
        if watched < 0:
            rc = watched
    if rc < 0:
        connect_failed(w, x, OUTCOME_CONNECT_ERROR, reason_of_errno(-rc), -rc)
    elif rc == RC_OK:
        step_connected(w, x)

cdef void step_client(WorkerC *w, ClientC *client) noexcept nogil:
    # Something happened to a client connection.
    cdef ExchangeC *x = client.conn.exchange
    if client.state == CLIENT_LINGER:
        step_linger(w, client)
    elif x is NULL or x.state == STATE_HEAD:
        step_head(w, client)
    elif x.state == STATE_TUNNEL:
        step_tunnel(w, x)
    elif client.conn.hung_up:
        if not only_end_missing(w, x):
            client_left(w, x, 0)
    else:
        if x.down.unsent and step_down(w, x) == RC_GONE:
            return
        if x.state == STATE_WAIT or x.state == STATE_STREAM:
            # Bytes may be held without the upstream having refused any: a turn's share of reads was used up before.
            if ((client.conn.readable and not x.up_done) or x.up.unsent) and x.upstream is not NULL:
                step_up(w, x)
        elif x.state == STATE_FLUSH:
            step_skip(w, x)

cdef void step_upstream(WorkerC *w, UpstreamC *upstream, bint writable) noexcept nogil:
    # Something happened to an upstream.
    cdef ExchangeC *x = upstream.conn.exchange
    cdef int error
    if upstream.lingers:
        step_upstream_linger(w, upstream)
        return
    if x is NULL:
        # Idle. A FIN, or bytes that nobody asked for, end it; the event may also be of bytes that were read since.
        if upstream.conn.readable and io_peek(upstream.conn.fd) != -EAGAIN:
            upstream_close(w, upstream)
        upstream.conn.readable = False
        return
    if x.state == STATE_CONNECT:
        error = io_error(upstream.conn.fd)
        if error < 0:
            connect_failed(w, x, OUTCOME_CONNECT_ERROR, reason_of_errno(-error), -error)
            return
        if not writable or step_connected(w, x) == RC_GONE or x.upstream is not upstream:
            return
    if x.state == STATE_TUNNEL:
        step_tunnel(w, x)
        return
    if upstream.taken == w.turn and upstream.reused and upstream.conn.readable and io_peek(upstream.conn.fd) > 0:
        # These bytes were there before the request was sent: they answer nothing that we asked.
        upstream_failed(w, x, OUTCOME_UPSTREAM_ERROR, REASON_UNASKED, 0)
        return
    if writable and x.up.unsent and x.state != STATE_FINISH:
        if step_up(w, x) == RC_GONE or x.upstream is not upstream:
            return
    if upstream.conn.readable:
        step_down(w, x)

cdef int exchange_expired(WorkerC *w, ExchangeC *x, uint8_t outcome) noexcept nogil:
    # Its time is up, for the reason given (rule F). RC_OK or RC_GONE.
    cdef ClientC *client = x.client
    if x.state == STATE_FINISH:
        return upstream_failed(w, x, outcome, REASON_DEADLINE, ETIMEDOUT)
    if outcome == OUTCOME_TIMEOUT_HEAD or outcome == OUTCOME_TIMEOUT_BODY:
        return answer_error(w, x, 408, outcome)
    if outcome == OUTCOME_TIMEOUT_SEND:
        exchange_end(w, x, exchange_phase(x), outcome)
        client_close(w, client, True)
        return RC_GONE
    if outcome == OUTCOME_TIMEOUT_CONNECT:
        return connect_failed(w, x, outcome, REASON_DEADLINE, ETIMEDOUT)
    if outcome == OUTCOME_TIMEOUT_TOTAL:
        if x.state == STATE_FLUSH:
            exchange_end(w, x, exchange_phase(x), outcome)
            client_close(w, client, True)
            return RC_GONE
        if x.forwarded:
            return response_truncate(w, x, outcome)
        return answer_error(w, x, 504, outcome)
    return upstream_failed(w, x, outcome, REASON_DEADLINE, ETIMEDOUT)

cdef void step_expired(WorkerC *w, ConnC *conn) noexcept nogil:
    # The wheel came to a connection: is its time up, or only near?
    cdef ExchangeC *x = conn.exchange
    cdef ClientC *client = <ClientC *>conn
    cdef uint8_t outcome = OUTCOME_OK
    cdef int64_t deadline = 0
    if x is not NULL:
        if conn.side == SIDE_UPSTREAM and x.state == STATE_CONNECT and (<UpstreamC *>conn).full:
            step_reconnect(w, <UpstreamC *>conn)
            return
        if conn.side == SIDE_UPSTREAM and x.client is not NULL:
            return          # the client connection keeps the time
        if conn.side == SIDE_CLIENT and client.patient and not x.down.unsent:
            # Here, and not when the last byte was taken: an unpaced stream is blocked and not blocked all the time.
            client.patient = False
            io_unanswered(conn.fd, w.settings.dead_peer_timeout)
        deadline = exchange_deadline(w, x, &outcome)
    elif conn.side == SIDE_UPSTREAM:
        deadline = upstream_deadline(w, <UpstreamC *>conn)
    else:
        deadline = client_deadline(w, client)
    if not deadline:
        return
    if deadline > w.now:
        timer_arm(w, conn, deadline)
    elif x is not NULL:
        exchange_expired(w, x, outcome)
    elif conn.side == SIDE_UPSTREAM:
        upstream_close(w, <UpstreamC *>conn)
    else:
        if client.state == CLIENT_NEW:
            sys_add_counter(&w.stats.silent, 1)
        client_close(w, client, False)
