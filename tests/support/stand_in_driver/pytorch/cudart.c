/* A stand-in for CUDA's runtime library, libcudart.so, which PyTorch links to.

   NVIDIA's own refuses a driver that is not NVIDIA's. This one passes the part of the runtime API
   that PyTorch needs on to the stand-in driver. The kernels of PyTorch itself, and of cuBLAS, do
   nothing: they go to their stream as host functions without content, so that a capture holds
   them. */

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
#define API EXPORTED cudaError_t
#define UNUSED(name) ((void)(name))

static __thread cudaError_t last_error;

static cudaError_t done(CUresult result) {
    if (result) last_error = (cudaError_t)result; /* both number their errors alike */
    return (cudaError_t)result;
}

/* A thread has the GPU's context as soon as it calls anything. */
static CUresult ready(void) {
    CUcontext context = NULL;
    CUresult result = cuInit(0);
    if (!result) result = cuCtxGetCurrent(&context);
    if (result || context) return result;
    result = cuDevicePrimaryCtxRetain(&context, 0);
    return result ? result : cuCtxSetCurrent(context);
}

#define PASS_ON(call)                 \
    CUresult result_ = ready();       \
    return done(result_ ? result_ : (call))

/* ---- the GPU ---- */

API cudaGetDeviceCount(int *count) { PASS_ON(cuDeviceGetCount(count)); }

API cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

API cudaSetDevice(int device) {
    PASS_ON(device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS);
}

API cudaDriverGetVersion(int *version) { return done(cuDriverGetVersion(version)); }

API cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

API cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    PASS_ON(cuDeviceGetAttribute(value, (CUdevice_attribute)attribute, device));
}

/* What PyTorch and Inductor read of it. */
API cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    const struct {
        int *field;
        CUdevice_attribute attribute;
    } fields[] = {
        {&found->major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR},
        {&found->minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR},
        {&found->multiProcessorCount, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT},
        {&found->warpSize, CU_DEVICE_ATTRIBUTE_WARP_SIZE},
        {&found->maxThreadsPerBlock, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK},
        {&found->maxThreadsPerMultiProcessor, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR},
        {&found->maxBlocksPerMultiProcessor, CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR},
        {&found->regsPerBlock, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK},
        {&found->regsPerMultiprocessor, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR},
        {&found->l2CacheSize, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE},
        {&found->maxGridSize[0], CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X},
        {&found->maxGridSize[1], CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y},
        {&found->maxGridSize[2], CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z},
    };
    int shared = 0, optin = 0, of_multiprocessor = 0;
    CUresult result = ready();
    memset(found, 0, sizeof *found);
    if (!result) result = cuDeviceGetName(found->name, sizeof found->name, device);
    if (!result) result = cuDeviceTotalMem(&found->totalGlobalMem, device);
    for (size_t i = 0; i < sizeof fields / sizeof *fields && !result; i++)
        result = cuDeviceGetAttribute(fields[i].field, fields[i].attribute, device);
    if (result) return done(result);
    cuDeviceGetAttribute(&shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, device);
    cuDeviceGetAttribute(&optin, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device);
    cuDeviceGetAttribute(
        &of_multiprocessor, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, device
    );
    found->sharedMemPerBlock = (size_t)shared;
    found->sharedMemPerBlockOptin = (size_t)optin;
    found->sharedMemPerMultiprocessor = (size_t)of_multiprocessor;
    return cudaSuccess;
}

API cudaDeviceGetPCIBusId(char *name, int size, int device) {
    snprintf(name, (size_t)size, "0000:%02x:00.0", device);
    return cudaSuccess;
}

API cudaDeviceCanAccessPeer(int *can, int device, int other) {
    UNUSED(device);
    UNUSED(other);
    *can = 0;
    return cudaSuccess;
}

API cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    PASS_ON(cuCtxGetStreamPriorityRange(least, greatest));
}

API cudaDeviceSynchronize(void) { PASS_ON(cuCtxSynchronize()); }

/* ---- errors ---- */

API cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

API cudaPeekAtLastError(void) { return last_error; }

