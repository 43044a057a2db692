# request_id: the name of an exchange, where its client gives it none.

cdef uint64_t worker_random(WorkerC *w) noexcept nogil:
    # The next number of a xorshift128+ generator (Vigna, 2017) with a seed from the system: not secret.
    cdef uint64_t a = w.random[0]
    cdef uint64_t b = w.random[1]
    w.random[0] = b
    a ^= a << 23
    w.random[1] = a ^ b ^ (a >> 18) ^ (b >> 5)
    return w.random[1] + b

cdef void request_id_make(WorkerC *w, ExchangeC *x) noexcept nogil:
    # 32 hexadecimal digits: unique, not secret.
    cdef uint64_t digits = worker_random(w)
    x.request_id_length = 32
    text_digits(x.request_id, digits, 16)
    text_digits(x.request_id + 16, digits * 3 ^ w.random[0], 16)
