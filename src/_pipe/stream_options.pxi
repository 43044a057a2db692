# stream_options: has a backend tell the usage of a stream whose client has not asked for it (rule Q2).
#
# The request is sent when its body is whole, since the options may stand anywhere in it. A body that is no JSON object, that asks for
# no stream, to whose options nobody can add, or for which there is no room, goes as it is.

cdef bint head_asks_completion(const HeadC *head) noexcept nogil:
    # Whether it is a POST to a path of OpenAI's API whose streams tell their usage only where they are asked.
    cdef const uint8_t *query = <const uint8_t *>memchr(head.target, c"?", head.target_length)
    cdef size_t n = head.target_length if query is NULL else query - head.target
    return (head_is(head.method, head.method_length, b"POST")
            and n >= 12 and memcmp(head.target + n - 12, <const char *>b"/completions", 12) == 0)

cdef bint request_gives_up(ExchangeC *x) noexcept nogil:
    # There is no room for more of a body whose pool is known already, or no time: it goes as it is. False where the pool is not known.
    if x.json is NULL or not x.json.awaited:
        return False
    x.json.completes = False        # it is looked at to its end still, for a second model
    x.json.awaited = False
    return True

cdef bint options_splice(const JsonC *json, SpliceC *splice) noexcept nogil:
    # What has to be put into the body, if anything.
    cdef const char *text = b"true"
    if not json.streams or json.leave or json.options == OPTIONS_ASK:
        return False
    splice.from_at = json.options_from
    splice.to_at = json.options_to
    if json.options == OPTIONS_NONE:
        text = b',"stream_options":{"include_usage":true}'
        splice.from_at = splice.to_at = json.end_at
    elif json.options == OPTIONS_NULL:
        text = b'{"include_usage":true}'
    elif json.options == OPTIONS_EMPTY:
        text = b'"include_usage":true'
    elif json.options == OPTIONS_OTHERS:
        text = b'"include_usage":true,'
    splice.data = <const uint8_t *>text
    splice.n = strlen(text)
    return True

cdef int request_prepare(WorkerC *w, ExchangeC *x, const ModelC *model) noexcept nogil:
    # The pool is known: changes in the body what its backends need otherwise. RC_OK; RC_AGAIN where more of the body is needed for
    # that; -ENOMEM. `model` may be NULL.
    cdef JsonC *json = x.json
    cdef SpliceC splices[2]
    cdef SpliceC first
    cdef int count = 0
    if x.pool.limits.adds_usage and json.completes and json.state != JSON_OTHER:
        json.awaited = not x.up_body.done
        if json.awaited:
            exchange_rearm(w, x)        # the pool's time may be shorter
            return RC_AGAIN
        if json.state == JSON_END and options_splice(json, &splices[0]):
            x.adds_usage = True
            count = 1
    if model is not NULL and model.target is not NULL:
        splices[count].from_at = json.from_at
        splices[count].to_at = json.to_at
        splices[count].data = model.target
        splices[count].n = model.target_length
        count += 1
    if count == 2 and splices[0].from_at < splices[1].from_at:
        first = splices[0]
        splices[0] = splices[1]
        splices[1] = first
    return request_splice(w, x, splices, count) if count else RC_OK
