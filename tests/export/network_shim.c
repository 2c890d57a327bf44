/* Preloaded: refuses every name look-up and every connection, and appends each to $NETWORK_LOG. */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *call, const char *what) {
    const char *path = getenv("NETWORK_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%s %s\n", call, what ? what : "");
        fclose(file);
    }
}

static int leaves_the_machine(const struct sockaddr *address) {
    return address && (address->sa_family == AF_INET || address->sa_family == AF_INET6);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    note("getaddrinfo", name);
    return EAI_NONAME;
}

struct hostent *gethostbyname(const char *name) {
    note("gethostbyname", name);
    return NULL;
}

int gethostbyname_r(const char *name, struct hostent *entry, char *buffer, size_t size,
                    struct hostent **found, int *error) {
    note("gethostbyname_r", name);
    *found = NULL;
    return ENOENT;
}

extern int __connect(int, const struct sockaddr *, socklen_t);

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    if (leaves_the_machine(address)) {
        note("connect", "");
        errno = ECONNREFUSED;
        return -1;
    }
    return __connect(socket, address, length);
}
