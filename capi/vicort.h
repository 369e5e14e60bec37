/* vicort.h: streaming video question answering from C and C++.
 *
 *     vicort_params params = vicort_params_default();
 *     vicort_session *session;
 *     if (vicort_open(&params, &session) != VICORT_OK) { fputs(vicort_last_error(), stderr); exit(1); }
 *     vicort_push_rgb24(session, pixels, length, width, height, stride, time_us);      // a thread that has the frames
 *     vicort_ask(session, "what is there now?", text, sizeof text, NULL, NULL);        // any other, at any moment
 *     vicort_close(session);
 *
 * Returns. Every function that can fail returns a vicort_status; outputs are written only with VICORT_OK, unless said otherwise.
 * vicort_last_error() has the words.
 *
 * Threads. Every function may be called from any thread at any time, on the same session too, unless said otherwise. Nothing holds a
 * lock while it waits for a picture, an answer or the caller's code, but pushes to one session go one at a time.
 *
 * Handles. A session that was closed, or was never one, gives VICORT_E_CLOSED; a null pointer VICORT_E_NULL.
 *
 * Python. The library runs a Python interpreter inside the process, from the first vicort_open that gets that far until the process
 * ends: it is never finalised. Signal handlers, locale and command line of the process are left alone. PYTHON* environment variables
 * are heard as by `python`. Where the process has a Python 3.11 already, that one is used. After the first vicort_open a fork is
 * good for exec only. exit() closes what is open; dlclose leaves the library where it is.
 *
 * Text is UTF-8. Numbers of bytes never count the final NUL, buffer sizes do.
 */
#ifndef VICORT_H
#define VICORT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rises when a structure, a function or a code of this header changes its meaning. vicort_open refuses another one. */
#define VICORT_ABI_VERSION 1u

typedef enum vicort_status {
    VICORT_OK = 0,
    VICORT_E_ABI = 1,          /* header and library are not of one kind: compile against the header beside the library */
    VICORT_E_NULL = 2,         /* a pointer is null that must not be */
    VICORT_E_CLOSED = 3,       /* the session was closed, before or during the call, or never was one */
    VICORT_E_ARGUMENT = 4,     /* a value is not allowed, or text is not UTF-8 */
    VICORT_E_SIZE = 5,         /* width, height, stride and length of a picture do not fit together */
    VICORT_E_TIME = 6,         /* a frame's time is not after that of the frame before, or over a year after it */
    VICORT_E_FINISHED = 7,     /* a frame for a stream that vicort_finish has ended */
    VICORT_E_BUFFER = 8,       /* a text was cut to fit its buffer */
    VICORT_E_STOPPED = 9,      /* the token callback asked to stop */
    VICORT_E_ENVIRONMENT = 10, /* no Python environment that holds vicort, at `home` or where the library was built */
    VICORT_E_ENGINE = 11,      /* the engine set is missing, damaged or of another version */
    VICORT_E_CONFIG = 12,      /* a system, a sampling value or a rate is not allowed */
    VICORT_E_SOURCE = 13,      /* a video source cannot be opened, holds no video, or breaks off */
    VICORT_E_MEMORY = 14,      /* the memory budget or the machine's memory is too small */
    VICORT_E_QUESTION = 15,    /* a question is empty or too long */
    VICORT_E_DEVICE = 16,      /* a GPU is asked for that is not there */
    VICORT_E_FAILED = 17,      /* anything else that vicort refuses: see vicort_last_error */
    VICORT_E_INTERNAL = 18     /* a fault of vicort: please report vicort_last_error */
} vicort_status;

typedef struct vicort_session vicort_session; /* opaque */

enum { VICORT_WAIT = 0, VICORT_DROP_OLDEST = 1 };                                     /* vicort_params.on_lag */
enum { VICORT_BT601 = 0, VICORT_BT709 = 1, VICORT_BT601_FULL = 2, VICORT_BT709_FULL = 3 }; /* colours of NV12 */

#define VICORT_FPS_MODEL 0.0   /* as many frames a second as the model was trained with */
#define VICORT_FPS_SOURCE -1.0 /* every frame */

