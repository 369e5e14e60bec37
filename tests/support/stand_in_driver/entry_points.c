/* How libraries find the driver's functions, and the names of its results. */

#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define NAMED(result) {result, #result}

static const struct {
    CUresult result;
    const char *name;
} results[] = {
    NAMED(CUDA_SUCCESS),
    NAMED(CUDA_ERROR_INVALID_VALUE),
    NAMED(CUDA_ERROR_OUT_OF_MEMORY),
    NAMED(CUDA_ERROR_NOT_INITIALIZED),
    NAMED(CUDA_ERROR_DEVICE_UNAVAILABLE),
    NAMED(CUDA_ERROR_NO_DEVICE),
    NAMED(CUDA_ERROR_INVALID_DEVICE),
    NAMED(CUDA_ERROR_INVALID_IMAGE),
    NAMED(CUDA_ERROR_INVALID_CONTEXT),
    NAMED(CUDA_ERROR_ECC_UNCORRECTABLE),
    NAMED(CUDA_ERROR_FILE_NOT_FOUND),
    NAMED(CUDA_ERROR_INVALID_HANDLE),
    NAMED(CUDA_ERROR_ILLEGAL_STATE),
    NAMED(CUDA_ERROR_NOT_FOUND),
    NAMED(CUDA_ERROR_ILLEGAL_ADDRESS),
    NAMED(CUDA_ERROR_LAUNCH_FAILED),
    NAMED(CUDA_ERROR_NOT_SUPPORTED),
    NAMED(CUDA_ERROR_SYSTEM_NOT_READY),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_ISOLATION),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD),
    NAMED(CUDA_ERROR_CAPTURED_EVENT),
    NAMED(CUDA_ERROR_UNKNOWN),
};

API cuGetErrorName(CUresult result, const char **name) {
    *name = "CUDA_ERROR_UNKNOWN";
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        if (results[i].result == result) *name = results[i].name;
    return CUDA_SUCCESS;
}

API cuGetErrorString(CUresult result, const char **text) {
    UNUSED(result);
    *text = "as the stand-in driver says";
    return CUDA_SUCCESS;
}

/* NVIDIA's own CUDART asks for tables that are not public, to check that the driver is NVIDIA's.
   None is offered: libraries that bring CUDART along end here. */
API cuGetExportTable(const void **table, const CUuuid *name) {
    UNUSED(name);
    *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}

/* The function of that name, the newest version that is here: cuMemFree may be cuMemFree_v2. */
API cuGetProcAddress_v2(
    const char *symbol, void **function, int version, cuuint64_t flags,
    CUdriverProcAddressQueryResult *found
) {
    static const char *versions[] = {"_v2", ""};
    static void *own;
    UNUSED(version);
    UNUSED(flags);
    if (!own) {
        Dl_info where;
        dladdr(&results, &where);
        own = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }
    *function = NULL;
    for (size_t i = 0; i < sizeof versions / sizeof *versions && !*function; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", symbol, versions[i]);
        *function = dlsym(own, name);
    }
    if (found)
        *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function || found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
