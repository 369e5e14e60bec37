/* forks ENGINE_DIR: a child that is forked while threads push and ask is told so by every function, and can exit. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { SIDE = 112, LENGTH = 3 * SIDE * SIDE };

static uint8_t pixels[LENGTH];
static vicort_session *session;
static atomic_bool over;

static int any(void *user_data, const char *text, size_t length) {
    (void)user_data;
    (void)text;
    (void)length;
    return 0;
}

static void *push(void *unused) {
    (void)unused;
    for (int64_t i = 0; !over; i++) OK(vicort_push_rgb24(session, pixels, LENGTH, SIDE, SIDE, 3 * SIDE, i * 250000));
    return NULL;
}

static void *ask(void *unused) {
    (void)unused;
    while (!over) OK(vicort_ask_stream(session, "what is there now?", any, NULL, NULL));
    return NULL;
}

static void in_child(const vicort_params *params) {
    vicort_session *other;
    vicort_stats stats;
    char text[64];
    alarm(20);
    GIVES(VICORT_E_ENVIRONMENT, vicort_open(params, &other));
    CHECK(strstr(vicort_last_error(), "forked"));
    GIVES(VICORT_E_CLOSED, vicort_push_rgb24(session, pixels, LENGTH, SIDE, SIDE, 3 * SIDE, 1ll << 50));
    GIVES(VICORT_E_CLOSED, vicort_ask(session, "what is there now?", text, sizeof text, NULL, NULL));
    GIVES(VICORT_E_CLOSED, vicort_ask_stream(session, "what is there now?", any, NULL, NULL));
    GIVES(VICORT_E_CLOSED, vicort_get_stats(session, &stats));
    GIVES(VICORT_E_CLOSED, vicort_finish(session));
    GIVES(VICORT_E_CLOSED, vicort_close(session));
    CHECK(strstr(vicort_last_error(), "forked"));
    exit(7); /* with the handlers that run then */
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    pthread_t pusher, asker;
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    params.fps = VICORT_FPS_SOURCE;
    session = open_with(params);
    CHECK(!pthread_create(&pusher, NULL, push, NULL) && !pthread_create(&asker, NULL, ask, NULL));
    for (int i = 0; i < 8; i++) {
        usleep(20000);
        const pid_t child = fork();
        CHECK(child >= 0);
        if (!child) in_child(&params);
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    over = true;
    CHECK(!pthread_join(pusher, NULL) && !pthread_join(asker, NULL));
    OK(vicort_finish(session));
    OK(vicort_close(session));
    puts("8 children");
    return 0;
}
