/* Labels of groups: any bytes as text that collectd and Prometheus accept, different for different bytes.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_LABELS_H
#define CAPTURE_LABELS_H

#include <stddef.h>

/* Size of a label with its NUL, the limit of collectd. */
#define LABEL_SIZE 128

/* Label of the groups without their own series. No other label is equal to it. */
#define LABEL_OTHER "other"

/* Label of an empty text, for which collectd would omit the label: processes that ended before their identity was
 * read. In other labels two hexadecimal digits follow each %. */
#define LABEL_UNKNOWN "%unknown"

/* Writes the label of `length` bytes of text: valid UTF-8 without control characters, slashes and NUL, never empty.
 * Other bytes become %XX, and so do % and ~. A label too long is cut, and ends in ~ and a hash of the whole. */
void label_write(char label[LABEL_SIZE], const char *text, size_t length);

#endif