/* Strings are copied by vicort_open. */
typedef struct vicort_params {
    uint32_t abi_version;   /* set by vicort_params_default */
    uint32_t size;          /* of this structure, in bytes; set by vicort_params_default */
    const char *home;       /* folder of the Python environment; NULL = the one that the library was built in. One a process. */
    const char *engine_dir; /* engine set; NULL = the embedded model's, where vicort-build put it */
    const char *system;     /* name, or path of a YAML file */
    double fps;             /* frames a second to take, VICORT_FPS_MODEL or VICORT_FPS_SOURCE */
    double temperature;     /* 0 = always the likeliest token */
    double top_p;
    uint64_t seed;
    int32_t top_k;          /* 0 = all */
    int32_t max_tokens;     /* of an answer */
    int32_t threads;        /* of the CPU, for each stage at work */
    int32_t on_lag;         /* when frames come too fast: VICORT_WAIT makes the push wait, VICORT_DROP_OLDEST drops and counts */
} vicort_params;

typedef struct vicort_answer {
    int64_t at_us;         /* stream time when it was asked: of the newest frame pushed, on the caller's clock */
    int64_t seen_until_us; /* of the newest frame that the answer could see */
    double ttft_ms;        /* from the ask to the first token */
    int32_t tokens;
    int32_t pages;         /* pages of video that it could see */
} vicort_answer;

typedef struct vicort_stats {
    uint64_t frames;  /* that entered the pipeline, after sampling */
    uint64_t dropped; /* by VICORT_DROP_OLDEST */
    uint64_t chunks;
    uint64_t device_pages;
    uint64_t host_pages;
    double seconds;   /* first frame in to last page placed */
    double fps;       /* frames / seconds */
    double ttft_p50_ms, ttft_p95_ms, ttft_p99_ms; /* over the latest 10,000 answers; 0 without any */
    double peak_rss_mb; /* of the process, 1 MB = 1e6 bytes */
} vicort_stats;

/* Gets each piece of an answer as it is ready, on the thread that asked. `text`: `length` bytes and a NUL, whole characters, valid
 * during the call. Returns 0 to go on; anything else ends vicort_ask_stream with VICORT_E_STOPPED. It may call any function of this
 * header. It must not throw, longjmp or end the thread: vicort.hpp catches what C++ code throws. */
typedef int (*vicort_token_callback)(void *user_data, const char *text, size_t length);

/* ---- without a session; none of these starts Python ---- */

uint32_t vicort_abi_version(void);

/* What a code means: a constant text, for unknown codes too. */
const char *vicort_strerror(int status);

/* One line about the latest failure on this thread: what was wrong, what is allowed, what to try. Empty where there was none.
 * Valid until this thread's next call that fails; at most 1023 bytes. */
const char *vicort_last_error(void);

/* Fills the first `size` bytes of `params`. VICORT_E_NULL, VICORT_E_ABI. */
int vicort_params_init(vicort_params *params, size_t size, uint32_t abi_version);

/* The defaults. With a library of another ABI version all is zero, and vicort_open says so. */
static inline vicort_params vicort_params_default(void) {
    vicort_params params;
    memset(&params, 0, sizeof params);
    (void)vicort_params_init(&params, sizeof params, VICORT_ABI_VERSION);
    return params;
}

/* ---- a session ---- */

/* Open a stream on an engine set. `*session` is null unless it succeeds. The first call starts Python, which takes seconds; `home`
 * counts in that call and must be the same, or NULL, in later ones. Any thread; first calls wait for one another.
 * NULL, ABI, ARGUMENT, ENVIRONMENT, ENGINE, CONFIG, MEMORY, DEVICE. */
int vicort_open(const vicort_params *params, vicort_session **session);

/* Push a picture: packed RGB, 8 bits each, top row first. Rows begin `stride` bytes apart, at least 3 * width. `length`: bytes that may
 * be read from `pixels`, at least stride * (height - 1) + 3 * width. Copied before it returns, if it is sampled at all.
 * `time_us`: microseconds on any clock, rising from frame to frame, by a year at most; only differences count.
 * With VICORT_WAIT it waits while the pipeline is full. A picture that comes too late or does not fit changes nothing.
 * NULL, CLOSED, SIZE, TIME, FINISHED, and what an earlier frame failed with. */
int vicort_push_rgb24(vicort_session *session, const uint8_t *pixels, size_t length, int32_t width, int32_t height, size_t stride,
                      int64_t time_us);

