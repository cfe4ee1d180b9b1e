/* Savefiles made by hand, see pcap-savefile(5): whole ones, cut ones, and noise. */
#ifndef SAVEFILES_H
#define SAVEFILES_H

#include "check.h"
#include <stdint.h>

/* Bytes of payload of every packet, and with its headers. */
#define SAVED_PAYLOAD 100
#define SAVED_PACKET (14 + 20 + 8 + SAVED_PAYLOAD)

/* Seconds since the Unix epoch at which the first packet was captured. */
#define SAVED_TIME 1000000000

/* The ends of the packets: 10.1.2.3, port 1001, and 10.1.2.4, port 2002. */
#define SAVED_SOURCE "10.1.2.3"

/* Writes UDP datagrams in Ethernet frames, of which the first `length` bytes of the file are kept. */
static inline void write_savefile(const char *path, uint32_t link, int packets, size_t length) {
    static const unsigned char headers[42] = {
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,
        0x45, 0, 0, 20 + 8 + SAVED_PAYLOAD, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 2, 3, 10, 1, 2, 4,
        1001 >> 8, 1001 & 255, 2002 >> 8, 2002 & 255, 0, 8 + SAVED_PAYLOAD, 0, 0,
    };
    /* Microseconds in the byte order of this machine, version 2.4. */
    const uint32_t file_header[6] = {0xa1b2c3d4, 4 << 16 | 2, 0, 0, 65535, link};
    unsigned char bytes[8192];
    size_t used = sizeof file_header;
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    CHECK(used + (size_t)packets * (16 + SAVED_PACKET) <= sizeof bytes);
    memcpy(bytes, file_header, used);
    for (int i = 0; i < packets; i++) {
        const uint32_t packet_header[4] = {SAVED_TIME + (uint32_t)i, 0, SAVED_PACKET, SAVED_PACKET};
        memcpy(bytes + used, packet_header, 16);
        memcpy(bytes + used + 16, headers, sizeof headers);
        memset(bytes + used + 16 + sizeof headers, i, SAVED_PAYLOAD);
        used += 16 + SAVED_PACKET;
    }
    length = length < used ? length : used;
    CHECK_EQUAL(fwrite(bytes, 1, length, file), length);
    CHECK(fclose(file) == 0);
}

/* Writes bytes without meaning, the same every time. */
static inline void write_noise(const char *path, size_t length) {
    uint32_t state = 12345;
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    for (size_t i = 0; i < length; i++) {
        state = state * 1664525 + 1013904223;
        fputc((int)(state >> 24), file);
    }
    CHECK(fclose(file) == 0);
}

#endif
