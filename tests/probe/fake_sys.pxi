# fake_sys: the engine's declarations on a simulated kernel; see kernel.h. It declares nothing twice.

cdef extern from "kernel.h" nogil:
    pass

include "_pipe/sys.pxi"
