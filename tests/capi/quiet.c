/* quiet ENGINE_DIR: one answer; prints how many children the process had, and whether a signal has a new handler. */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include "check.h"

static volatile sig_atomic_t children;

static void count_child(int number) {
    (void)number;
    children++;
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    CHECK(signal(SIGCHLD, count_child) != SIG_ERR);
    static uint8_t pixels[112 * 112 * 3];
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1][0] ? arguments[1] : NULL;
    vicort_session *session = open_with(params);
    for (int i = 0; i < 4; i++) OK(vicort_push_rgb24(session, pixels, sizeof pixels, 112, 112, 336, i * 500000ll));
    char text[256];
    vicort_answer answer;
    OK(vicort_ask(session, "what is there now?", text, sizeof text, NULL, &answer));
    OK(vicort_close(session));
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    CHECK(signal(SIGCHLD, SIG_DFL) == count_child);
    printf("%d children\n", (int)children);
    return 0;
}
