/* push ENGINE_DIR REFUSED TAKEN WIDTH HEIGHT: what a push costs from C, a line of JSON. benchmarks/capi.py does the same from Python. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <vicort.h>

enum { WARM_UP = 160 }; /* pushes that are not counted */

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void check(int status) {
    if (status == VICORT_OK) return;
    fprintf(stderr, "push: %s\n", vicort_last_error());
    exit(1);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct Pushed {
    double median_us, whole_us; /* of a call; of the stream until all is placed, a frame */
} Pushed;

/* `count` pushes, `step_us` apart in stream time. */
static Pushed push(const char *engine_dir, double fps, int count, int64_t step_us, int width, int height) {
    const size_t length = (size_t)width * height * 3;
    uint8_t *pixels = calloc(length, 1);
    double *calls = malloc(sizeof *calls * count);
    if (!pixels || !calls) exit(1);
    vicort_params params = vicort_params_default();
    vicort_session *session;
    params.engine_dir = engine_dir;
    params.fps = fps;
    check(vicort_open(&params, &session));
    double first = 0;
    for (int i = -WARM_UP; i < count; i++) {
        const double began = now_us();
        if (i == 0) first = began;
        check(vicort_push_rgb24(session, pixels, length, width, height, 3 * (size_t)width, (i + WARM_UP) * step_us));
        if (i >= 0) calls[i] = now_us() - began;
    }
    check(vicort_finish(session));
    const double whole = now_us() - first;
    check(vicort_close(session));
    qsort(calls, count, sizeof *calls, by_value);
    const Pushed pushed = {calls[count / 2], whole / count};
    free(calls);
    free(pixels);
    return pushed;
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    const int width = atoi(arguments[4]), height = atoi(arguments[5]);
    const Pushed refused = push(arguments[1], VICORT_FPS_MODEL, atoi(arguments[2]), 1, width, height);
    const Pushed taken = push(arguments[1], VICORT_FPS_SOURCE, atoi(arguments[3]), 40000, width, height);
    printf("{\"refused_call_us\": %.3f, \"taken_call_us\": %.3f, \"taken_frame_us\": %.3f}\n", refused.median_us, taken.median_us,
           taken.whole_us);
    return 0;
}
