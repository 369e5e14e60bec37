/* Work on streams, and graphs of recorded work. */

#include "driver.h"

#include <stdlib.h>
#include <string.h>

/* The work of a graph and of all executables that were made of it. */
typedef struct {
    Work *first, *last;
    int owners;
} Recording;

struct CUgraph_st {
    Recording *recording;
};
struct CUgraphExec_st {
    Recording *recording;
};

CUgraph new_graph(void) {
    CUgraph graph = calloc(1, sizeof *graph);
    graph->recording = calloc(1, sizeof *graph->recording);
    graph->recording->owners = 1;
    counts.graphs++;
    return graph;
}

static void release(Recording *recording) {
    if (--recording->owners) return;
    for (Work *work = recording->first, *next; work; work = next) {
        next = work->next;
        if (work->launch) free_launch(work->launch);
        free(work);
    }
    free(recording);
}

void free_graph(CUgraph graph) {
    release(graph->recording);
    free(graph);
    counts.graphs--;
}

static void record(Recording *recording, Work work) {
    Work *added = malloc(sizeof *added);
    *added = work;
    added->next = NULL;
    if (recording->last)
        recording->last->next = added;
    else
        recording->first = added;
    recording->last = added;
}

/* A kernel that fails breaks the device, as an illegal address does. */
static CUresult run(const Work *work) {
    CUresult result = CUDA_SUCCESS;
    switch (work->kind) {
        case COPY: memmove(work->target, work->source, work->size); break;
        case FILL: memset(work->target, work->byte, work->size); break;
        case KERNEL: result = run_launch(work->launch); break;
        case HOST_FUNCTION:
            unlock();
            work->function(work->argument);
            lock();
            break;
    }
    if (result) break_device(result);
    return result;
}

CUresult submit(CUstream stream, Work work) {
    if (stream->capture == CAPTURING) {
        record(stream->graph->recording, work);
        return CUDA_SUCCESS;
    }
    CUresult result = run(&work);
    if (work.launch) free_launch(work.launch);
    return result;
}

API cuLaunchHostFunc(CUstream stream, CUhostFn function, void *argument) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    if (result) return result;
    return submit(
        stream, (Work){.kind = HOST_FUNCTION, .function = function, .argument = argument}
    );
}

API cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    ENTER(CONTEXT);
    UNUSED(flags);
    CUresult result = check_no_capture(__func__);
    if (result) return result;
    *executable = calloc(1, sizeof **executable);
    (*executable)->recording = graph->recording;
    graph->recording->owners++;
    counts.executables++;
    return CUDA_SUCCESS;
}

/* How many nodes a graph has; the nodes themselves are not shown. */
API cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
    ENTER(HANDLE);
    if (nodes) return refuse(CUDA_ERROR_NOT_SUPPORTED, "the nodes of a graph are asked for");
    *count = 0;
    for (const Work *work = graph->recording->first; work; work = work->next) ++*count;
    return CUDA_SUCCESS;
}

API cuGraphDestroy(CUgraph graph) {
    ENTER(HANDLE);
    free_graph(graph);
    return CUDA_SUCCESS;
}

API cuGraphExecDestroy(CUgraphExec executable) {
    ENTER(HANDLE);
    release(executable->recording);
    free(executable);
    counts.executables--;
    return CUDA_SUCCESS;
}

API cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    ENTER(CONTEXT);
    CUresult result = check_stream(&stream, __func__);
    if (result) return result;
    if (stream->capture) return refuse(CUDA_ERROR_NOT_SUPPORTED, "a graph in a capture");
    Recording *recording = executable->recording;
    recording->owners++; /* a launch is completed, whoever closes the graph meanwhile */
    counts.replays++;
    for (const Work *work = recording->first; work && !result; work = work->next)
        result = run(work);
    release(recording);
    return result;
}
