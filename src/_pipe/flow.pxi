# flow: which streams wait for their backend alone (rule L3).

cdef inline void exchange_flow(WorkerC *w, ExchangeC *x, bint flows) noexcept nogil:
    # Whether it is the backend alone that keeps an event stream waiting, from now on: how many there are says whether a silent
    # backend hangs (rule L3).
    if x.flows != flows:
        x.flows = flows
        sys_add_counter(&w.stats.backends[x.backend].flowing, 1 if flows else <uint64_t>-1)
