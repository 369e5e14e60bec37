/* vicort.h: streaming video question answering from C and C++.
 *
 *     vicort_params params = vicort_params_default();
 *     vicort_session *session;
 *     if (vicort_open(&params, &session) != VICORT_OK) { fputs(vicort_last_error(), stderr); exit(1); }
 *     vicort_push_rgb24(session, pixels, length, width, height, stride, time_us);      // on the thread that has the frames
 *     vicort_ask(session, "what is there now?", text, sizeof text, NULL, NULL);        // on any other thread, at any time
 *     vicort_close(session);
 *
 * Errors. Every function that can fail returns a vicort_status. vicort_last_error() returns the error text. Outputs are written
 * only with VICORT_OK, unless stated otherwise.
 *
 * Threads. Every function may be called from any thread at any time, also on the same session. No function holds a lock while it
 * waits for a picture, an answer or a callback, except that pushes to one session run one at a time.
 *
 * Handles. A closed or invalid session returns VICORT_E_CLOSED, a null pointer VICORT_E_NULL.
 *
 * Python. The first vicort_open starts a Python interpreter inside the process, which runs until the process ends. If the process
 * already runs Python 3.11, that interpreter is used. The library does not change signal handlers, locale or command line. PYTHON*
 * environment variables have their usual effect. After the first vicort_open, a forked child may only call exec: there vicort_open
 * fails with VICORT_E_ENVIRONMENT, and every function of a session with VICORT_E_CLOSED. exit() closes open
 * sessions. dlclose does not unload the library.
 *
 * Text is UTF-8. Lengths in bytes exclude the final NUL, buffer sizes include it.
 */
#ifndef VICORT_H
#define VICORT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Incremented when a structure, a function or a code of this header changes. vicort_open rejects other versions. */
#define VICORT_ABI_VERSION 4u

typedef enum vicort_status {
    VICORT_OK = 0,
    VICORT_E_ABI = 1,          /* header and library differ in version: compile with the header that came with the library */
    VICORT_E_NULL = 2,         /* a required pointer is null */
    VICORT_E_CLOSED = 3,       /* the session was closed before or during the call, or was never opened */
    VICORT_E_ARGUMENT = 4,     /* a value is not allowed, or text is not UTF-8 */
    VICORT_E_SIZE = 5,         /* width, height, stride and length of a picture are inconsistent */
    VICORT_E_TIME = 6,         /* a frame is not later than the previous one, or more than a year later */
    VICORT_E_FINISHED = 7,     /* a frame was pushed after vicort_finish */
    VICORT_E_BUFFER = 8,       /* a text was truncated to fit its buffer */
    VICORT_E_STOPPED = 9,      /* the token callback asked to stop */
    VICORT_E_ENVIRONMENT = 10, /* no Python environment with vicort at `home`, or where the library was built */
    VICORT_E_ENGINE = 11,      /* the engine set is missing, damaged or of another version */
    VICORT_E_CONFIG = 12,      /* a system, a sampling value or a rate is not allowed */
    VICORT_E_SOURCE = 13,      /* a video source cannot be opened, contains no video, or breaks off */
    VICORT_E_MEMORY = 14,      /* the memory budget or the machine's memory is too small */
    VICORT_E_QUESTION = 15,    /* a question is empty or too long */
    VICORT_E_DEVICE = 16,      /* the requested GPU is missing, cannot be used, or was lost */
    VICORT_E_FAILED = 17,      /* any other error that the caller can fix: see vicort_last_error */
    VICORT_E_INTERNAL = 18     /* a bug in vicort: please report vicort_last_error */
} vicort_status;

typedef struct vicort_session vicort_session; /* opaque */

enum { VICORT_WAIT = 0, VICORT_DROP_OLDEST = 1 };                                     /* vicort_params.on_lag */
enum { VICORT_COMPLETE = 0, VICORT_NOW = 1 };                                         /* vicort_params.freshness */
enum { VICORT_BT601 = 0, VICORT_BT709 = 1, VICORT_BT601_FULL = 2, VICORT_BT709_FULL = 3 }; /* colours of NV12 */