/* The same from NV12: brightness, and (height + 1) / 2 rows of (width + 1) / 2 pairs Cb, Cr. Lengths and strides of the two planes
 * as above, with rows of width and 2 * ((width + 1) / 2) bytes. `colours`: one of VICORT_BT601, …; ARGUMENT else, and for engines on a
 * GPU, which take RGB24. */
int vicort_push_nv12(vicort_session *session, const uint8_t *luma, size_t luma_length, size_t luma_stride, const uint8_t *chroma,
                     size_t chroma_length, size_t chroma_stride, int32_t width, int32_t height, int32_t colours, int64_t time_us);

/* Name the codec of the packets that follow, for callers with a network stack or a demuxer of their own. `codec`: FFmpeg's name of it: h264,
 * hevc, av1, vp9, vp8, mpeg4, mpeg2video, mjpeg, … `extradata`: what the container holds for the decoder (the content of avcC or hvcC, then
 * packets hold lengths; or parameter sets behind start codes), copied, at most 1 MiB; NULL and 0 where the packets carry it. Said again,
 * what the decoder before it holds back is pushed first.
 * NULL, CLOSED, ARGUMENT, SIZE, FINISHED; SOURCE: no such decoder, or it does not take the extradata. */
int vicort_set_codec(vicort_session *session, const char *codec, const uint8_t *extradata, size_t extradata_length);

/* Push an encoded picture: one packet, 1 byte to 64 MiB, in the order of decoding. `time_us`: when its picture is shown, as above; the
 * pictures come in that order, some packets later where a codec looks ahead. It is copied, decoded on the calling thread, and what is
 * sampled waits for its turn as in vicort_push_rgb24. A picture may have 67 million pixels. Begin with a key frame.
 * NULL, CLOSED, SIZE, FINISHED, and what an earlier frame failed with; CONFIG: no codec was named. SOURCE and TIME: this packet cannot be
 * decoded, or its picture comes too late; nothing else changes: go on with the next. */
int vicort_push_packet(vicort_session *session, const uint8_t *data, size_t length, int64_t time_us);

/* Watch a source to its end, on the calling thread: a file, rtsp://…, http(s)://…, /dev/videoN, a folder of images, testsrc:.
 * `pace`: 0 = as fast as it is taken, 1 = by its timestamps, 2 = twice as fast, … Its first frame has time 0; TIME if the stream has
 * frames already. Ends with CLOSED when the session is closed meanwhile: within a frame, or the time-out of a source that stalls.
 * NULL, CLOSED, ARGUMENT, TIME, FINISHED, SOURCE; frames before a source broke off count. */
int vicort_push_source(vicort_session *session, const char *source, double pace);

/* End of the stream: what a decoder of packets holds back is pushed, an open pair of frames is completed, and what is under way is
 * waited for. Questions may still come, frames not.
 * NULL, CLOSED, and what a frame or an answer failed with. Finishing twice is fine. */
int vicort_finish(vicort_session *session);

/* Ask about the stream so far, and wait. At most `text_size` bytes are written to `text`, cut between characters, a NUL always if
 * `text_size` > 0; `*text_length` (or NULL) is the whole answer's length, and `*answer` (or NULL) its facts: with VICORT_E_BUFFER too.
 * NULL, CLOSED, ARGUMENT, QUESTION, BUFFER, and what the answer failed with. */
int vicort_ask(vicort_session *session, const char *question, char *text, size_t text_size, size_t *text_length, vicort_answer *answer);

/* Ask, and get the pieces of the answer as they come: `on_token` is called on this thread until this returns, never after. With
 * VICORT_E_STOPPED the rest is not heard; it is made to its end all the same, behind. `*answer` (or NULL): the facts.
 * NULL, CLOSED, ARGUMENT, QUESTION, STOPPED, and what the answer failed with. */
int vicort_ask_stream(vicort_session *session, const char *question, vicort_token_callback on_token, void *user_data,
                      vicort_answer *answer);

/* The stream so far. NULL, CLOSED. */
int vicort_get_stats(vicort_session *session, vicort_stats *stats);

/* Close: what is not placed is lost, other threads' calls on this session end with VICORT_E_CLOSED, and are waited for, but for one
 * whose callback this is called from. NULL, CLOSED. */
int vicort_close(vicort_session *session);

#ifdef __cplusplus
}
#endif

#endif
