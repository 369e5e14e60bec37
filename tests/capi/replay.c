/* replay ENGINE_DIR rgb24|nv12 FILE WIDTH HEIGHT FPS PADDING ORIGIN_US QUESTION: raw pictures, packed, one behind the other, pushed
 * with rows that are PADDING bytes further apart; then one answer, and its facts. */
#include "check.h"

/* A plane of `rows` rows of `bytes`, spread out to `stride`, with a pattern in between. */
static uint8_t *read_plane(FILE *file, int rows, size_t bytes, size_t stride, size_t *length) {
    *length = stride * (size_t)(rows - 1) + bytes;
    uint8_t *plane = malloc(*length);
    CHECK(plane);
    memset(plane, 0xa5, *length);
    for (int row = 0; row < rows; row++)
        if (fread(plane + stride * row, 1, bytes, file) != bytes) {
            free(plane);
            return NULL;
        }
    return plane;
}

int main(int count, char **arguments) {
    CHECK(count == 10);
    FILE *file = fopen(arguments[3], "rb");
    CHECK(file);
    const int width = atoi(arguments[4]), height = atoi(arguments[5]), nv12 = !strcmp(arguments[2], "nv12");
    const size_t row = nv12 ? width : 3 * width, pairs = 2 * ((width + 1) / 2), padding = atoi(arguments[7]);
    const int64_t step = 1000000 / atoi(arguments[6]), origin = atoll(arguments[8]);
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    vicort_session *session = open_with(params);
    for (int i = 0;; i++) {
        size_t length, chroma_length = 0;
        uint8_t *pixels = read_plane(file, height, row, row + padding, &length);
        if (!pixels) break;
        uint8_t *chroma = nv12 ? read_plane(file, (height + 1) / 2, pairs, pairs + padding, &chroma_length) : NULL;
        if (nv12)
            OK(vicort_push_nv12(session, pixels, length, row + padding, chroma, chroma_length, pairs + padding, width, height,
                                VICORT_BT601, origin + i * step));
        else
            OK(vicort_push_rgb24(session, pixels, length, width, height, row + padding, origin + i * step));
        free(pixels);
        free(chroma);
    }
    fclose(file);
    char text[512];
    vicort_answer answer;
    vicort_stats stats;
    OK(vicort_finish(session));
    OK(vicort_ask(session, arguments[9], text, sizeof text, NULL, &answer));
    OK(vicort_get_stats(session, &stats));
    printf("%s|%lld|%lld|%d|%d|%llu\n", text, (long long)answer.at_us, (long long)answer.seen_until_us, answer.tokens, answer.pages,
           (unsigned long long)stats.frames);
    OK(vicort_close(session));
    return 0;
}
