/* The C side: functions that need no Python, the start of the interpreter, and the calls to glue.py. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "vicort.h"

#include "embedded.h"

#define ERROR_SIZE 1024
#define PATH_SIZE (ERROR_SIZE + 64) /* of a file in an environment */
#define PYTHON_NAME "python" Py_STRINGIFY(PY_MAJOR_VERSION) "." Py_STRINGIFY(PY_MINOR_VERSION)
#define INSTALL "install vicort and cffi there (`pip install WHEEL cffi`), or name another environment in vicort_params.home"

static _Thread_local char last_error[ERROR_SIZE];

static int fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

/* ---- without Python ---- */

uint32_t vicort_abi_version(void) { return VICORT_ABI_VERSION; }

const char *vicort_last_error(void) { return last_error; }

const char *vicort_strerror(int status) {
    static const char *const words[] = {
        [VICORT_OK] = "no error",
        [VICORT_E_ABI] = "header and library are of different ABI versions",
        [VICORT_E_NULL] = "a pointer is null",
        [VICORT_E_CLOSED] = "the session is closed, or is none",
        [VICORT_E_ARGUMENT] = "a value is not allowed",
        [VICORT_E_SIZE] = "width, height, stride and length of the picture do not fit together",
        [VICORT_E_TIME] = "the frame's time is not after that of the frame before, or over a year after it",
        [VICORT_E_FINISHED] = "the stream was finished",
        [VICORT_E_BUFFER] = "the text was cut to fit its buffer",
        [VICORT_E_STOPPED] = "the token callback asked to stop",
        [VICORT_E_ENVIRONMENT] = "no Python environment that holds vicort",
        [VICORT_E_ENGINE] = "the engine set is missing, damaged or of another version",
        [VICORT_E_CONFIG] = "a setting is not allowed",
        [VICORT_E_SOURCE] = "the video source cannot be opened or broke off",
        [VICORT_E_MEMORY] = "the memory or its budget is too small",
        [VICORT_E_QUESTION] = "the question cannot be asked",
        [VICORT_E_DEVICE] = "the device is not there or cannot be used",
        [VICORT_E_FAILED] = "vicort refused",
        [VICORT_E_INTERNAL] = "a fault of vicort",
    };
    const int count = (int)(sizeof words / sizeof *words);
    return status >= 0 && status < count ? words[status] : "unknown status";
}

int vicort_params_init(vicort_params *params, size_t size, uint32_t abi_version) {
    if (!params) return fail(VICORT_E_NULL, "vicort_params_init: params is null");
    if (abi_version != VICORT_ABI_VERSION || size != sizeof *params)
        return fail(VICORT_E_ABI, "the header has ABI version %u and %zu bytes of parameters, this library %u and %zu: compile again, "
                    "with the header beside the library", abi_version, size, VICORT_ABI_VERSION, sizeof *params);
    *params = (vicort_params){
        .abi_version = VICORT_ABI_VERSION, .size = sizeof *params, .system = VICORT_DEFAULT_SYSTEM, .fps = VICORT_FPS_MODEL,
        .top_p = 1.0, .device_mb = VICORT_MEMORY_AUTO, .host_mb = VICORT_MEMORY_AUTO, .max_tokens = 64,
        .threads = VICORT_THREADS_ALL, .on_lag = VICORT_WAIT, .freshness = VICORT_COMPLETE,
    };
    return VICORT_OK;
}

/* ---- the interpreter ---- */

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool started;          /* Python runs, and vicort is imported */
static _Atomic pid_t owner;          /* the process that started it; 0 = none */
static char chosen_home[ERROR_SIZE]; /* the environment of that vicort; guarded by `starting` */

/* Extension modules need Python's symbols in the global scope. A host may have loaded this library with RTLD_LOCAL. */
static void show_python_to_extensions(void) {
    Dl_info library;
    if (dladdr((void *)(uintptr_t)&Py_IsInitialized, &library) && library.dli_fname)
        (void)dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
}

static int check_home(const char *home) {
    char path[PATH_SIZE];
    if (strlen(home) >= ERROR_SIZE) return fail(VICORT_E_ENVIRONMENT, "home has over %d bytes: use a shorter path", ERROR_SIZE - 1);
    snprintf(path, sizeof path, "%s/lib/" PYTHON_NAME, home);
    if (access(path, R_OK))
        return fail(VICORT_E_ENVIRONMENT, "%.400s is no environment of " PYTHON_NAME " (it has no lib/" PYTHON_NAME "): " INSTALL, home);
    snprintf(path, sizeof path, "%s/bin/python3", home);
    if (access(path, X_OK)) return fail(VICORT_E_ENVIRONMENT, "%.400s has no bin/python3: " INSTALL, home);
    return VICORT_OK;
}

static int import(const char *name) {
    PyObject *module = PyImport_ImportModule(name);
    Py_XDECREF(module);
    return module != NULL;
}

