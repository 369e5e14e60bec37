/* leave ENGINE_DIR: main returns while a session is open and at work, and another thread pushes. */
#include <pthread.h>

#include "check.h"

static uint8_t pixels[320 * 180 * 3];

static void *push(void *session) {
    for (int i = 1; vicort_push_rgb24(session, pixels, sizeof pixels, 320, 180, 960, i * 40000ll) == VICORT_OK; i++) continue;
    return NULL;
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    params.fps = VICORT_FPS_SOURCE;
    vicort_session *session = open_with(params);
    pthread_t pusher;
    CHECK(!pthread_create(&pusher, NULL, push, session));
    vicort_stats stats;
    do OK(vicort_get_stats(session, &stats));
    while (stats.chunks < 4);
    return 0;
}
