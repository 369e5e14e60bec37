/* The driver, its GPUs, and the primary context of the one that can be opened. */

#include "driver.h"

#include <stdio.h>
#include <string.h>

#define MAX_DEPTH 64

struct CUctx_st {
    int retained;
};
struct CUctx_st primary_context;
static int initialised;
static __thread CUcontext stack[MAX_DEPTH]; /* of this thread; the last one is current */
static __thread int depth;

int is_initialised(void) { return initialised; }

CUcontext current_context(void) { return depth ? stack[depth - 1] : NULL; }

API cuInit(unsigned flags) {
    ENTER(BEFORE_INIT);
    UNUSED(flags);
    if (switches.init_result) return (CUresult)switches.init_result;
    if (!switches.devices) return CUDA_ERROR_NO_DEVICE;
    initialised = 1;
    return CUDA_SUCCESS;
}

API cuDriverGetVersion(int *version) {
    ENTER(BEFORE_INIT);
    *version = (int)switches.driver_version;
    return CUDA_SUCCESS;
}

API cuDeviceGetCount(int *count) {
    ENTER(QUERY);
    *count = (int)switches.devices;
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(QUERY);
    if (ordinal < 0 || ordinal >= switches.devices) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTER(QUERY);
    UNUSED(device);
    *bytes = (size_t)switches.total_memory;
    return CUDA_SUCCESS;
}

API cuDeviceGetName(char *name, int size, CUdevice device) {
    ENTER(QUERY);
    UNUSED(device);
    snprintf(name, (size_t)size, "stand-in GPU");
    return CUDA_SUCCESS;
}

/* Attributes that cuda.core, PyTorch and Triton need; 0 for all others. */
static int attribute_of(CUdevice_attribute attribute) {
    switch ((int)attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return (int)switches.capability / 10;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return (int)switches.capability % 10;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return (int)switches.multiprocessors;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 2048;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 32;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 64 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7FFFFFFF;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 50 << 20;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return 228 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 227 << 10;
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return 1;
        default: return 0;
    }
}

API cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(QUERY);
    UNUSED(device);
    *value = attribute_of(attribute);
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(QUERY);
    UNUSED(device);
    if (switches.context_result) return (CUresult)switches.context_result;
    primary_context.retained++;
    *context = &primary_context;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(QUERY);
    UNUSED(device);
    primary_context.retained--;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *is_active) {
    ENTER(QUERY);
    UNUSED(device);
    *flags = 0;
    *is_active = primary_context.retained > 0;
    return CUDA_SUCCESS;
}

API cuCtxSynchronize(void) {
    ENTER(CONTEXT);
    return check_no_capture(__func__);
}

API cuCtxGetCurrent(CUcontext *context) {
    ENTER(QUERY);
    *context = current_context();
    return CUDA_SUCCESS;
}

API cuCtxSetCurrent(CUcontext context) {
    ENTER(HANDLE);
    if (!depth) depth = 1;
    stack[depth - 1] = context;
    return CUDA_SUCCESS;
}

/* Of Triton's printing, which no kernel does here. */
API cuCtxGetLimit(size_t *value, CUlimit limit) {
    ENTER(CONTEXT);
    UNUSED(limit);
    *value = 1 << 20;
    return CUDA_SUCCESS;
}

API cuCtxSetLimit(CUlimit limit, size_t value) {
    ENTER(CONTEXT);
    UNUSED(limit);
    UNUSED(value);
    return CUDA_SUCCESS;
}

API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER(CONTEXT);
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}
