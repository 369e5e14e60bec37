/* plugin LIBRARY ENGINE_DIR: the library as a plug-in of a plug-in would load it, its symbols to itself; signals and locale stay. */
#include <dlfcn.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <vicort.h>

#define CHECK(truth)                                                                                \
    do {                                                                                            \
        if (!(truth)) {                                                                             \
            fprintf(stderr, "line %d: not true: %s\n", __LINE__, #truth);                           \
            return 1;                                                                               \
        }                                                                                           \
    } while (0)

int main(int count, char **arguments) {
    CHECK(count == 3);
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    int (*init)(vicort_params *, size_t, uint32_t), (*open)(const vicort_params *, vicort_session **), (*close)(vicort_session *);
    *(void **)&init = dlsym(library, "vicort_params_init");
    *(void **)&open = dlsym(library, "vicort_open");
    *(void **)&close = dlsym(library, "vicort_close");
    CHECK(init && open && close);
    CHECK(signal(SIGINT, SIG_DFL) != SIG_ERR && signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    vicort_params params;
    vicort_session *session;
    CHECK(init(&params, sizeof params, VICORT_ABI_VERSION) == VICORT_OK);
    params.engine_dir = arguments[2];
    CHECK(open(&params, &session) == VICORT_OK);
    CHECK(close(session) == VICORT_OK);
    CHECK(signal(SIGINT, SIG_DFL) == SIG_DFL && signal(SIGPIPE, SIG_DFL) == SIG_DFL);
    CHECK(!strcmp(setlocale(LC_CTYPE, NULL), "C"));
    puts("loaded and closed");
    return 0;
}
