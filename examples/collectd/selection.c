/* Selection of the delivered processes, by user, name and id.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "selection.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Returns the expression between slashes, or NULL if the text is a glob. The caller frees it. */
static char *expression_of(const char *text)
{
    size_t length = strlen(text);

    return length >= 2 && text[0] == '/' && text[length - 1] == '/' ? strndup(text + 1, length - 2) : NULL;
}

bool patterns_add(Patterns *patterns, const char *text, char *error, size_t error_size)
{
    Pattern *items = realloc(patterns->items, (patterns->count + 1) * sizeof(*items));
    char *expression = expression_of(text);
    Pattern *added;
    int code = 0;

    if (items == NULL) {
        snprintf(error, error_size, "out of memory");
        free(expression);
        return false;
    }
    patterns->items = items;
    added = &items[patterns->count];
    *added = (Pattern){.glob = expression == NULL ? strdup(text) : NULL};
    if (expression != NULL) {
        code = regcomp(&added->expression, expression, REG_EXTENDED | REG_NOSUB);
        free(expression);
    } else if (added->glob == NULL) {
        snprintf(error, error_size, "out of memory");
        return false;
    }
    if (code != 0) {
        size_t length = (size_t)snprintf(error, error_size, "is not a regular expression: ");
        regerror(code, &added->expression, error + length, error_size - length);
        return false;
    }
    patterns->count++;
    return true;
}

bool selection_add_pid(Selection *selection, pid_t pid)
{
    pid_t *pids = realloc(selection->pids, (selection->pid_count + 1) * sizeof(*pids));

    if (pids == NULL) {
        return false;
    }
    selection->pids = pids;
    pids[selection->pid_count++] = pid;
    return true;
}

static bool patterns_match(const Patterns *patterns, const char *text)
{
    for (size_t i = 0; i < patterns->count; i++) {
        const Pattern *pattern = &patterns->items[i];
        if (pattern->glob != NULL ? fnmatch(pattern->glob, text, 0) == 0
                                  : regexec(&pattern->expression, text, 0, NULL, 0) == 0) {
            return true;
        }
    }
    return patterns->count == 0;
}

bool selection_matches(const Selection *selection, const CaptureProcess *process)
{
    bool has_pid = selection->pid_count == 0;

    for (size_t i = 0; i < selection->pid_count && !has_pid; i++) {
        has_pid = selection->pids[i] == process->pid;
    }
    return has_pid && patterns_match(&selection->users, process->user) &&
           patterns_match(&selection->names, process->name);
}

static void patterns_clear(Patterns *patterns)
{
    for (size_t i = 0; i < patterns->count; i++) {
        if (patterns->items[i].glob != NULL) {
            free(patterns->items[i].glob);
        } else {
            regfree(&patterns->items[i].expression);
        }
    }
    free(patterns->items);
}

void selection_clear(Selection *selection)
{
    patterns_clear(&selection->users);
    patterns_clear(&selection->names);
    free(selection->pids);
    *selection = (Selection){0};
}