EXPORTED const char *cudaGetErrorName(cudaError_t error) {
    const char *name;
    cuGetErrorName((CUresult)error, &name);
    return name;
}

EXPORTED const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

/* ---- streams and events ---- */

API cudaStreamCreate(cudaStream_t *stream) { PASS_ON(cuStreamCreate(stream, CU_STREAM_DEFAULT)); }

API cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    PASS_ON(cuStreamCreateWithPriority(stream, flags, priority));
}

API cudaStreamDestroy(cudaStream_t stream) { PASS_ON(cuStreamDestroy(stream)); }

API cudaStreamQuery(cudaStream_t stream) { PASS_ON(cuStreamQuery(stream)); }

API cudaStreamSynchronize(cudaStream_t stream) { PASS_ON(cuStreamSynchronize(stream)); }

API cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    PASS_ON(cuStreamGetPriority(stream, priority));
}

API cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    PASS_ON(cuStreamWaitEvent(stream, event, flags));
}

API cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    PASS_ON(cuLaunchHostFunc(stream, function, argument));
}

API cudaEventCreate(cudaEvent_t *event) { PASS_ON(cuEventCreate(event, CU_EVENT_DEFAULT)); }

API cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    PASS_ON(cuEventCreate(event, flags));
}

API cudaEventDestroy(cudaEvent_t event) { PASS_ON(cuEventDestroy(event)); }

API cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    PASS_ON(cuEventRecord(event, stream));
}

API cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    UNUSED(flags);
    PASS_ON(cuEventRecord(event, stream));
}

API cudaEventQuery(cudaEvent_t event) { PASS_ON(cuEventQuery(event)); }

API cudaEventSynchronize(cudaEvent_t event) { PASS_ON(cuEventSynchronize(event)); }

API cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    PASS_ON(cuEventElapsedTime(milliseconds, start, end));
}

/* ---- captures ---- */

API cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    PASS_ON(cuStreamIsCapturing(stream, (CUstreamCaptureStatus *)status));
}

API cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
    cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
    size_t *count
) {
    cuuint64_t capture = 0;
    CUresult result = ready();
    if (!result)
        result = cuStreamGetCaptureInfo(
            stream, (CUstreamCaptureStatus *)status, &capture, graph, nodes,
            (const CUgraphEdgeData **)edges, count
        );
    if (id) *id = capture;
    return done(result);
}

API cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    PASS_ON(cuStreamBeginCapture(stream, (CUstreamCaptureMode)mode));
}

API cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    PASS_ON(cuStreamEndCapture(stream, graph));
}

API cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    PASS_ON(cuThreadExchangeStreamCaptureMode((CUstreamCaptureMode *)mode));
}

API cudaGraphInstantiateWithFlags(
    cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags
) {
    PASS_ON(cuGraphInstantiateWithFlags(executable, graph, flags));
}

API cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    PASS_ON(cuGraphLaunch(executable, stream));
}

API cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    PASS_ON(cuGraphGetNodes(graph, nodes, count));
}

API cudaGraphDestroy(cudaGraph_t graph) { PASS_ON(cuGraphDestroy(graph)); }

API cudaGraphExecDestroy(cudaGraphExec_t executable) { PASS_ON(cuGraphExecDestroy(executable)); }

/* ---- memory ---- */

API cudaMalloc(void **pointer, size_t size) { PASS_ON(cuMemAlloc((CUdeviceptr *)pointer, size)); }

API cudaFree(void *pointer) { PASS_ON(cuMemFree((CUdeviceptr)pointer)); }

API cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    PASS_ON(cuMemHostAlloc(pointer, size, flags));
}

API cudaFreeHost(void *pointer) { PASS_ON(cuMemFreeHost(pointer)); }

API cudaMemGetInfo(size_t *free_bytes, size_t *total) { PASS_ON(cuMemGetInfo(free_bytes, total)); }

API cudaMemcpyAsync(
    void *target, const void *source, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream
) {
    UNUSED(kind);
    PASS_ON(cuMemcpyAsync((CUdeviceptr)target, (CUdeviceptr)source, size, stream));
}

API cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind) {
    return cudaMemcpyAsync(target, source, size, kind, NULL);
}

