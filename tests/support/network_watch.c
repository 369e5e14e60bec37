/* Preloaded: every step towards another host, and every child, of this process and of its children is a line in the file
 * $WATCHED. Addresses of other hosts are refused. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *detail) {
    const char *path = getenv("WATCHED");
    const int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (file < 0) return;
    char line[512];
    const int length = snprintf(line, sizeof line, "%s %s\n", what, detail ? detail : "");
    if (write(file, line, (size_t)length < sizeof line ? (size_t)length : sizeof line) < 0) abort();
    close(file);
}

static int is_internet(int family) { return family == AF_INET || family == AF_INET6; }

int socket(int family, int type, int protocol) {
    static int (*real)(int, int, int);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "socket");
    if (is_internet(family)) note("socket", family == AF_INET ? "IPv4" : "IPv6");
    return real(family, type, protocol);
}

int connect(int file, const struct sockaddr *address, socklen_t length) {
    static int (*real)(int, const struct sockaddr *, socklen_t);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "connect");
    if (!is_internet(address->sa_family)) return real(file, address, length);
    char text[INET6_ADDRSTRLEN] = "";
    const void *place = address->sa_family == AF_INET ? (const void *)&((const struct sockaddr_in *)address)->sin_addr
                                                      : (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr;
    inet_ntop(address->sa_family, place, text, sizeof text);
    note("connect", text);
    errno = ENETUNREACH;
    return -1;
}

ssize_t sendto(int file, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "sendto");
    if (address && is_internet(address->sa_family)) note("sendto", "");
    return real(file, data, size, flags, address, length);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    (void)service, (void)hints, (void)result;
    note("lookup", node);
    return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name) {
    note("lookup", name);
    return NULL;
}

pid_t fork(void) {
    static pid_t (*real)(void);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "fork");
    note("fork", "");
    return real();
}
