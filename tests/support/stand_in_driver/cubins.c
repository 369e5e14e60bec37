/* Cubins, as libraries or as modules, and what they say of their kernels. */

#include "driver.h"

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_KERNELS 16
#define MAX_CUBIN (64 << 20)
#define USUAL_SHARED_BYTES (48 << 10) /* that a kernel may use without asking */
#define MOST_SHARED_BYTES (227 << 10)
/* Of a kernel's section .nv.info: records of a format, an attribute and a size. */
#define FORMAT_SIZED 4
#define ATTRIBUTE_PARAMETER 0x17

struct CUlib_st {
    struct CUkern_st kernels[MAX_KERNELS];
    int kernel_count;
};

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

static CUresult load(CUlibrary *library, const void *code) {
    CUresult result = check_no_capture("the loading of a cubin");
    if (result) return result;
    if (memcmp(code, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
    *library = calloc(1, sizeof **library);
    read_cubin(*library, code);
    counts.libraries++;
    return CUDA_SUCCESS;
}

static CUresult unload(CUlibrary library) {
    free(library);
    counts.libraries--;
    return CUDA_SUCCESS;
}

static CUresult set_attribute(CUkernel kernel, CUfunction_attribute attribute, int value) {
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "kernel attribute %d", (int)attribute);
    if (value > MOST_SHARED_BYTES)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%d bytes of shared memory", value);
    kernel->shared_bytes = value;
    return CUDA_SUCCESS;
}

/* ---- libraries ---- */

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
    return load(library, code);
}

API cuLibraryUnload(CUlibrary library) {
    ENTER(HANDLE);
    return unload(library);
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
    return set_attribute(kernel, attribute, value);
}

/* ---- modules, which belong to a context ---- */

API cuModuleLoadData(CUmodule *module, const void *code) {
    ENTER(CONTEXT);
    return load((CUlibrary *)module, code);
}

API cuModuleLoad(CUmodule *module, const char *path) {
    ENTER(CONTEXT);
    FILE *file = fopen(path, "rb");
    if (!file) return refuse(CUDA_ERROR_FILE_NOT_FOUND, "%s cannot be read", path);
    char *code = calloc(1, MAX_CUBIN);
    size_t size = fread(code, 1, MAX_CUBIN, file);
    fclose(file);
    CUresult result = size < MAX_CUBIN ? load((CUlibrary *)module, code) : CUDA_ERROR_INVALID_IMAGE;
    free(code);
    return result;
}

API cuModuleUnload(CUmodule module) {
    ENTER(HANDLE);
    return unload((CUlibrary)module);
}

API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    ENTER(CONTEXT);
    *function = (CUfunction)find_kernel((CUlibrary)module, name);
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    ENTER(CONTEXT);
    return set_attribute((CUkernel)function, attribute, value);
}

/* No kernel has static shared memory or spills, as far as this is told. */
API cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    ENTER(CONTEXT);
    switch ((int)attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
        case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            *value = ((CUkernel)function)->shared_bytes;
            break;
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

API cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) {
    ENTER(CONTEXT);
    UNUSED(function);
    UNUSED(config);
    return CUDA_SUCCESS;
}
