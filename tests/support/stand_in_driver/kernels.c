/* Cubins, and launches of their kernels: a test runs them, with the parameters that the cubin
   lists. */

#include "driver.h"

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARAMETERS 64
#define MAX_KERNELS 16
#define PARAMETER_BYTES 4096
#define USUAL_SHARED_BYTES (48 << 10) /* that a kernel may use without asking */
#define MOST_SHARED_BYTES (227 << 10)
/* Of a kernel's section .nv.info: records of a format, an attribute and a size. */
#define FORMAT_SIZED 4
#define ATTRIBUTE_PARAMETER 0x17

typedef struct {
    int offset, size;
} Parameter;

struct CUkern_st {
    char name[128];
    Parameter parameters[MAX_PARAMETERS];
    int parameter_count;
    int shared_bytes; /* dynamic, that were asked for */
};
struct CUlib_st {
    struct CUkern_st kernels[MAX_KERNELS];
    int kernel_count;
};
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

/* ---- cubins ---- */

/* Reads where each parameter lies, from the records of a kernel's section .nv.info. */
static void read_parameters(CUkernel kernel, const unsigned char *at, const unsigned char *end) {
    while (at + 4 <= end) {
        unsigned size = at[0] == FORMAT_SIZED ? (unsigned)(at[2] | at[3] << 8) : 0;
        if (at[0] == FORMAT_SIZED && at[1] == ATTRIBUTE_PARAMETER) {
            int ordinal = at[8] | at[9] << 8, offset = at[10] | at[11] << 8;
            unsigned packed;
            memcpy(&packed, at + 12, 4);
            if (ordinal >= MAX_PARAMETERS) abort();
            kernel->parameters[ordinal] = (Parameter){offset, (int)(packed >> 18)};
            if (ordinal >= kernel->parameter_count) kernel->parameter_count = ordinal + 1;
        }
        at += 4 + size;
    }
}

static CUkernel find_kernel(CUlibrary library, const char *name) {
    for (int i = 0; i < library->kernel_count; i++)
        if (!strcmp(library->kernels[i].name, name)) return &library->kernels[i];
    return NULL;
}

/* Each kernel has a section .text.NAME, and its parameters are in .nv.info.NAME. */
static void read_cubin(CUlibrary library, const char *cubin) {
    const Elf64_Ehdr *header = (const void *)cubin;
    const Elf64_Shdr *sections = (const void *)(cubin + header->e_shoff);
    const char *names = cubin + sections[header->e_shstrndx].sh_offset;
    for (int i = 0; i < header->e_shnum; i++) {
        const char *name = names + sections[i].sh_name;
        if (strncmp(name, ".text.", 6) || library->kernel_count == MAX_KERNELS) continue;
        CUkernel kernel = &library->kernels[library->kernel_count++];
        snprintf(kernel->name, sizeof kernel->name, "%s", name + 6);
        kernel->shared_bytes = USUAL_SHARED_BYTES;
    }
    for (int i = 0; i < header->e_shnum; i++) {
        const char *name = names + sections[i].sh_name;
        if (strncmp(name, ".nv.info.", 9)) continue;
        CUkernel kernel = find_kernel(library, name + 9);
        const unsigned char *start = (const void *)(cubin + sections[i].sh_offset);
        if (kernel) read_parameters(kernel, start, start + sections[i].sh_size);
    }
}

API cuLibraryLoadData(
    CUlibrary *library, const void *code, CUjit_option *options, void **values, unsigned count,
    CUlibraryOption *library_options, void **library_values, unsigned library_count
) {
    ENTER(HANDLE);
    UNUSED(options);
    UNUSED(values);
    UNUSED(count);
    UNUSED(library_options);
    UNUSED(library_values);
    UNUSED(library_count);
    CUresult result = check_no_capture(__func__);
    if (result) return result;
    if (memcmp(code, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
    *library = calloc(1, sizeof **library);
    read_cubin(*library, code);
    counts.libraries++;
    return CUDA_SUCCESS;
}

API cuLibraryUnload(CUlibrary library) {
    ENTER(HANDLE);
    free(library);
    counts.libraries--;
    return CUDA_SUCCESS;
}

API cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    ENTER(HANDLE);
    *kernel = find_kernel(library, name);
    return *kernel ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API cuKernelSetAttribute(
    CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device
) {
    ENTER(HANDLE);
    UNUSED(device);
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "kernel attribute %d", (int)attribute);
    if (value > MOST_SHARED_BYTES)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%d bytes of shared memory", value);
    kernel->shared_bytes = value;
    return CUDA_SUCCESS;
}

/* ---- launches ---- */

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

API cuLaunchKernelEx(
    const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra
) {
    ENTER(CONTEXT);
    UNUSED(extra);
    CUkernel kernel = (CUkernel)function; /* cuda.core hands over kernels for functions */
    CUresult result = check_stream(config->hStream, __func__);
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
    return submit(config->hStream, (Work){.kind = KERNEL, .launch = launch});
}