#define VICORT_FPS_MODEL 0.0   /* the frame rate that the model was trained with */
#define VICORT_FPS_SOURCE -1.0 /* every frame */

#define VICORT_MEMORY_AUTO -1.0
#define VICORT_THREADS_ALL 0

/* Strings are copied by vicort_open. */
typedef struct vicort_params {
    uint32_t abi_version;   /* set by vicort_params_default */
    uint32_t size;          /* of this structure, in bytes; set by vicort_params_default */
    const char *home;       /* folder of the Python environment, one per process; NULL = the one that built the library */
    const char *engine_dir; /* folder of the engine set; NULL = the embedded model, at the default place of vicort-build */
    const char *system;     /* name, or path of a YAML file */
    double fps;             /* frames per second to sample, VICORT_FPS_MODEL or VICORT_FPS_SOURCE */
    double temperature;     /* 0 = greedy decoding */
    double top_p;
    double device_mb;       /* memory for pages on the device, 1 MB = 1e6 bytes; VICORT_MEMORY_AUTO = as the system says */
    double host_mb;         /* the same for pages that no longer fit there */
    uint64_t seed;          /* 0 to 2^63 - 1: a larger number was negative */
    int32_t top_k;          /* 0 = all */
    int32_t max_tokens;     /* maximum number of tokens in an answer */
    int32_t threads;        /* CPU threads per running stage; VICORT_THREADS_ALL = all that the process may use */
    int32_t on_lag;         /* when frames arrive too fast: VICORT_WAIT blocks the push, VICORT_DROP_OLDEST drops and counts frames */
    int32_t freshness;      /* a question sees: VICORT_COMPLETE every pushed frame, for which it waits; VICORT_NOW what is in memory */
} vicort_params;

typedef struct vicort_answer {
    int64_t at_us;         /* time of the question: that of the newest pushed frame, on the caller's clock */
    int64_t seen_until_us; /* time of the newest frame that the answer could see; 0 before the first one */
    double ttft_ms;        /* from the question to the first token */
    double probability;    /* as the model gives it before any constraint: the geometric mean over the answer's tokens */
    double first_probability; /* of the answer's first token */
    double outside;        /* of a question with choices: the probability of all other texts; else 0 */
    int32_t tokens;
    int32_t pages;         /* video pages that the answer could see */
    int32_t complete;      /* 1: the answer came to its end; 0: vicort_params.max_tokens cut it, or it cannot fulfil its constraint */
} vicort_answer;

/* What the text of an answer may be. Exactly one of choices, regex, json_schema and lark is given, the others are zero. Strings are
 * UTF-8 and copied by the call; at most 65,536 characters each. */
typedef struct vicort_constraint {
    const char *const *choices; /* the answer is one of these texts, the most probable one where it is not sampled */
    size_t choice_count;        /* 1 to 256 */
    const char *regex;          /* the whole answer matches it; in the syntax of Rust's regex crate */
    const char *json_schema;    /* JSON text of a schema that the answer, which is JSON, obeys */
    const char *lark;           /* a grammar in the syntax of Lark, as llguidance reads it */
} vicort_constraint;

typedef struct vicort_stats {
    uint64_t frames;  /* frames that entered the pipeline, after sampling */
    uint64_t dropped; /* frames that VICORT_DROP_OLDEST dropped */
    uint64_t chunks;
    uint64_t device_pages;
    uint64_t host_pages;
    double seconds;   /* from the first frame to the last written page */
    double fps;       /* frames / seconds */
    double ttft_p50_ms, ttft_p95_ms, ttft_p99_ms; /* over the latest 10,000 answers; 0 without answers */
    double peak_rss_mb; /* of the process, 1 MB = 1e6 bytes */
} vicort_stats;

/* Callback for each piece of an answer, called on the thread that asked. `text` has `length` bytes and a NUL, holds whole characters,
 * and is valid during the call. Return 0 to continue; any other value ends vicort_ask_stream with VICORT_E_STOPPED. The callback may
 * call any function of this header. It must not throw, longjmp or end the thread; vicort.hpp catches C++ exceptions. */