API cudaMemsetAsync(void *target, int byte, size_t size, cudaStream_t stream) {
    PASS_ON(cuMemsetD8Async((CUdeviceptr)target, (unsigned char)byte, size, stream));
}

API cudaMemset(void *target, int byte, size_t size) {
    return cudaMemsetAsync(target, byte, size, NULL);
}

API cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    unsigned type = 0;
    CUresult result = ready();
    *found = (struct cudaPointerAttributes){.type = cudaMemoryTypeUnregistered, .device = -2};
    if (result) return done(result);
    if (cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)pointer))
        return cudaSuccess; /* memory of the host that CUDA does not know */
    found->type = type == CU_MEMORYTYPE_DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    found->device = 0;
    found->devicePointer = (void *)pointer;
    found->hostPointer = type == CU_MEMORYTYPE_DEVICE ? NULL : (void *)pointer;
    return cudaSuccess;
}

/* ---- PyTorch's own kernels, which do nothing ---- */

static void do_nothing(void *argument) { UNUSED(argument); }

static cudaError_t launch_nothing(cudaStream_t stream) {
    PASS_ON(cuLaunchHostFunc(stream, do_nothing, NULL));
}

API cudaLaunchKernel(
    const void *kernel, dim3 grid, dim3 block, void **parameters, size_t shared_bytes,
    cudaStream_t stream
) {
    UNUSED(kernel);
    UNUSED(grid);
    UNUSED(block);
    UNUSED(parameters);
    UNUSED(shared_bytes);
    return launch_nothing(stream);
}

API cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **parameters) {
    UNUSED(kernel);
    UNUSED(parameters);
    return launch_nothing(config->stream);
}

API cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
    UNUSED(kernel);
    *found = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 32};
    return cudaSuccess;
}

API cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value) {
    UNUSED(kernel);
    UNUSED(attribute);
    UNUSED(value);
    return cudaSuccess;
}

API cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *count, const void *kernel, int threads, size_t shared_bytes, unsigned flags
) {
    UNUSED(kernel);
    UNUSED(threads);
    UNUSED(shared_bytes);
    UNUSED(flags);
    *count = 1;
    return cudaSuccess;
}

API cudaOccupancyMaxActiveBlocksPerMultiprocessor(
    int *count, const void *kernel, int threads, size_t shared_bytes
) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        count, kernel, threads, shared_bytes, 0
    );
}

API cudaGetDriverEntryPointByVersion(
    const char *symbol, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *found
) {
    CUdriverProcAddressQueryResult here;
    CUresult result = cuGetProcAddress(symbol, function, (int)version, flags, &here);
    if (found) *found = (enum cudaDriverEntryPointQueryResult)here;
    return done(result);
}

/* ---- what nvcc's code calls when a library of kernels is loaded, and at a launch ---- */

EXPORTED void **__cudaRegisterFatBinary(void *binary) {
    UNUSED(binary);
    return calloc(1, sizeof(void *));
}

EXPORTED void __cudaRegisterFatBinaryEnd(void **handle) { UNUSED(handle); }

EXPORTED void __cudaUnregisterFatBinary(void **handle) { free(handle); }

EXPORTED void __cudaRegisterFunction(void) {}

EXPORTED void __cudaRegisterVar(void) {}

EXPORTED char __cudaInitModule(void **handle) {
    UNUSED(handle);
    return 1;
}

static __thread struct {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
} launch;

EXPORTED unsigned __cudaPushCallConfiguration(
    dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream
) {
    launch.grid = grid;
    launch.block = block;
    launch.shared_bytes = shared_bytes;
    launch.stream = stream;
    return 0;
}

API __cudaPopCallConfiguration(
    dim3 *grid, dim3 *block, size_t *shared_bytes, cudaStream_t *stream
) {
    *grid = launch.grid;
    *block = launch.block;
    *shared_bytes = launch.shared_bytes;
    *stream = launch.stream;
    return cudaSuccess;
}

API __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

API __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void **parameters, size_t shared_bytes,
    cudaStream_t stream
) {
    return cudaLaunchKernel(kernel, grid, block, parameters, shared_bytes, stream);
}
