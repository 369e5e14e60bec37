/* Launches of kernels: a test runs them, with the parameters that the cubin lists. */

#include "driver.h"

#include <stdlib.h>
#include <string.h>

struct Launch {
    CUkernel kernel;
    unsigned grid[3], block[3], shared_bytes;
    char values[PARAMETER_BYTES];
};

/* Returns 0 if the launch is good. values, sizes: of `count` parameters. */
typedef int (*RunKernel)(
    const char *name, const unsigned *grid, const unsigned *block, unsigned shared_bytes,
    const void **values, const int *sizes, int count
);
static RunKernel run_kernel;

/* Who runs the kernels; without this they do nothing. */
EXPORTED void stand_in_run_kernels(RunKernel run) { run_kernel = run; }

void free_launch(Launch *launch) { free(launch); }

CUresult run_launch(const Launch *launch) {
    const struct CUkern_st *kernel = launch->kernel;
    const void *values[MAX_PARAMETERS];
    int sizes[MAX_PARAMETERS];
    if (!run_kernel) return CUDA_SUCCESS;
    for (int i = 0; i < kernel->parameter_count; i++) {
        values[i] = launch->values + kernel->parameters[i].offset;
        sizes[i] = kernel->parameters[i].size;
    }
    unlock();
    int failed = run_kernel(
        kernel->name, launch->grid, launch->block, launch->shared_bytes, values, sizes,
        kernel->parameter_count
    );
    lock();
    return failed ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

static CUresult check_sizes(const CUlaunchConfig *config, CUkernel kernel) {
    unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
    if (!config->gridDimX || !config->gridDimY || !config->gridDimZ || !threads)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: an empty grid or block", kernel->name);
    if (config->gridDimY > 65535 || config->gridDimZ > 65535 || threads > 1024)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: too large a grid or block", kernel->name);
    if (config->sharedMemBytes > (unsigned)kernel->shared_bytes)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: shared memory not asked for", kernel->name);
    return CUDA_SUCCESS;
}

static CUresult launch_kernel(
    const CUlaunchConfig *config, CUkernel kernel, void **parameters, const char *function
) {
    CUstream stream = config->hStream;
    CUresult result = check_stream(&stream, function);
    if (!result) result = check_sizes(config, kernel);
    if (result) return result;
    Launch *launch = calloc(1, sizeof *launch);
    launch->kernel = kernel;
    launch->shared_bytes = config->sharedMemBytes;
    memcpy(launch->grid, &config->gridDimX, sizeof launch->grid);
    memcpy(launch->block, &config->blockDimX, sizeof launch->block);
    for (int i = 0; i < kernel->parameter_count; i++) {
        Parameter at = kernel->parameters[i];
        if (at.offset + at.size > PARAMETER_BYTES) abort();
        memcpy(launch->values + at.offset, parameters[i], (size_t)at.size);
    }
    counts.launches++;
    return submit(stream, (Work){.kind = KERNEL, .launch = launch});
}

API cuLaunchKernelEx(
    const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra
) {
    ENTER(CONTEXT);
    UNUSED(extra);
    return launch_kernel(config, (CUkernel)function, parameters, __func__);
}

API cuLaunchKernel(
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters,
    void **extra
) {
    ENTER(CONTEXT);
    UNUSED(extra);
    CUlaunchConfig config = {
        .gridDimX = grid_x,
        .gridDimY = grid_y,
        .gridDimZ = grid_z,
        .blockDimX = block_x,
        .blockDimY = block_y,
        .blockDimZ = block_z,
        .sharedMemBytes = shared_bytes,
        .hStream = stream,
    };
    return launch_kernel(&config, (CUkernel)function, parameters, __func__);
}