/* Start like `home`/bin/python3, but keep the signal handlers and the locale of the host. */
static PyStatus initialize(const char *home) {
    char program[PATH_SIZE];
    snprintf(program, sizeof program, "%s/bin/python3", home);
    PyPreConfig before;
    PyPreConfig_InitPythonConfig(&before);
    before.configure_locale = before.coerce_c_locale = before.parse_argv = 0;
    before.utf8_mode = 1;
    PyStatus status = Py_PreInitialize(&before);
    if (PyStatus_Exception(status)) return status;
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = config.parse_argv = 0;
    status = PyConfig_SetBytesString(&config, &config.program_name, program);
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

/* The module `signal` replaces the handler of SIGINT on its first import, whatever the configuration is. */
static void keep_interrupts(void) {
    struct sigaction interrupt;
    sigaction(SIGINT, NULL, &interrupt);
    if (!import("signal")) PyErr_Clear();
    sigaction(SIGINT, &interrupt, NULL);
}

static int import_all(void) { return import("_cffi_backend") && import("vicort.runtime.shared_session"); }

/* The search path may lack the environment if the host, or an earlier `home` without vicort, started Python. */
static int import_from(const char *home) {
    char packages[PATH_SIZE];
    snprintf(packages, sizeof packages, "%s/lib/" PYTHON_NAME "/site-packages", home);
    PyErr_Clear();
    PyObject *site = PyImport_ImportModule("site");
    PyObject *added = site ? PyObject_CallMethod(site, "addsitedir", "s", packages) : NULL;
    Py_XDECREF(added);
    Py_XDECREF(site);
    return added && import_all();
}

/* Store the pending Python exception as the error text. */
static int fail_with_exception(const char *home) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *text = value ? PyObject_Str(value) : NULL;
    const char *words = text ? PyUnicode_AsUTF8(text) : NULL;
    fail(VICORT_E_ENVIRONMENT, "%.300s cannot run vicort (%.300s): " INSTALL, home, words ? words : "no reason given");
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return VICORT_E_ENVIRONMENT;
}

static int start_locked(const char *wished) {
    const char *home = wished ? wished : chosen_home[0] ? chosen_home : VICORT_BUILT_IN;
    if (chosen_home[0] && strcmp(chosen_home, home))
        return fail(VICORT_E_ENVIRONMENT, "home %.400s, but this process runs %.400s: a process has one environment", home, chosen_home);
    if (atomic_load(&started)) return VICORT_OK;
    const int status = check_home(home);
    if (status != VICORT_OK) return status;
    show_python_to_extensions();
    atomic_store(&owner, getpid());
    if (!Py_IsInitialized()) {
        const PyStatus python = initialize(home);
        if (PyStatus_Exception(python))
            return fail(VICORT_E_ENVIRONMENT, "%.400s does not start (%.300s): " INSTALL, home, python.err_msg ? python.err_msg : "?");
        keep_interrupts();
        PyEval_SaveThread();
    }
    const PyGILState_STATE state = PyGILState_Ensure();
    const int imported = import_all() || import_from(home);
    const int failure = imported ? VICORT_OK : fail_with_exception(home);
    PyGILState_Release(state);
    if (imported) snprintf(chosen_home, sizeof chosen_home, "%s", home);
    atomic_store(&started, imported);
    return failure;
}

/* A forked child has none of Python's threads: every call would wait for ever. */
static bool is_forked(void) {
    const pid_t process = atomic_load(&owner);
    return process && process != getpid();
}

#define FORKED "this process was forked from process %ld, to which vicort belongs: call exec in it"

static int start_python(const char *home) {
    pthread_mutex_lock(&starting);
    const int status = start_locked(home);
    pthread_mutex_unlock(&starting);
    return status;
}

/* ---- calls to glue.py ---- */

/* Before the first vicort_open there is no session. */
#define NEED_SESSION(session)                                                                       \
    do {                                                                                            \
        if (!(session)) return fail(VICORT_E_NULL, "%s: session is null", __func__);                \
        if (is_forked()) return fail(VICORT_E_CLOSED, "%s: " FORKED, __func__, (long)atomic_load(&owner)); \
        if (!atomic_load(&started)) return fail(VICORT_E_CLOSED, "%s: no such session", __func__);  \
    } while (0)
