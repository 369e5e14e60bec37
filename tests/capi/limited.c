/* Limited answers from C: choices with their probabilities, an expression, and what is refused. */
#include <math.h>
#include <string.h>

#include "check.h"

enum { SIDE = 64, FRAMES = 12 };

static char text[256];

static int collect(void *user_data, const char *piece, size_t length) {
    (void)user_data;
    CHECK(strlen(text) + length < sizeof text);
    strcat(text, piece);
    return 0;
}

static int ask(vicort_session *session, const vicort_constraint *constraint, double *probabilities, vicort_answer *answer) {
    text[0] = '\0';
    return vicort_ask_constrained(session, "is there a circle?", INT64_MIN, INT64_MAX, constraint, collect, NULL, probabilities, answer);
}

static void check_choices(vicort_session *session) {
    static const char *const choices[] = {"no", "yes", "none"};
    const vicort_constraint constraint = {.choices = choices, .choice_count = 3};
    double chances[3] = {-1, -1, -1};
    vicort_answer answer;
    OK(ask(session, &constraint, chances, &answer));
    CHECK(fabs(chances[0] + chances[1] + chances[2] - 1) < 1e-6);
    for (int i = 0; i < 3; i++) {
        CHECK(chances[i] >= 0);
        CHECK(strcmp(text, choices[i]) ? 1 : chances[i] >= 1.0 / 3);
    }
    CHECK(answer.complete == 1);
    CHECK(answer.outside >= 0 && answer.outside <= 1);
    CHECK(answer.probability > 0 && answer.first_probability > 0);
    OK(ask(session, &constraint, NULL, NULL));
}

static void check_texts(vicort_session *session) {
    vicort_answer answer;
    double untouched = -1;
    const vicort_constraint regex = {.regex = "red circle"};
    OK(ask(session, &regex, &untouched, &answer));
    CHECK(!strcmp(text, "red circle"));
    CHECK(answer.complete == 1 && answer.outside == 0 && untouched == -1);
    const vicort_constraint lark = {.lark = "start: \"red\" \" \" (\"ring\" | \"star\")"};
    OK(ask(session, &lark, NULL, &answer));
    CHECK(!strcmp(text, "red ring") || !strcmp(text, "red star"));
    const vicort_constraint endless = {.regex = "red( circle)* square square square square square square"};
    OK(ask(session, &endless, NULL, &answer));
    CHECK(answer.complete == 0);
    OK(ask(session, NULL, NULL, &answer));
    CHECK(text[0]);
}

static void check_refused(vicort_session *session) {
    static const char *const twice[] = {"yes", "yes"}, *const unknown[] = {"yes", "xylophone"}, *const null[] = {"yes", NULL};
    const vicort_constraint none = {0}, both = {.choices = unknown, .choice_count = 1, .regex = "yes"};
    const vicort_constraint constraints[] = {
        none, both, {.choices = twice, .choice_count = 2}, {.choices = unknown, .choice_count = 2}, {.regex = "("},
        {.choices = unknown, .choice_count = 1000000}, {.json_schema = "{\"type\": \"boolean\"}"}, {.json_schema = "{"}, {.lark = "start: x"},
    };
    for (size_t i = 0; i < sizeof constraints / sizeof *constraints; i++) {
        GIVES(VICORT_E_QUESTION, ask(session, &constraints[i], NULL, NULL));
        CHECK(!strchr(vicort_last_error(), '\n'));
    }
    const vicort_constraint missing = {.choice_count = 2}, holes = {.choices = null, .choice_count = 2}, bytes = {.regex = "\xff"};
    GIVES(VICORT_E_NULL, ask(session, &missing, NULL, NULL));
    GIVES(VICORT_E_ARGUMENT, ask(session, &holes, NULL, NULL));
    GIVES(VICORT_E_ARGUMENT, ask(session, &bytes, NULL, NULL));
}

int main(int count, char **arguments) {
    CHECK(count > 1);
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    params.max_tokens = 6;
    vicort_session *session = open_with(params);
    static uint8_t pixels[SIDE * SIDE * 3];
    for (int i = 0; i < FRAMES; i++) OK(vicort_push_rgb24(session, pixels, sizeof pixels, SIDE, SIDE, SIDE * 3, i * 500000));
    check_choices(session);
    check_texts(session);
    check_refused(session);
    OK(vicort_close(session));
    return 0;
}
