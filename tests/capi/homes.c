/* homes ENGINE_DIR EMPTY: an environment without vicort is refused, and the right one is still found; then there is only that one. */
#include "check.h"

int main(int count, char **arguments) {
    CHECK(count == 3);
    vicort_session *session;
    vicort_params params = vicort_params_default();
    params.engine_dir = arguments[1];
    params.home = arguments[2];
    GIVES(VICORT_E_ENVIRONMENT, vicort_open(&params, &session));
    puts(vicort_last_error());
    params.home = NULL;
    OK(vicort_open(&params, &session));
    OK(vicort_close(session));
    params.home = arguments[2];
    GIVES(VICORT_E_ENVIRONMENT, vicort_open(&params, &session));
    puts(vicort_last_error());
    return 0;
}
