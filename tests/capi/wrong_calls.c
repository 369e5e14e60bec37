/* wrong_calls ENGINE_DIR: whatever is wrong gives a code, and nothing crashes. */
#include "check.h"

enum { WIDTH = 33, HEIGHT = 21, STRIDE = 100, LENGTH = STRIDE * HEIGHT };

static uint8_t pixels[LENGTH];

static int never(void *user_data, const char *text, size_t length) {
    (void)text;
    (void)length;
    ++*(int *)user_data;
    return 0;
}

static int push(vicort_session *session, int64_t time_us) {
    return vicort_push_rgb24(session, pixels, LENGTH, WIDTH, HEIGHT, STRIDE, time_us);
}

static void before_python(void) {
    vicort_session *nobody = (vicort_session *)(uintptr_t)0x10000, *session = nobody;
    vicort_params params = vicort_params_default();
    vicort_stats stats;

    CHECK(vicort_abi_version() == VICORT_ABI_VERSION);
    CHECK(params.abi_version == VICORT_ABI_VERSION && params.size == sizeof params && params.max_tokens == 64);
    CHECK(vicort_last_error()[0] == 0);
    for (int code = -2; code < 30; code++) CHECK(vicort_strerror(code)[0]);

    GIVES(VICORT_E_NULL, vicort_params_init(NULL, sizeof params, VICORT_ABI_VERSION));
    GIVES(VICORT_E_ABI, vicort_params_init(&params, sizeof params - 1, VICORT_ABI_VERSION));
    GIVES(VICORT_E_ABI, vicort_params_init(&params, sizeof params, VICORT_ABI_VERSION + 1));
    GIVES(VICORT_E_NULL, vicort_open(&params, NULL));
    GIVES(VICORT_E_NULL, vicort_open(NULL, &session));
    CHECK(session == NULL);
    params.size--;
    GIVES(VICORT_E_ABI, vicort_open(&params, &session));
    params = vicort_params_default();
    params.abi_version++;
    GIVES(VICORT_E_ABI, vicort_open(&params, &session));
    params = vicort_params_default();
    params.home = "/nowhere/at/all";
    GIVES(VICORT_E_ENVIRONMENT, vicort_open(&params, &session));
    params.home = "/proc";
    GIVES(VICORT_E_ENVIRONMENT, vicort_open(&params, &session));

    GIVES(VICORT_E_CLOSED, vicort_close(nobody));
    GIVES(VICORT_E_CLOSED, vicort_get_stats(nobody, &stats));
    GIVES(VICORT_E_NULL, vicort_close(NULL));
}

static void wrong_params(const char *engine_dir) {
    vicort_session *session;
    vicort_params params = vicort_params_default();
    params.engine_dir = "/nowhere/at/all";
    GIVES(VICORT_E_ENGINE, vicort_open(&params, &session));
    params.engine_dir = "\xff\xfe";
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.engine_dir = engine_dir;
    params.system = "no-such-system";
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.system = NULL;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params = vicort_params_default();
    params.engine_dir = engine_dir;
    params.fps = -3;
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.fps = 0.0 / 0.0;
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.fps = 1.0 / 0.0;
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.fps = VICORT_FPS_SOURCE;
    params.on_lag = 7;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.on_lag = VICORT_WAIT;
    params.freshness = 2;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.freshness = VICORT_NOW;
    params.threads = -1;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.threads = 4096;
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.threads = 1;
    params.device_mb = 0;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.device_mb = 0.0 / 0.0;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.device_mb = 1.0 / 0.0;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.device_mb = 1;
    GIVES(VICORT_E_MEMORY, vicort_open(&params, &session));
    params.device_mb = VICORT_MEMORY_AUTO;
    params.host_mb = -2;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.host_mb = 0.0 / 0.0;
    GIVES(VICORT_E_ARGUMENT, vicort_open(&params, &session));
    params.host_mb = VICORT_MEMORY_AUTO;
    const double bad[] = {0.0 / 0.0, 1.0 / 0.0, -1.0 / 0.0, -1};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        params.temperature = bad[i];
        GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
        params.temperature = 0;
        params.top_p = bad[i];
        GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
        params.top_p = 1;
    }
    params.seed = (uint64_t)-1;
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.seed = 0;
    params.max_tokens = 0;
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.max_tokens = 4;
    params.temperature = -1;
    GIVES(VICORT_E_CONFIG, vicort_open(&params, &session));
    params.temperature = 0;
    params.home = "/nowhere/at/all";
    GIVES(VICORT_E_ENVIRONMENT, vicort_open(&params, &session));
    CHECK(session == NULL);
}

