/* Where an option stands in collectd's configuration: reads the files as collectd does, in the same order.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "place.h"

#include <dirent.h>
#include <fnmatch.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wordexp.h>

/* How deep files include each other, as in collectd. */
#define DEPTH_LIMIT 8

/* Room for a word: keys are short, and files have paths. */
#define WORD_SIZE 4096

typedef struct Search {
    const Sought *sought;
    bool is_loaded;
    size_t blocks;      /* Of the plugin, begun so far. */
    size_t occurrences; /* Of the key, in the block that is sought. */
    char *place;
    size_t size;
} Search;

/* A file's text, up to a NUL, and how far it was read. */
typedef struct Text {
    const char *at;
    size_t line;
} Text;

typedef enum Kind { KIND_OPTION, KIND_BEGIN, KIND_END, KIND_NONE } Kind;

/* One line: an option, or the begin or end of a block. */
typedef struct Statement {
    Kind kind;
    size_t line;
    char key[WORD_SIZE], value[WORD_SIZE]; /* The value is the first one. */
} Statement;

static bool find_in(Search *search, const char *path, const char *pattern, int depth);

/* Reads a word, in quotes or not, as much of it as there is room for. */
static void read_word(Text *text, char word[WORD_SIZE])
{
    bool is_quoted = *text->at == '"';
    size_t length = 0;

    text->at += is_quoted;
    while (*text->at != '\0' && (is_quoted ? *text->at != '"' : strchr(" \t\b\r\n<>\"#\\", *text->at) == NULL)) {
        if (is_quoted && *text->at == '\\' && text->at[1] != '\0') {
            text->at++;
        }
        text->line += *text->at == '\n';
        if (length + 1 < WORD_SIZE) {
            word[length++] = *text->at;
        }
        text->at++;
    }
    text->at += is_quoted && *text->at == '"';
    word[length] = '\0';
}

/* Reads up to the end of the line, which a backslash continues. False at the end of the text. */
static bool read_statement(Text *text, Statement *statement)
{
    size_t words = 0;
    char rest[WORD_SIZE];

    statement->kind = KIND_NONE;
    statement->key[0] = statement->value[0] = '\0';
    for (;;) {
        text->at += strspn(text->at, " \t\b\r>");
        if (*text->at == '\0') {
            return statement->kind != KIND_NONE;
        }
        if (*text->at == '\n') {
            text->at++;
            text->line++;
            if (statement->kind != KIND_NONE) {
                return true;
            }
        } else if (*text->at == '#') {
            text->at += strcspn(text->at, "\n");
        } else if (*text->at == '\\') {
            text->at++;
            if (text->at[strspn(text->at, "\r")] == '\n') {
                text->at += strspn(text->at, "\r") + 1;
                text->line++;
            }
        } else if (*text->at == '<') {
            text->at++;
            statement->kind = *text->at == '/' ? KIND_END : KIND_BEGIN;
            statement->line = text->line;
            text->at += *text->at == '/';
        } else {
            if (statement->kind == KIND_NONE) {
                statement->kind = KIND_OPTION;
                statement->line = text->line;
            }
            read_word(text, words == 0 ? statement->key : words == 1 ? statement->value : rest);
            words++;
        }
    }
}

/* Passes over what a block holds, and keeps the value of its option `key`. */
static void skip_block(Text *text, const char *key, char value[WORD_SIZE])
{
    Statement *statement = malloc(sizeof(*statement));

    for (size_t depth = 1; statement != NULL && depth > 0 && read_statement(text, statement);) {
        depth += statement->kind == KIND_BEGIN;
        depth -= statement->kind == KIND_END;
        if (depth == 1 && key != NULL && statement->kind == KIND_OPTION && strcasecmp(statement->key, key) == 0) {
            strcpy(value, statement->value);
        }
    }
    free(statement);
}

/* Looks through a block of the plugin. */
static bool find_in_block(Search *search, Text *text, const char *path, Statement *statement)
{
    while (read_statement(text, statement) && statement->kind != KIND_END) {
        if (search->blocks == search->sought->block + 1 && strcasecmp(statement->key, search->sought->key) == 0 &&
            search->occurrences++ == search->sought->occurrence) {
            snprintf(search->place, search->size, "%s:%zu", path, statement->line);
            return true;
        }
        if (statement->kind == KIND_BEGIN) {
            skip_block(text, NULL, NULL);
        }
    }
    return false;
}

