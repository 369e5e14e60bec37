/* packets ENGINE_DIR CODEC FILE ORIGIN_US QUESTION: encoded packets, after calls that are wrong and change nothing; then one answer, and
 * its facts. FILE, in the machine's order of bytes: int32 length and extradata, then for each packet int64 time, int32 length and data. */
#include "check.h"

static uint8_t *read_piece(FILE *file, size_t *length) {
    int32_t count;
    CHECK(fread(&count, sizeof count, 1, file) == 1 && count >= 0);
    *length = (size_t)count;
    uint8_t *piece = malloc(*length + 1);
    CHECK(piece && fread(piece, 1, *length, file) == *length);
    return piece;
}

static void wrong_packets(vicort_session *session) {
    static const uint8_t noise[] = "no picture at all";
    GIVES(VICORT_E_NULL, vicort_set_codec(NULL, "h264", NULL, 0));
    GIVES(VICORT_E_NULL, vicort_set_codec(session, NULL, NULL, 0));
    GIVES(VICORT_E_NULL, vicort_set_codec(session, "h264", NULL, 1));
    GIVES(VICORT_E_CLOSED, vicort_set_codec((vicort_session *)(void *)noise, "h264", NULL, 0));
    GIVES(VICORT_E_CONFIG, vicort_push_packet(session, noise, sizeof noise, 0));
    GIVES(VICORT_E_ARGUMENT, vicort_set_codec(session, "\xff", NULL, 0));
    GIVES(VICORT_E_SOURCE, vicort_set_codec(session, "no-such-codec", NULL, 0));
    GIVES(VICORT_E_SOURCE, vicort_set_codec(session, "aac", NULL, 0));
    GIVES(VICORT_E_SIZE, vicort_set_codec(session, "h264", noise, SIZE_MAX));
    OK(vicort_set_codec(session, "mjpeg", NULL, 0));
    GIVES(VICORT_E_SOURCE, vicort_push_packet(session, noise, sizeof noise, 0));
    GIVES(VICORT_E_SIZE, vicort_push_packet(session, noise, 0, 0));
    GIVES(VICORT_E_SIZE, vicort_push_packet(session, noise, SIZE_MAX, 0));
    GIVES(VICORT_E_NULL, vicort_push_packet(session, NULL, 1, 0));
    GIVES(VICORT_E_NULL, vicort_push_packet(NULL, noise, 1, 0));
}

int main(int count, char **arguments) {
    CHECK(count == 6);
    FILE *file = fopen(arguments[3], "rb");
    CHECK(file);
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    vicort_session *session = open_with(params);
    wrong_packets(session);
    size_t length;
    uint8_t *extradata = read_piece(file, &length);
    OK(vicort_set_codec(session, arguments[2], extradata, length));
    free(extradata);
    for (int64_t time_us; fread(&time_us, sizeof time_us, 1, file) == 1;) {
        uint8_t *data = read_piece(file, &length);
        OK(vicort_push_packet(session, data, length, atoll(arguments[4]) + time_us));
        free(data);
    }
    fclose(file);
    char text[512];
    vicort_answer answer;
    vicort_stats stats;
    OK(vicort_finish(session));
    GIVES(VICORT_E_FINISHED, vicort_push_packet(session, (const uint8_t *)"x", 1, 0));
    GIVES(VICORT_E_FINISHED, vicort_set_codec(session, "h264", NULL, 0));
    OK(vicort_ask(session, arguments[5], text, sizeof text, NULL, &answer));
    OK(vicort_get_stats(session, &stats));
    printf("%s|%lld|%lld|%d|%d|%llu\n", text, (long long)answer.at_us, (long long)answer.seen_until_us, answer.tokens, answer.pages,
           (unsigned long long)stats.frames);
    OK(vicort_close(session));
    GIVES(VICORT_E_CLOSED, vicort_push_packet(session, (const uint8_t *)"x", 1, 0));
    return 0;
}
