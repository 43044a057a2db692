# request_id: the name of an exchange, where its client gives it none.

cdef void request_id_make(WorkerC *w, ExchangeC *x) noexcept nogil:
    # 32 hexadecimal digits: unique, not secret.
    cdef uint64_t digits = worker_random(w)
    x.request_id_length = 32
    text_digits(x.request_id, digits, 16)
    text_digits(x.request_id + 16, digits * 3 ^ w.random[0], 16)
