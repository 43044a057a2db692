/* getaddrinfo() of a process under test, put before the C library's by LD_PRELOAD.
 *
 * A host with a file of its name in the directory TEST_NAMES is answered from it: an address a line. While the file says
 * "hang" there is no answer. Each question adds a byte to the file NAME.asked.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*resolver)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static ssize_t answer_of(const char *path, char *text, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;
    if (fd < 0)
        return -1;
    n = read(fd, text, room - 1);
    close(fd);
    text[n < 0 ? 0 : n] = 0;
    return n;
}

static void asked(const char *path) {
    char name[4096];
    int fd;
    snprintf(name, sizeof(name), "%s.asked", path);
    fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0) {
        if (write(fd, "?", 1) < 0)
            abort();
        close(fd);
    }
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    resolver next = (resolver)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *directory = getenv("TEST_NAMES");
    struct addrinfo numeric = *hints;
    struct addrinfo *list = NULL, **end = &list;
    char path[2048], text[8192], *line, *rest;
    if (!directory || !host || strchr(host, '/'))
        return next(host, service, hints, found);
    snprintf(path, sizeof(path), "%s/%s", directory, host);
    if ((hints->ai_flags & AI_NUMERICHOST) || answer_of(path, text, sizeof(text)) < 0)
        return next(host, service, hints, found);
    asked(path);
    while (answer_of(path, text, sizeof(text)) < 0 || strncmp(text, "hang", 4) == 0)
        usleep(10000);
    numeric.ai_flags |= AI_NUMERICHOST;
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (next(line, service, &numeric, end) != 0)
            return EAI_FAIL;
        while (*end)
            end = &(*end)->ai_next;
    }
    *found = list;
    return list ? 0 : EAI_NONAME;
}
