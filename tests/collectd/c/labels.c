/* Labels of many odd names: what collectd and Prometheus take, and different for different names.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "check.h"

#include "labels.h"

#include <locale.h>
#include <stdbool.h>
#include <string.h>
#include <wchar.h>

#define NAME_LIMIT 600

typedef struct Case {
    char label[LABEL_SIZE];
    size_t length;
    char *name;
} Case;

static Case *cases;
static size_t case_count, case_room;

/* Whether the C library, too, takes the text for characters none of which is a control character. */
static bool is_text(const char *text)
{
    mbstate_t state = {0};
    wchar_t character;
    size_t length;

    for (; (length = mbrtowc(&character, text, MB_CUR_MAX, &state)) != 0; text += length) {
        if (length == (size_t)-1 || length == (size_t)-2) {
            return false;
        }
        if (character < 0x20 || (character >= 0x7f && character < 0xa0) ||
            (character >= 0xd800 && character < 0xe000)) {
            return false;
        }
    }
    return true;
}

static void add(const char *name, size_t length)
{
    Case *added;
    /* A copy of just its size, so that a reader beyond its end is noticed. */
    char *copy = malloc(length > 0 ? length : 1);

    if (case_count == case_room) {
        case_room = case_room == 0 ? 1024 : case_room * 2;
        cases = realloc(cases, case_room * sizeof(*cases));
    }
    CHECK(copy != NULL && cases != NULL);
    memcpy(copy, name, length);
    added = &cases[case_count++];
    added->name = copy;
    added->length = length;
    memset(added->label, 'x', LABEL_SIZE);
    label_write(added->label, copy, length);
    CHECK(memchr(added->label, '\0', LABEL_SIZE) != NULL);
    CHECK(added->label[0] != '\0');
    CHECK(strchr(added->label, '/') == NULL);
    CHECK(strchr(added->label, '~') == NULL || strspn(strchr(added->label, '~') + 1, "0123456789abcdef") == 16);
    CHECK(is_text(added->label));
    CHECK(strcmp(added->label, LABEL_OTHER) != 0);
}

static void add_text(const char *name)
{
    add(name, strlen(name));
}

/* Names of all lengths in which odd bytes stand close together. */
static void add_random(size_t count, size_t longest)
{
    static const char *const parts[] = {
        "/", "%", "~", "a", "0", "F", " ", ".", "-", "\\\"\n", "other", "%unknown", "%2F", "~0123456789abcdef",
        "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\x01", "\x7f", "\xc2\x85", "\xc3", "\xff", "\xe2\x82",
        "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf",
    };
    char name[NAME_LIMIT + 32];

    for (size_t i = 0; i < count; i++) {
        size_t length = 0;
        size_t wanted = random_below(longest + 1);
        while (length < wanted) {
            const char *part = parts[random_below(sizeof(parts) / sizeof(parts[0]))];
            strcpy(name + length, part);
            length += strlen(part);
        }
        /* Maybe within a character. */
        add(name, wanted);
    }
}

/* Long names that differ in one place only, which may be behind the cut. */
static void add_long(const char *part)
{
    char name[NAME_LIMIT];
    size_t step = strlen(part);

    for (size_t length = 0; length + step < NAME_LIMIT; length += step) {
        memcpy(name + length, part, step);
        add(name, length);
        name[length] ^= 1;
        add(name, length + step);
        name[length] ^= 1;
    }
}

static int compare(const void *left, const void *right)
{
    const Case *a = left;
    const Case *b = right;
    int order = strcmp(a->label, b->label);

    if (order == 0 && a->length != b->length) {
        order = a->length < b->length ? -1 : 1;
    }
    return order != 0 ? order : memcmp(a->name, b->name, a->length);
}

int main(void)
{
    size_t first_round;
    size_t different = 1;

    CHECK(setlocale(LC_ALL, "C.UTF-8") != NULL);
    add_text("");
    add_text(LABEL_OTHER);
    add_text(LABEL_UNKNOWN);
    add_text("Other");
    add_text("others");
    add_text("python3[12]");
    CHECK(strcmp(cases[5].label, "python3[12]") == 0);
    for (int first = 0; first < 256; first++) {
        char name[2] = {(char)first};
        add(name, 1);
        for (int second = 0; second < 256; second++) {
            name[1] = (char)second;
            add(name, 2);
        }
    }
    add_random(20000, 8);
    add_random(20000, 140);
    add_random(5000, NAME_LIMIT);
    add_long("a");
    add_long("/");
    add_long("\xc3\xa4");
    add_long("\xe2\x82\xac");
    add_long("\xf0\x9f\x98\x80");
    add_long("other");
    /* Names that look like labels must not get the same ones. */
    first_round = case_count;
    for (size_t i = 0; i < first_round; i++) {
        char label[LABEL_SIZE];
        strcpy(label, cases[i].label);
        add_text(label);
    }

    qsort(cases, case_count, sizeof(*cases), compare);
    for (size_t i = 1; i < case_count; i++) {
        bool is_same = cases[i].length == cases[i - 1].length &&
                       memcmp(cases[i].name, cases[i - 1].name, cases[i].length) == 0;
        CHECK((strcmp(cases[i].label, cases[i - 1].label) == 0) == is_same);
        different += !is_same;
    }
    printf("%zu names, %zu different ones\n", case_count, different);
    for (size_t i = 0; i < case_count; i++) {
        free(cases[i].name);
    }
    free(cases);
    return 0;
}
