/* fibers: several engines in one thread, each on a stack of its own, of which one goes on at a time.
 *
 * Who goes on changes at each system call and at each word that threads share (the atomics of sys.pxi), where the world says so
 * (fleet.pxi). With a seed that is deterministic; what it cannot show is a word read too early by a real processor, which
 * ThreadSanitizer is for.
 */
#ifndef LLMPIPE_FIBERS_H
#define LLMPIPE_FIBERS_H

#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { FIBER_STACK = 256 * 1024 };

struct fiber {
    ucontext_t context;
    void *stack;
};

/* `run` may not return: it switches back for good. */
static inline int fiber_make(struct fiber *fiber, void (*run)(void)) {
    memset(fiber, 0, sizeof(*fiber));
    fiber->stack = (malloc)(FIBER_STACK);
    if (!fiber->stack || getcontext(&fiber->context) != 0)
        return -1;
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = FIBER_STACK;
    makecontext(&fiber->context, run, 0);
    return 0;
}

static inline void fiber_switch(struct fiber *from, struct fiber *to) { swapcontext(&from->context, &to->context); }

static inline void fiber_free(struct fiber *fiber) {
    (free)(fiber->stack);
    fiber->stack = NULL;
}

#endif