typedef int (*vicort_token_callback)(void *user_data, const char *text, size_t length);

/* ---- functions without a session; they do not start Python ---- */

uint32_t vicort_abi_version(void);

/* The meaning of a code as a constant text, also for unknown codes. */
const char *vicort_strerror(int status);

/* The error text of the latest failed call on this thread: what was wrong, what is allowed, what to try. One line of at most 1023
 * bytes, empty without a failure. Valid until the next failed call on this thread. */
const char *vicort_last_error(void);

/* Fills the first `size` bytes of `params`. VICORT_E_NULL, VICORT_E_ABI. */
int vicort_params_init(vicort_params *params, size_t size, uint32_t abi_version);

/* The default parameters. With a library of another ABI version all fields are zero, and vicort_open fails with VICORT_E_ABI. */
static inline vicort_params vicort_params_default(void) {
    vicort_params params;
    memset(&params, 0, sizeof params);
    (void)vicort_params_init(&params, sizeof params, VICORT_ABI_VERSION);
    return params;
}

/* ---- a session ---- */

/* Open a stream on an engine set. `*session` is null unless the call succeeds. The first call starts Python, which takes seconds, and
 * uses `home`; later calls must give the same `home` or NULL. Concurrent first calls wait for each other.
 * NULL, ABI, ARGUMENT, ENVIRONMENT, ENGINE, CONFIG, MEMORY, DEVICE. */
int vicort_open(const vicort_params *params, vicort_session **session);

/* Push a picture: packed RGB, 8 bits per channel, top row first. `stride`: bytes from one row to the next, at least 3 * width.
 * `length`: readable bytes at `pixels`, at least stride * (height - 1) + 3 * width. The picture is copied before the call returns,
 * unless it is not sampled: then it is not kept, and the last picture of a burst may be one that is never seen.
 * `time_us`: microseconds on any clock. It must rise from frame to frame, by at most a year; only differences are used.
 * With VICORT_WAIT the call waits while the pipeline is full. With an error SIZE or TIME the stream does not change.
 * NULL, CLOSED, SIZE, TIME, FINISHED, and the error of an earlier frame. */
int vicort_push_rgb24(vicort_session *session, const uint8_t *pixels, size_t length, int32_t width, int32_t height, size_t stride,
                      int64_t time_us);

/* Push a picture in NV12: a luma plane, and a chroma plane of (height + 1) / 2 rows with (width + 1) / 2 pairs Cb, Cr. Lengths and
 * strides as above, for rows of width and 2 * ((width + 1) / 2) bytes. `colours`: VICORT_BT601 and so on. Engines on a GPU accept only
 * RGB24. The errors of vicort_push_rgb24, and ARGUMENT. */
int vicort_push_nv12(vicort_session *session, const uint8_t *luma, size_t luma_length, size_t luma_stride, const uint8_t *chroma,
                     size_t chroma_length, size_t chroma_stride, int32_t width, int32_t height, int32_t colours, int64_t time_us);

/* Set the codec of the following packets, for callers with their own network stack or demuxer. `codec`: FFmpeg's name, such as h264,
 * hevc, av1, vp9, vp8, mpeg4, mpeg2video or mjpeg. `extradata`: the codec data of the container, copied, at most 1 MiB: the content of
 * avcC or hvcC (packets then have length prefixes), or parameter sets with start codes; NULL and 0 if the packets carry it. A second
 * call first pushes the pictures that the previous decoder still holds.
 * NULL, CLOSED, ARGUMENT, SIZE, FINISHED; SOURCE: there is no such decoder, or it rejects the extradata. */
int vicort_set_codec(vicort_session *session, const char *codec, const uint8_t *extradata, size_t extradata_length);

/* Push an encoded picture: one packet of 1 byte to 64 MiB, in decoding order, starting with a key frame. `time_us`: its display time, as
 * above. The packet is copied and decoded on the calling thread. Pictures are pushed in display order, some packets later if the codec
 * reorders them, and wait as in vicort_push_rgb24. A picture may have up to 67 million pixels.
 * NULL, CLOSED, SIZE, FINISHED, and the error of an earlier frame; CONFIG: no codec was set. SOURCE: this packet cannot be decoded. TIME:
 * a picture is not later than the previous one. After SOURCE and TIME, continue with the next packet. */
