/* Streams, their captures, and events. */

#include "driver.h"

#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct CUevent_st {
    unsigned flags;
    CUstream captured; /* the capture that it was recorded in */
    struct timespec at;
    int is_recorded;
    CUevent next;
};
static CUstream streams; /* all that are alive */
static struct CUstream_st default_stream;
static CUevent events;
static __thread CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static pid_t this_thread(void) { return (pid_t)syscall(SYS_gettid); }

static int is_stream(CUstream stream) {
    for (CUstream each = streams; each; each = each->next)
        if (each == stream) return 1;
    return 0;
}

static int is_event(CUevent event) {
    for (CUevent each = events; each; each = each->next)
        if (each == event) return 1;
    return 0;
}

static int is_default(CUstream stream) {
    return !stream || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD;
}

/* It waits for all streams that are not "non-blocking", so none of these may capture. */
static CUresult wait_for_default_stream(void) {
    for (CUstream each = streams; each; each = each->next)
        if (each->capture == CAPTURING && !(each->flags & CU_STREAM_NON_BLOCKING)) {
            each->capture = INVALIDATED;
            return refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "a wait for the default stream");
        }
    return CUDA_SUCCESS;
}

CUresult check_stream(CUstream *stream, const char *function) {
    if (is_default(*stream)) {
        if (!switches.lenient)
            return refuse(CUDA_ERROR_INVALID_HANDLE, "%s on the default stream", function);
        *stream = &default_stream;
        return wait_for_default_stream();
    }
    if (!is_stream(*stream))
        return refuse(CUDA_ERROR_INVALID_HANDLE, "%s on a stream that is closed", function);
    if ((*stream)->capture == INVALIDATED) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if ((*stream)->capture == CAPTURING && (*stream)->captor != this_thread())
        return refuse(
            CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "%s while another thread captures", function
        );
    return CUDA_SUCCESS;
}

/* In the mode `thread local` the calls of other threads are free; in the mode `global` none are. */
static int forbids(CUstream stream) {
    if (stream->capture != CAPTURING || stream->mode == CU_STREAM_CAPTURE_MODE_RELAXED) return 0;
    return stream->captor == this_thread() || (stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                                               thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
}

static CUresult invalidate(CUstream stream, const char *function) {
    stream->capture = INVALIDATED;
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s in a capture", function);
}

CUresult check_no_capture(const char *function) {
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
    for (CUstream each = streams; each; each = each->next)
        if (forbids(each)) return invalidate(each, function);
    return CUDA_SUCCESS;
}

void end_captures(void) {
    for (CUstream each = streams; each; each = each->next) {
        if (each->capture) free_graph(each->graph);
        each->capture = FREE;
    }
}

/* ---- streams ---- */

static CUresult create_stream(CUstream *stream, unsigned flags, int priority) {
    CUresult result = check_no_capture("the creation of a stream");
    if (result) return result;
    *stream = calloc(1, sizeof **stream);
    **stream = (struct CUstream_st){.flags = flags, .priority = priority, .next = streams};
    streams = *stream;
    counts.streams++;
    return CUDA_SUCCESS;
}

API cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTER(CONTEXT);
    return create_stream(stream, flags, 0);
}

API cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) {
    ENTER(CONTEXT);
    return create_stream(stream, flags, priority);
}

API cuStreamDestroy_v2(CUstream stream) {
    ENTER(HANDLE);
    for (CUstream *link = &streams; *link; link = &(*link)->next)
        if (*link == stream) {
            *link = stream->next;
            for (CUevent event = events; event; event = event->next)
                if (event->captured == stream) event->captured = NULL;
            free(stream);
            counts.streams--;
            return CUDA_SUCCESS;
        }
    return refuse(CUDA_ERROR_INVALID_HANDLE, "a stream is closed twice");
}

API cuStreamGetPriority(CUstream stream, int *priority) {
    ENTER(CONTEXT);
    *priority = is_default(stream) ? 0 : stream->priority;
    return CUDA_SUCCESS;
}

API cuStreamQuery(CUstream stream) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    return result ? result : check_no_capture(__func__);
}

API cuStreamSynchronize(CUstream stream) {
    ENTER(CONTEXT);
    if (is_default(stream)) return wait_for_default_stream();
    CUresult result = check_stream(&stream, __func__);
    if (result) return result;
    return stream->capture == CAPTURING ? invalidate(stream, __func__) : check_no_capture(__func__);
}

/* ---- captures ---- */

API cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    if (result) return result;
    if (stream->capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "two captures on a stream");
    stream->capture = CAPTURING;
    stream->mode = mode;
    stream->captor = this_thread();
    stream->capture_id = (cuuint64_t)++counts.captures;
    stream->graph = new_graph();
    return CUDA_SUCCESS;
}

API cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    ENTER(CONTEXT);
    *graph = NULL;
    if (!is_stream(stream) || !stream->capture)
        return refuse(CUDA_ERROR_ILLEGAL_STATE, "the end of a capture that was not begun");
    if (stream->mode != CU_STREAM_CAPTURE_MODE_RELAXED && stream->captor != this_thread())
        return refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "a capture is ended elsewhere");
    Capture was = stream->capture;
    stream->capture = FREE;
    if (was == INVALIDATED || switches.refuse_captures) {
        free_graph(stream->graph);
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    *graph = stream->graph;
    return CUDA_SUCCESS;
}

/* id: of the capture; the graph and what it depends on are not shown. */
API cuStreamGetCaptureInfo_v3(
    CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
    const CUgraphNode **nodes, const CUgraphEdgeData **edges, size_t *count
) {
    ENTER(CONTEXT);
    if (graph || nodes || edges || count)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "the graph of a capture is asked for");
    *status = is_default(stream) ? CU_STREAM_CAPTURE_STATUS_NONE
                                 : (CUstreamCaptureStatus)stream->capture;
    if (id && *status == CU_STREAM_CAPTURE_STATUS_ACTIVE) *id = stream->capture_id;
    return CUDA_SUCCESS;
}

API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    ENTER(QUERY);
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

API cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    ENTER(CONTEXT);
    *status = is_default(stream) ? CU_STREAM_CAPTURE_STATUS_NONE
                                 : (CUstreamCaptureStatus)stream->capture;
    return CUDA_SUCCESS;
}

/* ---- events ---- */

API cuEventCreate(CUevent *event, unsigned flags) {
    ENTER(CONTEXT);
    *event = calloc(1, sizeof **event);
    **event = (struct CUevent_st){.flags = flags, .next = events};
    events = *event;
    counts.events++;
    return CUDA_SUCCESS;
}

API cuEventDestroy_v2(CUevent event) {
    ENTER(HANDLE);
    for (CUevent *link = &events; *link; link = &(*link)->next)
        if (*link == event) {
            *link = event->next;
            free(event);
            counts.events--;
            return CUDA_SUCCESS;
        }
    return refuse(CUDA_ERROR_INVALID_HANDLE, "an event is closed twice");
}

static CUresult check_event(CUevent event, const char *function) {
    if (!is_event(event))
        return refuse(CUDA_ERROR_INVALID_HANDLE, "%s of an event that is closed", function);
    return CUDA_SUCCESS;
}

/* An event that was recorded in a capture has no time until its graph runs. */
static CUresult check_host_wait(CUevent event, const char *function) {
    CUresult result = check_event(event, function);
    if (result) return result;
    if (event->captured && event->captured->capture) {
        event->captured->capture = INVALIDATED;
        return refuse(CUDA_ERROR_CAPTURED_EVENT, "%s of an event in a capture", function);
    }
    return check_no_capture(function);
}

API cuEventRecord(CUevent event, CUstream stream) {
    ENTER(CONTEXT);
    CUresult result = check_event(event, __func__);
    if (!result) result = check_stream(&stream, __func__);
    if (result) return result;
    event->captured = stream->capture ? stream : NULL;
    event->is_recorded = !stream->capture;
    clock_gettime(CLOCK_MONOTONIC, &event->at);
    return CUDA_SUCCESS;
}

API cuEventQuery(CUevent event) {
    ENTER(CONTEXT);
    return check_host_wait(event, __func__);
}

API cuEventSynchronize(CUevent event) {
    ENTER(CONTEXT);
    return check_host_wait(event, __func__);
}

API cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    ENTER(CONTEXT);
    CUresult result = check_event(start, __func__);
    if (!result) result = check_event(end, __func__);
    if (result) return result;
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING)
        return refuse(CUDA_ERROR_INVALID_HANDLE, "the time of an event without timing");
    if (!start->is_recorded || !end->is_recorded)
        return refuse(CUDA_ERROR_INVALID_HANDLE, "the time of an event that was not recorded");
    *milliseconds = (float)((double)(end->at.tv_sec - start->at.tv_sec) * 1e3 +
                            (double)(end->at.tv_nsec - start->at.tv_nsec) / 1e6);
    return CUDA_SUCCESS;
}

API cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    ENTER(CONTEXT);
    UNUSED(flags);
    CUresult result = check_event(event, __func__);
    if (!result) result = check_stream(&stream, __func__);
    if (result) return result;
    if (stream->capture == CAPTURING && event->captured != stream) {
        stream->capture = INVALIDATED;
        return refuse(
            CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a capture waits for work outside of it"
        );
    }
    return CUDA_SUCCESS;
}
