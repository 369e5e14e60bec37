/* What all calls share: the lock, the count, and failures that a test asks for. */

#include "driver.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_NAMES 256
#define MAX_REFUSALS 100
#define LINE 200

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static CUresult broken; /* what a device that failed answers */
static struct {
    char function[64]; /* the call that fails; "" = any */
    long long after;   /* calls until then */
    CUresult result;
    int lasting; /* whether the device is lost with it */
} fault;
static const char *names[MAX_NAMES]; /* of the functions that were called */
static int name_count;
static char refusals[MAX_REFUSALS * LINE], called[MAX_NAMES * 64];
static int refusal_count;

void lock(void) { pthread_mutex_lock(&mutex); }

void unlock(void) { pthread_mutex_unlock(&mutex); }

void leave(int *inside) {
    UNUSED(inside);
    unlock();
}

static void note_name(const char *function) {
    for (int i = 0; i < name_count; i++)
        if (names[i] == function) return;
    if (name_count < MAX_NAMES) names[name_count++] = function;
}

/* Whether this call is the one that a test makes fail. */
static int is_due(const char *function) {
    if (fault.result == CUDA_SUCCESS) return 0;
    if (fault.function[0] && strcmp(fault.function, function)) return 0;
    return fault.after-- == 0;
}

static CUresult check_need(const char *function, Need need) {
    if (need == BEFORE_INIT) return CUDA_SUCCESS;
    if (!is_initialised()) return refuse(CUDA_ERROR_NOT_INITIALIZED, "%s before cuInit", function);
    if (need == QUERY) return CUDA_SUCCESS;
    counts.calls++;
    if (broken) return broken;
    if (is_due(function)) {
        CUresult result = fault.result;
        if (fault.lasting) broken = result;
        fault.result = CUDA_SUCCESS;
        return result;
    }
    if (need == CONTEXT && !current_context())
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "%s without a context", function);
    return CUDA_SUCCESS;
}

CUresult enter(const char *function, Need need) {
    lock();
    note_name(function);
    CUresult result = check_need(function, need);
    if (result != CUDA_SUCCESS) unlock();
    return result;
}

void break_device(CUresult result) {
    if (!broken) broken = result;
}

CUresult refuse(CUresult result, const char *format, ...) {
    if (refusal_count < MAX_REFUSALS) {
        char *line = refusals + strlen(refusals);
        va_list values;
        va_start(values, format);
        vsnprintf(line, LINE - 1, format, values);
        va_end(values);
        strcat(line, "\n");
        refusal_count++;
    }
    return result;
}

/* ---- for the tests ---- */

/* The call after `after` more of them fails. function: which calls count, NULL = all; lasting: the
   device is lost, as after an illegal address: all later calls fail too. */
EXPORTED void stand_in_fail(const char *function, long long after, int result, int lasting) {
    lock();
    snprintf(fault.function, sizeof fault.function, "%s", function ? function : "");
    fault.after = after;
    fault.result = (CUresult)result;
    fault.lasting = lasting;
    unlock();
}

/* A device that failed works again, as it would for a new process. */
EXPORTED void stand_in_recover(void) {
    lock();
    broken = fault.result = CUDA_SUCCESS;
    end_captures();
    refusals[0] = 0;
    refusal_count = 0;
    unlock();
}

/* Why calls were refused since then, a line each. */
EXPORTED const char *stand_in_refusals(void) { return refusals; }

/* The functions that were called so far, a line each. */
EXPORTED const char *stand_in_called(void) {
    lock();
    called[0] = 0;
    for (int i = 0; i < name_count; i++) {
        strncat(called, names[i], 62);
        strcat(called, "\n");
    }
    unlock();
    return called;
}
