/* A stand-in for NVIDIA's driver, libcuda.so.1, for tests without a GPU.

   It answers the part of the public driver API that vicort, cuda.core, PyTorch and Triton call.
   Device memory is host memory, work that is put on a stream is done before the call returns, and what a stream
   captures is recorded and replayed. It checks what a real driver checks: a context that is current
   on the calling thread, known handles, addresses inside allocations, the parameters that a
   kernel's own cubin lists, shared memory that was asked for, and what is illegal while a stream
   captures. It does not show anything about order, time or the numbers of kernels.

   Every call counts, so that a test can make the n-th one fail. */

#ifndef STAND_IN_DRIVER_H
#define STAND_IN_DRIVER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define __CUDA_API_VERSION_INTERNAL /* cuda.h gives functions their names with versions */
#include <cuda.h>
#include <stddef.h>
#include <sys/types.h>

#define EXPORTED __attribute__((visibility("default")))
#define API EXPORTED CUresult CUDAAPI
#define UNUSED(name) ((void)(name))

/* ---- calls: calls.c ---- */

typedef enum {
    BEFORE_INIT, /* may be called before cuInit, and whatever has happened to the device */
    QUERY,       /* needs cuInit alone */
    HANDLE,      /* fails once the device has failed */
    CONTEXT      /* also needs a context that is current on this thread */
} Need;

/* Begins a call: takes the lock, or returns why the call fails. */
CUresult enter(const char *function, Need need);
void leave(int *inside);

/* First line of every call. The lock is held until the call returns. */
#define ENTER(need)                                   \
    CUresult refused_ = enter(__func__, need);        \
    if (refused_ != CUDA_SUCCESS) return refused_;    \
    __attribute__((cleanup(leave))) int inside_ = 1;  \
    UNUSED(inside_)

/* Around work that calls back into the tests, which may call the driver on other threads. */
void unlock(void);
void lock(void);

/* The device has failed: from now on all calls that need it return this. */
void break_device(CUresult result);

/* Notes for the tests why a call is refused; returns `result`. */
CUresult refuse(CUresult result, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- switches and counts, which tests set and read by name: switches.c ---- */

typedef struct {
    long long driver_version;  /* of CUDA: 13000 is 13.0 */
    long long init_result;     /* of cuInit */
    long long context_result;  /* of retaining the primary context */
    long long devices;
    long long capability;      /* 90 is 9.0 */
    long long multiprocessors;
    long long total_memory;    /* bytes of the device */
    long long other_memory;    /* bytes that other processes hold */
    long long pinned_memory;   /* bytes that can be page-locked */
    long long refuse_captures; /* whether captures end as if something illegal was in them */
    long long lenient;         /* whether the default stream and pageable copies, which vicort must
                                  not use, are allowed: PyTorch uses both */
} Switches;

typedef struct {
    long long calls; /* that need a context or a handle */
    long long captures, replays, launches;
    long long streams, events, graphs, executables, libraries; /* alive */
    long long device_blocks, device_bytes, pinned_blocks, pinned_bytes; /* alive */
} Counts;

extern Switches switches;
extern Counts counts;

/* ---- contexts: devices.c ---- */

extern struct CUctx_st primary_context;
CUcontext current_context(void);
int is_initialised(void);

/* ---- streams and captures: streams.c ---- */

typedef enum { FREE, CAPTURING, INVALIDATED } Capture; /* as in CUstreamCaptureStatus */

struct CUstream_st {
    unsigned flags;
    int priority;
    Capture capture;
    CUstreamCaptureMode mode;
    pid_t captor; /* the thread that captures */
    cuuint64_t capture_id;
    CUgraph graph;
    CUstream next;
};

/* Why this stream takes no work. The default stream becomes one that has a structure, too. */
CUresult check_stream(CUstream *stream, const char *function);
/* Refuses a call that is illegal while a stream captures, and invalidates that capture. */
CUresult check_no_capture(const char *function);
/* Of a device that failed. */
void end_captures(void);

/* ---- work that is done now, or recorded: graphs.c ---- */

typedef struct Work {
    enum { COPY, FILL, KERNEL, HOST_FUNCTION } kind;
    void *target;
    const void *source;
    size_t size;
    unsigned char byte;
    struct Launch *launch;
    CUhostFn function;
    void *argument;
    struct Work *next;
} Work;

/* Does the work, or adds it to the graph that the stream captures. Takes over `work.launch`. */
CUresult submit(CUstream stream, Work work);
CUgraph new_graph(void);
void free_graph(CUgraph graph);

/* ---- memory: memory.c ---- */

typedef enum { NOWHERE, DEVICE, PINNED } Place;

/* Where all of these bytes lie. */
Place place_of(const void *pointer, size_t size);

/* ---- kernels: cubins.c ---- */

#define MAX_PARAMETERS 64
#define PARAMETER_BYTES 4096

typedef struct {
    int offset, size;
} Parameter;

/* cuda.core hands over kernels for functions, and modules are libraries here. */
struct CUkern_st {
    char name[256];
    Parameter parameters[MAX_PARAMETERS];
    int parameter_count;
    int shared_bytes; /* dynamic, that were asked for */
};

/* ---- launches: launches.c ---- */

typedef struct Launch Launch;
CUresult run_launch(const Launch *launch);
void free_launch(Launch *launch);

#endif
