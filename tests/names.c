/* A preloaded library that knows names which no name server does.
 *
 * The file that LLMPIPE_TEST_NAMES names has lines of a name and its addresses, in the order of the answer; it is read again at each
 * look-up, so that names move while a process runs. Names that it does not have are the C library's business. For glibc, whose
 * freeaddrinfo frees each link of an answer by itself: an answer here is a chain of the C library's own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    look_up *next = (look_up *)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *path = getenv("LLMPIPE_TEST_NAMES");
    FILE *file = path && node ? fopen(path, "re") : NULL;
    struct addrinfo **end = result;
    int error = EAI_NONAME;
    char line[1024];

    if (!file)
        return next(node, service, hints, result);
    *result = NULL;
    while (fgets(line, sizeof line, file)) {
        char *rest = NULL;
        char *word = strtok_r(line, " \n", &rest);
        if (!word || strcmp(word, node) != 0)
            continue;
        while ((word = strtok_r(NULL, " \n", &rest))) {
            error = next(word, service, hints, end);
            if (error)
                break;
            while (*end)
                end = &(*end)->ai_next;
        }
        fclose(file);
        if (error && *result) {
            freeaddrinfo(*result);
            *result = NULL;
        }
        return error;
    }
    fclose(file);
    return next(node, service, hints, result);
}
