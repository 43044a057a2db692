# fake_sys: the engine's declarations on a simulated kernel; see kernel.h. It declares nothing twice.

cdef extern from "kernel.h" nogil:
    enum:
        SIM_BUF_GET
        SIM_SLAB_GET
    bint sim_denied(int call)

include "_pipe/sys.pxi"
