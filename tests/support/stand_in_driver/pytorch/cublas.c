/* A stand-in for libcublas.so and libcublasLt.so: handles, and algorithms that multiply nothing. */

#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default"))) int
#define UNUSED(name) ((void)(name))
#define SUCCESS 0

/* cublasLtMatmulHeuristicResult_t: an algorithm that needs no workspace. */
typedef struct {
    unsigned long long algorithm[8];
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
} Found;

static int new_handle(void **handle) {
    *handle = calloc(1, 64);
    return SUCCESS;
}

API cublasCreate_v2(void **handle) { return new_handle(handle); }

API cublasLtCreate(void **handle) { return new_handle(handle); }

API cublasLtMatmulDescCreate(void **handle) { return new_handle(handle); }

API cublasLtMatrixLayoutCreate(void **handle) { return new_handle(handle); }

API cublasLtMatmulPreferenceCreate(void **handle) { return new_handle(handle); }

static int free_handle(void *handle) {
    free(handle);
    return SUCCESS;
}

API cublasDestroy_v2(void *handle) { return free_handle(handle); }

API cublasLtMatmulDescDestroy(void *handle) { return free_handle(handle); }

API cublasLtMatrixLayoutDestroy(void *handle) { return free_handle(handle); }

API cublasLtMatmulPreferenceDestroy(void *handle) { return free_handle(handle); }

API cublasGetMathMode(void *handle, int *mode) {
    UNUSED(handle);
    *mode = 0;
    return SUCCESS;
}

API cublasGetPointerMode_v2(void *handle, int *mode) {
    UNUSED(handle);
    *mode = 0;
    return SUCCESS;
}

API cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted,
    Found *found, int *count
) {
    UNUSED(handle);
    UNUSED(product);
    UNUSED(a);
    UNUSED(b);
    UNUSED(c);
    UNUSED(d);
    UNUSED(preference);
    UNUSED(wanted);
    memset(found, 0, sizeof *found);
    *count = 1;
    return SUCCESS;
}
