/* What every test program shares: checks that say where they failed, and scenarios chosen by name. A program writes
 * nothing unless a check fails, so that whatever else is written was written by the library. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* What a program exits with when the machine does not allow its test. */
#define LEFT_OUT 77

/* How long any condition is waited for, seconds. */
#define TIMEOUT 30

#define CHECK(...)                                                                                       \
    do {                                                                                                 \
        if (!(__VA_ARGS__)) {                                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #__VA_ARGS__);                  \
            _exit(1);                                                                                    \
        }                                                                                                \
    } while (0)

#define CHECK_EQUAL(left, right)                                                                         \
    do {                                                                                                 \
        long long left_ = (long long)(left), right_ = (long long)(right);                                \
        if (left_ != right_) {                                                                           \
            fprintf(stderr, "%s:%d: %s is %lld, %s is %lld\n", __FILE__, __LINE__, #left, left_, #right, \
                    right_);                                                                             \
            _exit(1);                                                                                    \
        }                                                                                                \
    } while (0)

/* The difference may be as large as `slack`. */
#define CHECK_NEAR(left, right, slack)                                                                   \
    do {                                                                                                 \
        double near_ = (double)(left) - (double)(right);                                                 \
        if (near_ > (double)(slack) || -near_ > (double)(slack)) {                                       \
            fprintf(stderr, "%s:%d: %s is %f, %s is %f\n", __FILE__, __LINE__, #left, (double)(left),    \
                    #right, (double)(right));                                                            \
            _exit(1);                                                                                    \
        }                                                                                                \
    } while (0)

#define CHECK_TEXT(text, wanted)                                                                         \
    do {                                                                                                 \
        if (strcmp((text), (wanted)) != 0) {                                                             \
            fprintf(stderr, "%s:%d: \"%s\" is not \"%s\"\n", __FILE__, __LINE__, (text), (wanted));      \
            _exit(1);                                                                                    \
        }                                                                                                \
    } while (0)

#define CHECK_HOLDS(text, wanted)                                                                        \
    do {                                                                                                 \
        if (strstr((text), (wanted)) == NULL) {                                                          \
            fprintf(stderr, "%s:%d: \"%s\" does not hold \"%s\"\n", __FILE__, __LINE__, (text),          \
                    (wanted));                                                                           \
            _exit(1);                                                                                    \
        }                                                                                                \
    } while (0)

struct scenario {
    const char *name;
    void (*run)(void);
};

/* The arguments behind the scenario's name. */
static char **arguments;

static inline void nap(int milliseconds) {
    struct timespec time;
    time.tv_sec = milliseconds / 1000;
    time.tv_nsec = (milliseconds % 1000) * 1000000L;
    nanosleep(&time, NULL);
}

static inline double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Waits a little for something to happen, but fails when `began` is too long ago. */
#define WAIT_SINCE(began)                                                                                \
    do {                                                                                                 \
        CHECK(now() - (began) < TIMEOUT);                                                               \
        nap(10);                                                                                         \
    } while (0)

static inline int run_scenario(const struct scenario *all, size_t count, int argc, char **argv) {
    if (argc > 1) {
        for (size_t i = 0; i < count; i++) {
            if (strcmp(all[i].name, argv[1]) == 0) {
                arguments = argv + 2;
                all[i].run();
                return 0;
            }
        }
    }
    fprintf(stderr, "no such scenario\n");
    return 2;
}

#define SCENARIOS(...)                                                                                   \
    int main(int argc, char **argv) {                                                                    \
        static const struct scenario all[] = {__VA_ARGS__};                                              \
        return run_scenario(all, sizeof all / sizeof all[0], argc, argv);                                \
    }

#endif
