/* threads ENGINE_DIR PUSHES: four threads push and four ask, on one session; then they do so while it is closed under them. */
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"

enum { THREADS = 4, WIDTH = 64, HEIGHT = 48 };

static vicort_session *session;
static atomic_llong clock_us;
static atomic_int pushed, late, asked, closed, pieces;
static atomic_bool pushers_are_done;
static int pushes;

static int count_piece(void *user_data, const char *text, size_t length) {
    CHECK(text[length] == 0 && strlen(text) == length);
    vicort_stats stats;
    const int status = vicort_get_stats(session, &stats); /* any function may be called from here */
    CHECK(status == VICORT_OK || status == VICORT_E_CLOSED);
    ++*(int *)user_data;
    pieces++;
    return 0;
}

static void *push(void *unused) {
    (void)unused;
    uint8_t *pixels = malloc(3 * WIDTH * HEIGHT);
    CHECK(pixels);
    for (int i = 0; i < pushes; i++) {
        memset(pixels, i, 3 * WIDTH * HEIGHT);
        const int64_t at = atomic_fetch_add(&clock_us, 40000);
        const int status = vicort_push_rgb24(session, pixels, 3 * WIDTH * HEIGHT, WIDTH, HEIGHT, 3 * WIDTH, at);
        CHECK(status == VICORT_OK || status == VICORT_E_TIME || status == VICORT_E_CLOSED);
        (status == VICORT_OK ? pushed++ : status == VICORT_E_TIME ? late++ : closed++);
        memset(pixels, 0, 3 * WIDTH * HEIGHT); /* it is the caller's again */
    }
    free(pixels);
    return NULL;
}

static void *ask(void *unused) {
    (void)unused;
    do {
        int heard = 0;
        vicort_answer answer;
        const int status = vicort_ask_stream(session, "what is there now?", count_piece, &heard, &answer);
        CHECK(status == VICORT_OK || status == VICORT_E_CLOSED);
        if (status == VICORT_E_CLOSED) {
            closed++;
            return NULL;
        }
        CHECK(answer.seen_until_us <= answer.at_us && (answer.tokens == 0 || heard > 0));
        asked++;
    } while (!pushers_are_done);
    return NULL;
}

static void run(vicort_params params, int close_after_ms) {
    pthread_t pushers[THREADS], askers[THREADS];
    session = open_with(params);
    atomic_store(&pushers_are_done, 0);
    atomic_store(&clock_us, 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK(!pthread_create(&pushers[i], NULL, push, NULL));
        CHECK(!pthread_create(&askers[i], NULL, ask, NULL));
    }
    if (close_after_ms) {
        const struct timespec pause = {0, close_after_ms * 1000000L};
        nanosleep(&pause, NULL);
        OK(vicort_close(session));
    }
    for (int i = 0; i < THREADS; i++) CHECK(!pthread_join(pushers[i], NULL));
    atomic_store(&pushers_are_done, 1);
    for (int i = 0; i < THREADS; i++) CHECK(!pthread_join(askers[i], NULL));
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    pushes = atoi(arguments[2]);
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    params.fps = VICORT_FPS_SOURCE;
    params.max_tokens = 4;
    run(params, 0);
    vicort_stats stats;
    OK(vicort_finish(session));
    OK(vicort_get_stats(session, &stats));
    CHECK(pushed + late == THREADS * pushes && stats.frames == (uint64_t)pushed && closed == 0);
    OK(vicort_close(session));
    printf("pushed %d, late %d, asked %d, pieces %d\n", pushed, late, asked, pieces);
    for (int ms = 1; ms < 100; ms *= 9) run(params, ms);
    printf("ended by a close: %d\n", closed);
    return 0;
}
