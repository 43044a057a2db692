# model: which pool a request is for: by a rule, or by the model that its body names (rule J).

cdef bint rule_fits(const RuleC *rule, const HeadC *head) noexcept nogil:
    cdef const FieldC *field
    cdef int i
    if head.target_length < rule.path_length or memcmp(head.target, rule.path, rule.path_length) != 0:
        return False
    if not rule.field_length:
        return True
    for i in range(head.count):
        field = &head.fields[i]
        if (text_same_bytes(field.line, field.name_length, rule.field, rule.field_length)
                and (not rule.value_length or (field.value_length == rule.value_length
                     and memcmp(field.value, rule.value, rule.value_length) == 0))):
            return True
    return False

cdef bint charset_is_utf8(const uint8_t *p, size_t n) noexcept nogil:
    # Whether the parameters of a media type name no other charset. JSON is UTF-8 (RFC 8259 section 8.1), but there are readers that
    # go by the name, and find another text in the same bytes.
    cdef const uint8_t *end
    cdef const uint8_t *following
    cdef size_t length
    cdef size_t i
    while n:
        end = <const uint8_t *>memchr(p, c";", n)
        length = n if end is NULL else end - p
        n -= length
        following = p + length
        while length and (p[length - 1] == c" " or p[length - 1] == c"\t"):
            length -= 1
        for i in range(length):
            if p[i] >= 0x80:
                return False
            if length - i >= 7 and text_same(p + i, 7, b"charset"):
                if not (text_same(p + i, length - i, b"charset=utf-8") or text_same(p + i, length - i, b'charset="utf-8"')
                        or text_same(p + i, length - i, b"charset=utf8") or text_same(p + i, length - i, b"charset=us-ascii")):
                    return False
                break
        if n:
            n -= 1
            following += 1
        p = following
    return True

cdef int body_kind(HeadC *head) noexcept nogil:
    # Whether a model can be read in the body: 0 for no, 1 for JSON, 2 where it is, if it begins so; RC_BAD where it would be read in
    # another charset. Not every server looks at the media type, or at the coding: Ollama's documentation sends JSON with curl's own.
    cdef FieldC *field
    cdef const uint8_t *end
    cdef size_t n
    cdef int i
    if head.framing == FRAMING_NONE or head.has_upgrade:
        return 0
    for i in range(head.count):
        field = &head.fields[i]
        if field.kind == FIELD_CONTENT_TYPE and not charset_is_utf8(field.value, field.value_length):
            return RC_BAD
    field = head_single(head, FIELD_CONTENT_TYPE)
    if field is NULL or head.encoded:
        return 2
    n = field.value_length
    end = <const uint8_t *>memchr(field.value, c";", n)
    if end is not NULL:
        n = end - field.value
    while n and (field.value[n - 1] == c" " or field.value[n - 1] == c"\t"):
        n -= 1
    if text_same(field.value, n, b"application/json") or (n > 5 and text_same(field.value + n - 5, 5, b"+json")):
        return 1
    return 2

cdef int pool_enter(ExchangeC *x, int pool, uint8_t *reason) noexcept nogil:
    # The request is for this pool. RC_OK, or 413 where its body is longer than the pool's may be.
    x.pool = &x.table.pools[pool]
    x.series = x.pool.series
    if body_announced(&x.up_body) <= <uint64_t>x.pool.limits.max_body:
        return RC_OK
    reason[0] = REASON_BODY_TOO_LONG
    return 413

cdef int pool_enter_default(ExchangeC *x, uint8_t *reason, uint8_t why, int status) noexcept nogil:
    # The request is for the default pool; where there is none, `status` and why.
    if x.table.default_pool >= 0:
        return pool_enter(x, x.table.default_pool, reason)
    reason[0] = why
    return status

cdef bint head_asks_models(const HeadC *head) noexcept nogil:
    # Whether it is GET /v1/models.
    return ((head_is(head.method, head.method_length, b"GET") or head_is(head.method, head.method_length, b"HEAD"))
            and head.framing == FRAMING_NONE and head.target_length >= 10
            and memcmp(head.target, <const char *>b"/v1/models", 10) == 0
            and (head.target_length == 10 or head.target[10] == c"?"))

cdef int pool_of_head(WorkerC *w, ExchangeC *x, HeadC *head, int kind, uint8_t *reason) noexcept nogil:
    # Looks for the pool in what the head says; as pool_find_by_head.
    cdef int i
    if not x.table.chooses:
        return RC_OK
    for i in range(x.table.rule_count):
        if rule_fits(&x.table.rules[i], head):
            return pool_enter(x, x.table.rules[i].pool, reason)
    if x.table.listing_length and head_asks_models(head):
        return RC_DONE
    if kind == RC_BAD and x.table.reads_model:
        reason[0] = REASON_CHARSET
        return 400
    if not kind or not x.table.reads_model:
        return pool_enter_default(x, reason, REASON_NO_ROUTE, 404)
    return RC_AGAIN

cdef int pool_find_by_head(WorkerC *w, ExchangeC *x, HeadC *head, uint8_t *reason) noexcept nogil:
    # RC_OK where the pool was found; RC_AGAIN where the body has to tell, or has to be looked at before it goes there: then x.json
    # follows that; RC_DONE where no backend is needed: it asks which models there are; or the status to answer with, and why.
    cdef int kind = body_kind(head) if x.table.chooses or x.pool.limits.adds_usage else 0
    cdef int rc = pool_of_head(w, x, head, kind, reason)
    cdef bint settled = rc == RC_OK
    if rc != RC_AGAIN and (not settled or not x.pool.limits.adds_usage or not kind or kind == RC_BAD
                           or not head_asks_completion(head)):
        return rc
    x.json = <JsonC *>slab_get(&w.scans)
    if x.json is NULL:
        reason[0] = REASON_NO_MEMORY
        return 503
    x.json.guessed = kind == 2
    x.json.settled = settled
    x.json.completes = settled or head_asks_completion(head)
    return RC_AGAIN

cdef int pool_find_by_model(WorkerC *w, ExchangeC *x, uint8_t *reason) noexcept nogil:
    # The same in what has come of the body; the name of an alias is replaced. -ENOMEM where that needs memory and there is none.
    cdef JsonC *json = x.json
    cdef ModelC *model = NULL
    cdef int rc = RC_OK
    if x.table is not w.table:
        exchange_take_table(w, x)       # its names count, and its pools are those that there are
    if json.settled or not x.table.chooses:
        if json.found and not json.too_long:
            exchange_note_model(w, x, json.text, json.length)
    elif not x.table.reads_model:
        rc = pool_enter_default(x, reason, REASON_NO_ROUTE, 404)
    elif json.found:
        if not json.too_long:
            model = model_find(x.table, json.text, json.length)
            exchange_note_model(w, x, json.text, json.length)
        if model is not NULL:
            exchange_take_tokens(x, model.tokens)
            rc = pool_enter(x, model.pool, reason)
        else:
            rc = pool_enter_default(x, reason, REASON_UNKNOWN_MODEL, 404)
    elif json.state == JSON_OTHER or (x.up_body.done and json_empty(json)):
        rc = pool_enter_default(x, reason, REASON_NO_ROUTE, 404)
    elif not x.up_body.done:
        return RC_AGAIN
    else:
        rc = pool_enter_default(x, reason, REASON_NO_MODEL, 400)
    if rc == RC_OK and model is not NULL and model.target is not NULL and body_announced(&x.up_body) >> 50:
        reason[0] = REASON_BODY_TOO_LONG        # its length may have no room for what the name adds
        return 413
    return request_prepare(w, x, model) if rc == RC_OK else rc
