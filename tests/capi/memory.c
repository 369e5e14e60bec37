/* memory ENGINE_DIR SYSTEM PUSHES WIDTH HEIGHT: resident memory, in bytes, after each tenth of the pushes; a question each. */
#include <unistd.h>

#include "check.h"

static long resident(void) {
    long size, pages;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%ld %ld", &size, &pages) == 2);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

int main(int count, char **arguments) {
    CHECK(count == 6);
    const int pushes = atoi(arguments[3]), width = atoi(arguments[4]), height = atoi(arguments[5]);
    const size_t length = (size_t)width * height * 3;
    uint8_t *pixels = calloc(length, 1);
    char text[512];
    CHECK(pixels);
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    params.system = arguments[2];
    params.fps = VICORT_FPS_SOURCE;
    params.max_tokens = 8;
    vicort_session *session = open_with(params);
    for (int i = 0; i < pushes; i++) {
        memset(pixels, i * 37, length / 2);
        OK(vicort_push_rgb24(session, pixels, length, width, height, 3 * (size_t)width, 40000ll * i));
        if ((i + 1) % (pushes / 10) == 0) {
            OK(vicort_ask(session, "what is there now?", text, sizeof text, NULL, NULL));
            printf("%ld\n", resident());
        }
    }
    OK(vicort_close(session));
    free(pixels);
    return 0;
}
