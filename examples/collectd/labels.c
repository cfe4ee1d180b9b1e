/* Labels of groups: any bytes as text that collectd and Prometheus accept.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "labels.h"

#include "table.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Length of the suffix of a cut label: ~ and 16 digits. */
#define HASH_LENGTH 17

/* Returns the length of the character at `text`, bytes; 0 if it is a control character or not valid UTF-8. */
static size_t character_length(const unsigned char *text, size_t length)
{
    static const struct {
        unsigned char first, last, second_first, second_last;
        size_t length;
    } forms[] = {
        /* Table 3-7 of the Unicode standard, without U+0000 to U+001F and U+007F to U+009F. */
        {0x20, 0x7e, 0, 0, 1},       {0xc2, 0xc2, 0xa0, 0xbf, 2}, {0xc3, 0xdf, 0x80, 0xbf, 2},
        {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
        {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4},
        {0xf4, 0xf4, 0x80, 0x8f, 4},
    };

    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        if (text[0] < forms[i].first || text[0] > forms[i].last) {
            continue;
        }
        if (forms[i].length > length ||
            (forms[i].length > 1 && (text[1] < forms[i].second_first || text[1] > forms[i].second_last))) {
            return 0;
        }
        for (size_t k = 2; k < forms[i].length; k++) {
            if (text[k] < 0x80 || text[k] > 0xbf) {
                return 0;
            }
        }
        return forms[i].length;
    }
    return 0;
}

void label_write(char label[LABEL_SIZE], const char *text, size_t length)
{
    const unsigned char *bytes = (const unsigned char *)text;
    size_t used = 0;
    size_t cut = 0; /* Last end of a character that leaves space for the hash. */
    size_t step;

    for (size_t i = 0; i < length; i += step) {
        size_t plain = character_length(bytes + i, length - i);
        /* The first letter distinguishes a group named "other" from LABEL_OTHER. */
        bool is_escaped = plain == 0 || strchr("/%~", bytes[i]) != NULL ||
                          (i == 0 && length == strlen(LABEL_OTHER) && memcmp(text, LABEL_OTHER, length) == 0);
        size_t room = is_escaped ? 3 : plain;

        if (used + room >= LABEL_SIZE) {
            snprintf(label + cut, LABEL_SIZE - cut, "~%016" PRIx64, hash_bytes(HASH_START, text, length));
            return;
        }
        if (is_escaped) {
            snprintf(label + used, LABEL_SIZE - used, "%%%02X", bytes[i]);
        } else {
            memcpy(label + used, bytes + i, plain);
        }
        step = is_escaped ? 1 : plain;
        used += room;
        if (used + HASH_LENGTH < LABEL_SIZE) {
            cut = used;
        }
    }
    label[used] = '\0';
    if (length == 0) {
        strcpy(label, LABEL_UNKNOWN);
    }
}