static void wrong_pictures(vicort_session *session) {
    GIVES(VICORT_E_NULL, vicort_push_rgb24(NULL, pixels, LENGTH, WIDTH, HEIGHT, STRIDE, 0));
    GIVES(VICORT_E_NULL, vicort_push_rgb24(session, NULL, LENGTH, WIDTH, HEIGHT, STRIDE, 0));
    GIVES(VICORT_E_SIZE, vicort_push_rgb24(session, pixels, LENGTH, 0, HEIGHT, STRIDE, 0));
    GIVES(VICORT_E_SIZE, vicort_push_rgb24(session, pixels, LENGTH, WIDTH, -1, STRIDE, 0));
    GIVES(VICORT_E_SIZE, vicort_push_rgb24(session, pixels, LENGTH, INT32_MAX, INT32_MAX, SIZE_MAX, 0));
    GIVES(VICORT_E_SIZE, vicort_push_rgb24(session, pixels, LENGTH, WIDTH, HEIGHT, 3 * WIDTH - 1, 0));
    GIVES(VICORT_E_SIZE, vicort_push_rgb24(session, pixels, LENGTH, WIDTH, HEIGHT, SIZE_MAX, 0));
    GIVES(VICORT_E_SIZE, vicort_push_rgb24(session, pixels, STRIDE * (HEIGHT - 1) + 3 * WIDTH - 1, WIDTH, HEIGHT, STRIDE, 0));
    GIVES(VICORT_E_SIZE, vicort_push_rgb24(session, pixels, 0, WIDTH, HEIGHT, STRIDE, 0));
    GIVES(VICORT_E_NULL, vicort_push_nv12(session, pixels, LENGTH, WIDTH, NULL, LENGTH, 34, WIDTH, HEIGHT, VICORT_BT601, 0));
    GIVES(VICORT_E_SIZE, vicort_push_nv12(session, pixels, LENGTH, WIDTH, pixels, 34 * 11 - 1, 34, WIDTH, HEIGHT, VICORT_BT601, 0));
    GIVES(VICORT_E_SIZE, vicort_push_nv12(session, pixels, LENGTH, WIDTH, pixels, LENGTH, 33, WIDTH, HEIGHT, VICORT_BT601, 0));
    GIVES(VICORT_E_ARGUMENT, vicort_push_nv12(session, pixels, LENGTH, WIDTH, pixels, LENGTH, 34, WIDTH, HEIGHT, 9, 0));
}

static void right_pictures_in_order(vicort_session *session) {
    OK(vicort_push_rgb24(session, pixels, SIZE_MAX, 1, 1, SIZE_MAX, INT64_MIN)); /* one row has no second to be a stride away */
    OK(vicort_push_rgb24(session, pixels, STRIDE * (HEIGHT - 1) + 3 * WIDTH, WIDTH, HEIGHT, STRIDE, INT64_MIN + 1));
    GIVES(VICORT_E_TIME, push(session, INT64_MIN + 1));
    GIVES(VICORT_E_TIME, push(session, INT64_MIN));
    GIVES(VICORT_E_TIME, push(session, 0)); /* in 292,000 years */
    GIVES(VICORT_E_TIME, push(session, INT64_MAX));
    OK(vicort_push_nv12(session, pixels, WIDTH * HEIGHT, WIDTH, pixels, 34 * 11, 34, WIDTH, HEIGHT, VICORT_BT709_FULL, INT64_MIN + 500000));
    OK(push(session, INT64_MIN + 1000000));
    GIVES(VICORT_E_TIME, vicort_push_source(session, "testsrc:", 0));
}

