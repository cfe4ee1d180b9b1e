/* Labels of groups: any bytes as text that collectd and Prometheus take, different for different bytes.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_LABELS_H
#define CAPTURE_LABELS_H

#include <stddef.h>

/* Room for a label with its NUL: what collectd has for one. */
#define LABEL_SIZE 128

/* The label of what belongs to no group of its own. No other label is the same. */
#define LABEL_OTHER "other"

/* The label of an empty text, of which collectd would make none: that of processes which ended before anyone could ask
 * them who they are. In other labels two hexadecimal digits follow each %. */
#define LABEL_UNKNOWN "%unknown"

/* Writes the label of `length` bytes of text: valid UTF-8 without control characters, slashes and NUL, never empty.
 * Other bytes become %XX, and so do % and ~. A label too long is cut, and ends in ~ and a hash of the whole. */
void label_write(char label[LABEL_SIZE], const char *text, size_t length);

#endif