static bool find_in_text(Search *search, Text *text, const char *path, Statement *statement, int depth)
{
    char pattern[WORD_SIZE];

    while (read_statement(text, statement)) {
        bool is_block = statement->kind == KIND_BEGIN;
        bool is_ours = strcasecmp(statement->value, search->sought->plugin) == 0;

        if (strcasecmp(statement->key, "Include") == 0) {
            pattern[0] = '\0';
            if (is_block) {
                skip_block(text, "Filter", pattern);
            }
            if (find_in(search, statement->value, pattern[0] != '\0' ? pattern : NULL, depth + 1)) {
                return true;
            }
        } else if (strcasecmp(statement->key, "Plugin") == 0 && is_ours && search->is_loaded) {
            search->blocks++;
            if (is_block && find_in_block(search, text, path, statement)) {
                return true;
            }
        } else {
            search->is_loaded |= is_ours && strcasecmp(statement->key, "LoadPlugin") == 0;
            if (is_block) {
                skip_block(text, NULL, NULL);
            }
        }
    }
    return false;
}

static bool find_in_file(Search *search, const char *path, const char *pattern, int depth)
{
    char *name = strdup(path);
    Statement *statement = malloc(sizeof(*statement));
    FILE *file = fopen(path, "re");
    char *content = NULL;
    size_t size = 0;
    bool is_found = false;

    if (name != NULL && statement != NULL && file != NULL &&
        (pattern == NULL || fnmatch(pattern, basename(name), 0) == 0) && getdelim(&content, &size, '\0', file) > 0) {
        Text text = {content, 1};
        is_found = find_in_text(search, &text, path, statement, depth);
    }
    free(content);
    if (file != NULL) {
        fclose(file);
    }
    free(statement);
    free(name);
    return is_found;
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int compare_names(const struct dirent **left, const struct dirent **right)
{
    return strcmp((*left)->d_name, (*right)->d_name);
}

static bool find_in_directory(Search *search, const char *path, const char *pattern, int depth)
{
    struct dirent **entries;
    int count = scandir(path, &entries, is_visible, compare_names);
    bool is_found = false;

    for (int i = 0; i < count; i++) {
        char *name = NULL;
        if (!is_found && asprintf(&name, "%s/%s", path, entries[i]->d_name) >= 0) {
            is_found = find_in(search, name, pattern, depth);
            free(name);
        }
        free(entries[i]);
    }
    if (count >= 0) {
        free(entries);
    }
    return is_found;
}

static int compare_words(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* Looks through the files that `path` stands for, which may be a pattern or a directory. */
static bool find_in(Search *search, const char *path, const char *pattern, int depth)
{
    wordexp_t words;
    bool is_found = false;

    if (depth >= DEPTH_LIMIT || wordexp(path, &words, WRDE_NOCMD) != 0) {
        return false;
    }
    qsort(words.we_wordv, words.we_wordc, sizeof(*words.we_wordv), compare_words);
    for (size_t i = 0; i < words.we_wordc && !is_found; i++) {
        struct stat status;
        if (stat(words.we_wordv[i], &status) != 0) {
            continue;
        }
        is_found = S_ISDIR(status.st_mode) ? find_in_directory(search, words.we_wordv[i], pattern, depth)
                                           : find_in_file(search, words.we_wordv[i], pattern, depth);
    }
    wordfree(&words);
    return is_found;
}

bool place_find(char *place, size_t size, const char *main_file, bool is_loaded, const Sought *sought)
{
    Search search = {.sought = sought, .is_loaded = is_loaded, .place = place, .size = size};

    return find_in(&search, main_file, NULL, 0);
}

char *place_main_file(const char *fallback)
{
    FILE *file = fopen("/proc/self/cmdline", "re");
    char **arguments = NULL;
    int count = 0;
    const char *named = fallback;
    char *copy;

    for (;;) {
        char **more = realloc(arguments, ((size_t)count + 1) * sizeof(*more));
        size_t size = 0;
        if (more == NULL) {
            break;
        }
        arguments = more;
        arguments[count] = NULL;
        if (file == NULL || getdelim(&arguments[count], &size, '\0', file) < 0) {
            free(arguments[count]);
            arguments[count] = NULL;
            break;
        }
        count++;
    }
    if (file != NULL) {
        fclose(file);
    }
    /* As collectd reads them; 0 has getopt begin anew. */
    optind = 0;
    opterr = 0;
    for (int option; count > 0 && (option = getopt(count, arguments, "BhtTP:C:f")) != -1;) {
        if (option == 'C') {
            named = optarg;
        }
    }
    copy = strdup(named);
    while (count > 0) {
        free(arguments[--count]);
    }
    free(arguments);
    return copy;
}
