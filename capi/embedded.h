/* The Python functions (glue.py) that the C side calls. Each returns a vicort_status + 1; 0 means that Python did not run.
 * `error` points to a buffer of ERROR_SIZE bytes. */
extern int embedded_open(char *error, const vicort_params *params, vicort_session **session);
extern int embedded_push_rgb24(char *error, vicort_session *session, const uint8_t *pixels, size_t length, int32_t width, int32_t height,
                               size_t stride, int64_t time_us);
extern int embedded_push_nv12(char *error, vicort_session *session, const uint8_t *luma, size_t luma_length, size_t luma_stride,
                              const uint8_t *chroma, size_t chroma_length, size_t chroma_stride, int32_t width, int32_t height,
                              int32_t colours, int64_t time_us);
extern int embedded_set_codec(char *error, vicort_session *session, const char *codec, const uint8_t *extradata, size_t extradata_length);
extern int embedded_push_packet(char *error, vicort_session *session, const uint8_t *data, size_t length, int64_t time_us);
extern int embedded_push_source(char *error, vicort_session *session, const char *source, double pace);
extern int embedded_finish(char *error, vicort_session *session);
extern int embedded_ask(char *error, vicort_session *session, const char *question, char *text, size_t text_size, size_t *text_length,
                        vicort_answer *answer);
extern int embedded_ask_stream(char *error, vicort_session *session, const char *question, vicort_token_callback on_token,
                               void *user_data, vicort_answer *answer);
extern int embedded_ask_between(char *error, vicort_session *session, const char *question, int64_t since_us, int64_t until_us,
                                vicort_token_callback on_token, void *user_data, vicort_answer *answer);
extern int embedded_ask_constrained(char *error, vicort_session *session, const char *question, int64_t since_us, int64_t until_us,
                                    const vicort_constraint *constraint, vicort_token_callback on_token, void *user_data,
                                    double *probabilities, vicort_answer *answer);
extern int embedded_get_stats(char *error, vicort_session *session, vicort_stats *stats);
extern int embedded_close(char *error, vicort_session *session);
extern int embedded_close_all(char *error);
