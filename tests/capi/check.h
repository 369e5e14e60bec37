/* Tests in C: the first thing that is not as it should be ends the program, and says where. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <vicort.h>

#define CHECK(truth)                                                                                \
    do {                                                                                            \
        if (!(truth)) {                                                                             \
            fprintf(stderr, "%s:%d: not true: %s (%s)\n", __FILE__, __LINE__, #truth, vicort_last_error()); \
            exit(1);                                                                                \
        }                                                                                           \
    } while (0)

#define GIVES(wanted, call)                                                                         \
    do {                                                                                            \
        const int given = (call);                                                                   \
        if (given != (wanted)) {                                                                    \
            fprintf(stderr, "%s:%d: %s gave %d (%s: %s), not %s\n", __FILE__, __LINE__, #call, given, vicort_strerror(given), \
                    vicort_last_error(), #wanted);                                                  \
            exit(1);                                                                                \
        }                                                                                           \
        if (given != VICORT_OK) CHECK(vicort_last_error()[0]);                                      \
    } while (0)

#define OK(call) GIVES(VICORT_OK, call)

static inline vicort_session *open_with(vicort_params params) {
    vicort_session *session = NULL;
    OK(vicort_open(&params, &session));
    CHECK(session);
    return session;
}

#endif