static void questions(vicort_session *session) {
    char text[256] = "untouched", longest[20000];
    int calls = 0;
    size_t length = 0;
    vicort_answer answer;
    for (size_t i = 0; i < sizeof longest; i++) longest[i] = i % 2 ? ' ' : 'a';
    longest[sizeof longest - 1] = 0;

    GIVES(VICORT_E_NULL, vicort_ask(session, NULL, text, sizeof text, NULL, NULL));
    GIVES(VICORT_E_NULL, vicort_ask(session, "what?", NULL, 1, NULL, NULL));
    GIVES(VICORT_E_NULL, vicort_ask_stream(session, "what?", NULL, NULL, NULL));
    GIVES(VICORT_E_NULL, vicort_ask_between(session, "what?", 0, 1, NULL, NULL, NULL));
    GIVES(VICORT_E_QUESTION, vicort_ask_between(session, "what?", INT64_MIN + 2, INT64_MIN + 1, never, &calls, NULL));
    GIVES(VICORT_E_QUESTION, vicort_ask_between(session, "what?", 0, 1, never, &calls, NULL)); /* in 292,000 years */
    GIVES(VICORT_E_QUESTION, vicort_ask(session, " \n", text, sizeof text, NULL, NULL));
    GIVES(VICORT_E_QUESTION, vicort_ask(session, longest, text, sizeof text, NULL, NULL));
    GIVES(VICORT_E_ARGUMENT, vicort_ask_stream(session, "\xc3(", never, &calls, NULL));
    CHECK(calls == 0 && !strcmp(text, "untouched"));

    OK(vicort_ask(session, "what is there now?", text, sizeof text, &length, &answer));
    CHECK(length == strlen(text) && answer.at_us == INT64_MIN + 1000000 && answer.seen_until_us <= answer.at_us && answer.ttft_ms > 0);
    char whole[256];
    memcpy(whole, text, sizeof whole);
    for (size_t size = 0; size <= length; size++) {
        memset(text, '#', sizeof text);
        size_t again = 0;
        GIVES(VICORT_E_BUFFER, vicort_ask(session, "what is there now?", size ? text : NULL, size, &again, NULL));
        CHECK(again == length && text[size] == '#');
        if (size) CHECK(!memcmp(text, whole, strlen(text)) && strlen(text) < size);
    }
}

static void the_end(vicort_session *session) {
    char text[256];
    vicort_stats stats;
    OK(vicort_finish(session));
    OK(vicort_finish(session));
    GIVES(VICORT_E_FINISHED, push(session, INT64_MIN + 2000000));
    GIVES(VICORT_E_ARGUMENT, vicort_push_source(session, "\xff", 0));
    OK(vicort_ask(session, "what is there now?", text, sizeof text, NULL, NULL));
    OK(vicort_get_stats(session, &stats));
    CHECK(stats.frames == 4 && stats.chunks == 1 && stats.ttft_p50_ms > 0 && stats.peak_rss_mb > 0);
    GIVES(VICORT_E_NULL, vicort_get_stats(session, NULL));
    OK(vicort_close(session));
    GIVES(VICORT_E_CLOSED, vicort_close(session));
    GIVES(VICORT_E_CLOSED, push(session, INT64_MIN + 3000000));
    GIVES(VICORT_E_CLOSED, vicort_ask(session, "what?", text, sizeof text, NULL, NULL));
    GIVES(VICORT_E_CLOSED, vicort_finish(session));
    GIVES(VICORT_E_CLOSED, vicort_get_stats(session, &stats));
    GIVES(VICORT_E_CLOSED, vicort_get_stats((vicort_session *)(void *)text, &stats));
}

static void sources(vicort_params params) {
    vicort_session *session = open_with(params);
    GIVES(VICORT_E_SOURCE, vicort_push_source(session, "/nowhere/at/all.mp4", 0));
    GIVES(VICORT_E_CONFIG, vicort_push_source(session, "testsrc:", -1));
    GIVES(VICORT_E_NULL, vicort_push_source(session, NULL, 0));
    OK(vicort_close(session));
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    before_python();
    wrong_params(arguments[1]);
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    params.fps = VICORT_FPS_SOURCE;
    params.max_tokens = 8;
    vicort_session *session = open_with(params);
    wrong_pictures(session);
    right_pictures_in_order(session);
    questions(session);
    the_end(session);
    sources(params);
    puts("every wrong call gave its code");
    return 0;
}
