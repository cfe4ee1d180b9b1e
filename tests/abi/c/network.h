/* A network of the program's own, where nobody else sends anything, and sockets on its loopback device. */
#ifndef NETWORK_H
#define NETWORK_H

#include "check.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Bytes in front of the payload of a UDP datagram on the loopback device: link, IP and UDP header. */
#define HEADERS_V4 (14 + 20 + 8)
#define HEADERS_V6 (14 + 40 + 8)

/* Moves this process to a new network namespace with a loopback device that is up. */
static inline void own_network(void) {
    struct ifreq request;
    int control;
    if (unshare(CLONE_NEWNET) != 0) {
        fprintf(stderr, "a network of its own is not permitted: %s\n", strerror(errno));
        exit(LEFT_OUT);
    }
    control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(control >= 0);
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo");
    CHECK(ioctl(control, SIOCGIFFLAGS, &request) == 0);
    request.ifr_flags |= IFF_UP;
    CHECK(ioctl(control, SIOCSIFFLAGS, &request) == 0);
    close(control);
}

/* A socket bound to a free port of the loopback address. */
static inline int bound(int family, int type, uint16_t *port) {
    struct sockaddr_storage address;
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
    socklen_t length = family == AF_INET ? sizeof *v4 : sizeof *v6;
    int made = socket(family, type | SOCK_CLOEXEC, 0);
    CHECK(made >= 0);
    memset(&address, 0, sizeof address);
    address.ss_family = (sa_family_t)family;
    if (family == AF_INET) {
        v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else {
        v6->sin6_addr = in6addr_loopback;
    }
    CHECK(bind(made, (struct sockaddr *)&address, length) == 0);
    CHECK(getsockname(made, (struct sockaddr *)&address, &length) == 0);
    *port = ntohs(family == AF_INET ? v4->sin_port : v6->sin6_port);
    return made;
}

static inline void connect_to(int from, int family, uint16_t port) {
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    memset(&v4, 0, sizeof v4);
    memset(&v6, 0, sizeof v6);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    v6.sin6_addr = in6addr_loopback;
    CHECK((family == AF_INET ? connect(from, (struct sockaddr *)&v4, sizeof v4)
                             : connect(from, (struct sockaddr *)&v6, sizeof v6)) == 0);
}

/* Two sockets that are connected to each other on the loopback device. */
struct pair {
    int sender, receiver;
    uint16_t sender_port, receiver_port;
};

static inline struct pair connected(int family) {
    struct pair pair;
    pair.sender = bound(family, SOCK_DGRAM, &pair.sender_port);
    pair.receiver = bound(family, SOCK_DGRAM, &pair.receiver_port);
    connect_to(pair.sender, family, pair.receiver_port);
    connect_to(pair.receiver, family, pair.sender_port);
    return pair;
}

/* The byte at a place of the datagram with a number. */
static inline unsigned char pattern(int number, size_t place) {
    return (unsigned char)(number * 31 + (int)place * 7 + 1);
}

/* Sends a datagram that is filled with its pattern, and takes it in at the other end. */
static inline void send_datagram(const struct pair *pair, int number, size_t size) {
    unsigned char bytes[4096];
    CHECK(size <= sizeof bytes);
    for (size_t i = 0; i < size; i++) {
        bytes[i] = pattern(number, i);
    }
    CHECK_EQUAL(send(pair->sender, bytes, size, 0), size);
    CHECK_EQUAL(recv(pair->receiver, bytes, sizeof bytes, 0), size);
}

static inline void close_pair(const struct pair *pair) {
    close(pair->sender);
    close(pair->receiver);
}

#endif