#define NEED(pointer)                                                                               \
    do {                                                                                            \
        if (!(pointer)) return fail(VICORT_E_NULL, "%s: " #pointer " is null", __func__);           \
    } while (0)

/* `status` is a code + 1. The text is stored only for failures. */
static int settle(int status, const char *error) {
    if (status == VICORT_OK + 1) return VICORT_OK;
    if (status == 0) return fail(VICORT_E_INTERNAL, "the library's Python part does not run: see what it printed to stderr");
    return fail(status - 1, "%s", error);
}

#define HAND_OVER(function, ...)                                                                    \
    do {                                                                                            \
        char error[ERROR_SIZE] = "";                                                                \
        const int status = function(error, __VA_ARGS__);                                            \
        return settle(status, error);                                                               \
    } while (0)

/* Engines must stop before exit() unloads their libraries. */
static void close_all_at_exit(void) {
    char error[ERROR_SIZE];
    if (is_forked()) return;
    if (Py_IsInitialized()) (void)embedded_close_all(error); /* otherwise the host finalized Python, which ended all threads */
}

static void register_exit(void) { (void)atexit(close_all_at_exit); }

int vicort_open(const vicort_params *params, vicort_session **session) {
    NEED(session);
    *session = NULL;
    NEED(params);
    if (params->abi_version != VICORT_ABI_VERSION || params->size != sizeof *params)
        return fail(VICORT_E_ABI, "the parameters have ABI version %u and %u bytes, this library's have %u and %zu: begin with "
                    "vicort_params_default(), and compile with the header beside the library",
                    params->abi_version, params->size, VICORT_ABI_VERSION, sizeof *params);
    if (is_forked()) return fail(VICORT_E_ENVIRONMENT, "vicort_open: " FORKED, (long)atomic_load(&owner));
    const int status = start_python(params->home);
    if (status != VICORT_OK) return status;
    char error[ERROR_SIZE] = "";
    const int opened = settle(embedded_open(error, params, session), error);
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (opened == VICORT_OK) (void)pthread_once(&once, register_exit); /* after the libraries of the engines are loaded: exit handlers run in reverse order */
    return opened;
}

int vicort_push_rgb24(vicort_session *session, const uint8_t *pixels, size_t length, int32_t width, int32_t height, size_t stride,
                      int64_t time_us) {
    NEED_SESSION(session);
    NEED(pixels);
    HAND_OVER(embedded_push_rgb24, session, pixels, length, width, height, stride, time_us);
}

int vicort_push_nv12(vicort_session *session, const uint8_t *luma, size_t luma_length, size_t luma_stride, const uint8_t *chroma,
                     size_t chroma_length, size_t chroma_stride, int32_t width, int32_t height, int32_t colours, int64_t time_us) {
    NEED_SESSION(session);
    NEED(luma);
    NEED(chroma);
    HAND_OVER(embedded_push_nv12, session, luma, luma_length, luma_stride, chroma, chroma_length, chroma_stride, width, height, colours,
              time_us);
}

int vicort_set_codec(vicort_session *session, const char *codec, const uint8_t *extradata, size_t extradata_length) {
    NEED_SESSION(session);
    NEED(codec);
    if (extradata_length) NEED(extradata);
    HAND_OVER(embedded_set_codec, session, codec, extradata, extradata_length);
}

int vicort_push_packet(vicort_session *session, const uint8_t *data, size_t length, int64_t time_us) {
    NEED_SESSION(session);
    NEED(data);
    HAND_OVER(embedded_push_packet, session, data, length, time_us);
}

int vicort_push_source(vicort_session *session, const char *source, double pace) {
    NEED_SESSION(session);
    NEED(source);
    HAND_OVER(embedded_push_source, session, source, pace);
}

int vicort_finish(vicort_session *session) {
    NEED_SESSION(session);
    HAND_OVER(embedded_finish, session);
}

int vicort_ask(vicort_session *session, const char *question, char *text, size_t text_size, size_t *text_length, vicort_answer *answer) {
    NEED_SESSION(session);
    NEED(question);
    if (text_size) NEED(text);
    HAND_OVER(embedded_ask, session, question, text, text_size, text_length, answer);
}

int vicort_ask_stream(vicort_session *session, const char *question, vicort_token_callback on_token, void *user_data,
                      vicort_answer *answer) {
    NEED_SESSION(session);
    NEED(question);
    NEED(on_token);
    HAND_OVER(embedded_ask_stream, session, question, on_token, user_data, answer);
}

int vicort_ask_between(vicort_session *session, const char *question, int64_t since_us, int64_t until_us,
                       vicort_token_callback on_token, void *user_data, vicort_answer *answer) {
    NEED_SESSION(session);
    NEED(question);
    NEED(on_token);
    HAND_OVER(embedded_ask_between, session, question, since_us, until_us, on_token, user_data, answer);
}

int vicort_ask_constrained(vicort_session *session, const char *question, int64_t since_us, int64_t until_us,
                           const vicort_constraint *constraint, vicort_token_callback on_token, void *user_data,
                           double *probabilities, vicort_answer *answer) {
    NEED_SESSION(session);
    NEED(question);
    NEED(on_token);
    if (constraint && constraint->choice_count) NEED(constraint->choices);
    HAND_OVER(embedded_ask_constrained, session, question, since_us, until_us, constraint, on_token, user_data, probabilities, answer);
}

int vicort_get_stats(vicort_session *session, vicort_stats *stats) {
    NEED_SESSION(session);
    NEED(stats);
    HAND_OVER(embedded_get_stats, session, stats);
}

int vicort_close(vicort_session *session) {
    NEED_SESSION(session);
    HAND_OVER(embedded_close, session);
}
