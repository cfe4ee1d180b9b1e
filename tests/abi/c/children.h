/* Child processes that do one step at a time, as they are told, and do not outlive the program. */
#ifndef CHILDREN_H
#define CHILDREN_H

#include "check.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

struct child {
    pid_t pid;
    int orders, answers;
};

/* In the child: says that the last step is done, and waits for the order to go on. */
static inline void next_step(const struct child *self) {
    char byte = 0;
    if (write(self->answers, &byte, 1) != 1 || read(self->orders, &byte, 1) != 1) {
        _exit(3);
    }
}

/* Forks a child that runs `steps` and exits; returns when it has come to its first `next_step`. */
static inline struct child start_child(void (*steps)(const struct child *self)) {
    int orders[2], answers[2];
    char byte;
    struct child child;
    CHECK(pipe(orders) == 0 && pipe(answers) == 0);
    child.pid = fork();
    CHECK(child.pid >= 0);
    if (child.pid == 0) {
        struct child self = {getpid(), orders[0], answers[1]};
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(orders[1]);
        close(answers[0]);
        steps(&self);
        _exit(0);
    }
    close(orders[0]);
    close(answers[1]);
    child.orders = orders[1];
    child.answers = answers[0];
    CHECK_EQUAL(read(child.answers, &byte, 1), 1);
    return child;
}

/* Lets the child do its next step. */
static inline void release(const struct child *child) {
    char byte = 0;
    CHECK_EQUAL(write(child->orders, &byte, 1), 1);
}

/* Lets the child do its next step, and waits until it is done or has exited. */
static inline void order(const struct child *child) {
    char byte;
    release(child);
    CHECK(read(child->answers, &byte, 1) >= 0);
}

/* Waits for the child's end and returns its exit code. */
static inline int end_of(const struct child *child) {
    int status;
    CHECK_EQUAL(waitpid(child->pid, &status, 0), child->pid);
    close(child->orders);
    close(child->answers);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#endif