int vicort_push_packet(vicort_session *session, const uint8_t *data, size_t length, int64_t time_us);

/* Push all frames of a source on the calling thread: a file, rtsp://…, http(s)://…, /dev/videoN, a folder of images, testsrc:.
 * `pace`: 0 = as fast as possible, 1 = by its timestamps, 2 = twice as fast, … Time 0 is the start of the
 * source. If the session is closed meanwhile, the call ends with CLOSED within one frame, or within the timeout of a source that stalls.
 * NULL, CLOSED, ARGUMENT, FINISHED; TIME: the stream has frames already; SOURCE: frames before a source broke off are kept. */
int vicort_push_source(vicort_session *session, const char *source, double pace);

/* End the stream: push the pictures that the packet decoder still holds, complete a pair of frames, and wait for all work. Afterwards
 * the stream accepts questions, but no frames. May be called twice.
 * NULL, CLOSED, and the error of a frame. */
int vicort_finish(vicort_session *session);

/* Ask about the stream so far and wait for the answer. At most `text_size` bytes are written to `text`, cut between characters, with a
 * NUL if `text_size` > 0. `*text_length` receives the length of the whole answer, `*answer` its times and counts, both also with
 * VICORT_E_BUFFER; both pointers may be NULL.
 * NULL, CLOSED, ARGUMENT, QUESTION, BUFFER, and the error of the answer. */
int vicort_ask(vicort_session *session, const char *question, char *text, size_t text_size, size_t *text_length, vicort_answer *answer);

/* Ask, and receive the pieces of the answer as they are generated. `on_token` is called on this thread, only before this function
 * returns. After VICORT_E_STOPPED the answer ends at its next token. `answer` may be NULL.
 * NULL, CLOSED, ARGUMENT, QUESTION, STOPPED, and the error of the answer. */
int vicort_ask_stream(vicort_session *session, const char *question, vicort_token_callback on_token, void *user_data,
                      vicort_answer *answer);

/* Ask as vicort_ask_stream does, about a part of the stream: of the video only pairs of frames that overlap [since_us, until_us] are
 * read, microseconds on the clock of the frames. INT64_MIN and INT64_MAX are no limits; a `since_us` before the first frame is none
 * either. `answer->pages` is 0 if nothing is remembered of that time. The errors of vicort_ask_stream; QUESTION also for a range that
 * ends before it begins, or before the first frame. */
int vicort_ask_between(vicort_session *session, const char *question, int64_t since_us, int64_t until_us,
                       vicort_token_callback on_token, void *user_data, vicort_answer *answer);

/* Ask as vicort_ask_between does, for an answer whose text is limited; `constraint` may be NULL, for none. `probabilities` receives
 * one number for each choice, in their order: how probable the model finds that answer, given that it is one of them, so that their
 * sum is 1. It may be NULL, and is not written without choices. `answer` may be NULL. Where `answer->complete` is 0, the text is a
 * beginning only. The errors of vicort_ask_between; QUESTION also for a constraint that is refused, such as a choice that the model
 * cannot write. The first call with another constraint than choices prepares the tokenizer, which takes about a second for a
 * vocabulary of 150,000 tokens. */
int vicort_ask_constrained(vicort_session *session, const char *question, int64_t since_us, int64_t until_us,
                           const vicort_constraint *constraint, vicort_token_callback on_token, void *user_data,
                           double *probabilities, vicort_answer *answer);

/* Statistics of the stream so far. NULL, CLOSED. */
int vicort_get_stats(vicort_session *session, vicort_stats *stats);

/* Close the session and discard unfinished work. Waits for calls of other threads on this session, which end with VICORT_E_CLOSED. May
 * be called from a token callback; the call that runs the callback is not waited for. NULL, CLOSED, and DEVICE if the GPU was lost and
 * no call has said so yet: the session is closed all the same. */
int vicort_close(vicort_session *session);

#ifdef __cplusplus
}
#endif

#endif
