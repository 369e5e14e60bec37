/* lost_gpu WHEN ENGINE_DIR SYSTEM: a GPU is lost, over the stand-in for its driver. WHEN: "open", while a second session is opened;
 * "stream", while one thread pushes and another one asks; "answer", in the middle of one; "rest", while nothing is done; "exit", before
 * main returns with the session open. Every call then says so, until the session is closed. */
#include <dlfcn.h>
#include <pthread.h>

#include "check.h"

enum { SIDE = 8, ROW = 3 * SIDE, STEP_US = 500000, ILLEGAL_ADDRESS = 700, FOR_GOOD = 1 };

static void (*fail)(const char *function, long long after, int result, int lasting);
static long long (*get)(const char *name);
static vicort_session *session;
static int64_t clock_us;
static const char *question = "what color was the circle?";

static void find_driver(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(driver);
    *(void **)&fail = dlsym(driver, "stand_in_fail");
    *(void **)&get = dlsym(driver, "stand_in_get");
    CHECK(fail && get);
}

static void lose_gpu(long long after) { fail(NULL, after, ILLEGAL_ADDRESS, FOR_GOOD); }

static void says_so(int status) {
    GIVES(VICORT_E_DEVICE, status);
    CHECK(strstr(vicort_last_error(), "the GPU failed (CUDA_ERROR_ILLEGAL_ADDRESS), and this process can no longer use it") ==
          vicort_last_error());
    CHECK(!strchr(vicort_last_error(), '\n'));
}

static int push(void) {
    static uint8_t pixels[SIDE * ROW];
    return vicort_push_rgb24(session, pixels, sizeof pixels, SIDE, SIDE, ROW, clock_us += STEP_US);
}

static int ask(void) {
    char text[200];
    return vicort_ask(session, question, text, sizeof text, NULL, NULL);
}

static void *ask_until_it_fails(void *unused) {
    (void)unused;
    int status;
    do status = ask();
    while (status == VICORT_OK);
    says_so(status);
    return NULL;
}

static int lose_at_a_piece(void *user_data, const char *text, size_t length) {
    (void)user_data, (void)text, (void)length;
    lose_gpu(0);
    return 0;
}

static int count_piece(void *user_data, const char *text, size_t length) {
    (void)text, (void)length;
    ++*(int *)user_data;
    return 0;
}

static void every_call_says_so(void) {
    int pieces = 0;
    vicort_stats stats;
    for (int i = 0; i < 3; i++) {
        says_so(push());
        says_so(ask());
        says_so(vicort_ask_stream(session, question, count_piece, &pieces, NULL));
    }
    CHECK(!pieces);
    says_so(vicort_finish(session));
    OK(vicort_get_stats(session, &stats)); /* which asks the GPU nothing */
}

static void close_it(int wanted) {
    if (wanted == VICORT_OK) OK(vicort_close(session));
    else says_so(vicort_close(session));
    GIVES(VICORT_E_CLOSED, vicort_close(session));
    GIVES(VICORT_E_CLOSED, push());
}

int main(int count, char **arguments) {
    CHECK(count == 4);
    const char *when = arguments[1];
    find_driver();
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[2];
    params.system = arguments[3];
    params.max_tokens = 5;
    const long long before = get("calls");
    session = open_with(params);
    const long long calls = get("calls") - before;
    for (int i = 0; i < 20; i++) OK(push());
    OK(ask());
    if (!strcmp(when, "open")) {
        vicort_session *other;
        lose_gpu(calls / 2);
        for (int i = 0; i < 2; i++) {
            says_so(vicort_open(&params, &other));
            CHECK(!other);
        }
        every_call_says_so();
        close_it(VICORT_OK);
    } else if (!strcmp(when, "stream")) {
        pthread_t asker;
        CHECK(!pthread_create(&asker, NULL, ask_until_it_fails, NULL));
        lose_gpu(300);
        int status;
        do status = push();
        while (status == VICORT_OK);
        says_so(status);
        CHECK(!pthread_join(asker, NULL));
        every_call_says_so();
        close_it(VICORT_OK);
    } else if (!strcmp(when, "answer")) {
        says_so(vicort_ask_stream(session, question, lose_at_a_piece, NULL, NULL));
        every_call_says_so();
        close_it(VICORT_OK);
    } else if (!strcmp(when, "rest")) {
        lose_gpu(0);
        close_it(VICORT_E_DEVICE);
    } else {
        CHECK(!strcmp(when, "exit"));
        lose_gpu(0);
        OK(push());
    }
    return 0;
}
