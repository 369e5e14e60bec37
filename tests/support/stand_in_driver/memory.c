/* Device memory and pinned memory, both of the host. */

#include "driver.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 512
#define GARBAGE 0xFF /* what new memory holds: NaN, -1 */
#define MOST_GARBAGE ((size_t)64 << 20)

typedef struct Block {
    char *start;
    size_t size;
    Place place;
    struct Block *next;
} Block;
static Block *blocks;

Place place_of(const void *pointer, size_t size) {
    const char *start = pointer;
    for (Block *block = blocks; block; block = block->next)
        if (start >= block->start && start + size <= block->start + block->size)
            return block->place;
    return NOWHERE;
}

static CUresult allocate(void **pointer, size_t size, Place place) {
    long long *bytes = place == DEVICE ? &counts.device_bytes : &counts.pinned_bytes;
    long long most = place == DEVICE ? switches.total_memory - switches.other_memory
                                     : switches.pinned_memory;
    if (!size) return refuse(CUDA_ERROR_INVALID_VALUE, "an allocation of no bytes");
    if (*bytes + (long long)size > most) return CUDA_ERROR_OUT_OF_MEMORY;
    if (posix_memalign(pointer, ALIGNMENT, size)) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*pointer, GARBAGE, size < MOST_GARBAGE ? size : MOST_GARBAGE);
    Block *block = malloc(sizeof *block);
    *block = (Block){*pointer, size, place, blocks};
    blocks = block;
    *bytes += (long long)size;
    ++*(place == DEVICE ? &counts.device_blocks : &counts.pinned_blocks);
    return CUDA_SUCCESS;
}

static CUresult release(void *pointer, Place place) {
    for (Block **link = &blocks; *link; link = &(*link)->next) {
        Block *block = *link;
        if (block->start != pointer || block->place != place) continue;
        *link = block->next;
        *(place == DEVICE ? &counts.device_bytes : &counts.pinned_bytes) -= (long long)block->size;
        --*(place == DEVICE ? &counts.device_blocks : &counts.pinned_blocks);
        memset(block->start, GARBAGE, block->size < MOST_GARBAGE ? block->size : MOST_GARBAGE);
        free(block->start);
        free(block);
        return CUDA_SUCCESS;
    }
    return refuse(CUDA_ERROR_INVALID_VALUE, "memory is freed that was not allocated so");
}

API cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER(CONTEXT);
    *total = (size_t)switches.total_memory;
    *free_bytes = *total - (size_t)(switches.other_memory + counts.device_bytes);
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
    ENTER(CONTEXT);
    CUresult result = check_no_capture(__func__);
    return result ? result : allocate((void **)pointer, size, DEVICE);
}

API cuMemFree_v2(CUdeviceptr pointer) {
    ENTER(CONTEXT);
    CUresult result = check_no_capture(__func__);
    if (result || !pointer) return result;
    return release((void *)pointer, DEVICE);
}

API cuMemAllocHost_v2(void **pointer, size_t size) {
    ENTER(CONTEXT);
    CUresult result = check_no_capture(__func__);
    return result ? result : allocate(pointer, size, PINNED);
}

API cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    ENTER(CONTEXT);
    UNUSED(flags);
    CUresult result = check_no_capture(__func__);
    return result ? result : allocate(pointer, size, PINNED);
}

API cuMemFreeHost(void *pointer) {
    ENTER(CONTEXT);
    CUresult result = check_no_capture(__func__);
    return result ? result : release(pointer, PINNED);
}

/* A real driver records this in a capture, too; vicort's graphs must hold no allocation. */
API cuMemAllocAsync(CUdeviceptr *pointer, size_t size, CUstream stream) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    if (!result) result = check_no_capture(__func__);
    return result ? result : allocate((void **)pointer, size, DEVICE);
}

API cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    if (!result) result = check_no_capture(__func__);
    return result ? result : release((void *)pointer, DEVICE);
}

/* Where an address is; nothing is managed, and memory has the same address on host and device. */
API cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    ENTER(CONTEXT);
    Place place = place_of((void *)pointer, 1);
    if (!place) return CUDA_ERROR_INVALID_VALUE;
    switch ((int)attribute) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            *(unsigned *)value = place == DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_CONTEXT:
            *(CUcontext *)value = &primary_context;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
            *(CUdeviceptr *)value = pointer;
            return CUDA_SUCCESS;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
            *(int *)value = 0;
            return CUDA_SUCCESS;
        default:
            return refuse(CUDA_ERROR_NOT_SUPPORTED, "pointer attribute %d", (int)attribute);
    }
}

/* ---- copies ---- */

/* A real driver also copies pageable memory, but makes the host wait: vicort must not ask for
   it. */
static CUresult check_place(const void *pointer, size_t size, const char *what) {
    if (place_of(pointer, size) || switches.lenient) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_INVALID_VALUE, "%s of a copy is not device or pinned memory", what);
}

API cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    if (!result) result = check_place((void *)target, size, "the target");
    if (!result) result = check_place((void *)source, size, "the source");
    if (result) return result;
    Work work = {.kind = COPY, .target = (void *)target, .source = (void *)source, .size = size};
    return submit(stream, work);
}

API cuMemsetD8Async(CUdeviceptr target, unsigned char byte, size_t size, CUstream stream) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    if (result) return result;
    if (place_of((void *)target, size) != DEVICE)
        return refuse(CUDA_ERROR_INVALID_VALUE, "bytes are filled that are not device memory");
    Work work = {.kind = FILL, .target = (void *)target, .byte = byte, .size = size};
    return submit(stream, work);
}
