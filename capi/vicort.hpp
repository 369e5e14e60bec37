// vicort.hpp: a header-only C++17 wrapper of vicort.h with exceptions and a session that closes itself.
//
//     vicort::Session session(vicort::defaults());
//     session.push_rgb24(pixels, length, width, height, stride, time_us);
//     std::cout << session.ask("what is there now?").text;
//
// Threads: as in vicort.h. A session may be moved or destroyed only while no other thread uses it.
#ifndef VICORT_HPP
#define VICORT_HPP

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "vicort.h"

namespace vicort {

using Params = vicort_params;
using Stats = vicort_stats;

/// A code other than VICORT_OK. what() is the text of vicort_last_error.
class Error : public std::runtime_error {
public:
    Error(int code, const std::string &words) : std::runtime_error(words), code_(code) {}
    int code() const noexcept { return code_; }

private:
    int code_;
};

inline void check(int code) {
    if (code == VICORT_OK) return;
    const std::string words = vicort_last_error();
    throw Error(code, words.empty() ? vicort_strerror(code) : words);
}

/// The default parameters. Throws Error with VICORT_E_ABI if header and library differ in version.
inline Params defaults() {
    Params params{};
    check(vicort_params_init(&params, sizeof params, VICORT_ABI_VERSION));
    return params;
}

struct Answer {
    std::string text;
    bool stopped = false; // the callback stopped it: `text` is the part before that, `facts` is empty
    vicort_answer facts{};
    std::vector<double> probabilities; // of choices, in their order
};

/// What the text of an answer may be: one of these, as vicort_constraint.
struct Constraint {
    std::vector<std::string> choices;
    std::string regex, json_schema, lark;
};

class Session {
public:
    explicit Session(const Params &params = defaults()) { check(vicort_open(&params, &session_)); }
    Session(Session &&other) noexcept : session_(std::exchange(other.session_, nullptr)) {}
    Session &operator=(Session &&other) noexcept {
        std::swap(session_, other.session_);
        return *this;
    }
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;
    ~Session() {
        if (session_) (void)vicort_close(session_);
    }

    void push_rgb24(const std::uint8_t *pixels, std::size_t length, int width, int height, std::size_t stride, std::int64_t time_us) {
        check(vicort_push_rgb24(session_, pixels, length, width, height, stride, time_us));
    }

    void push_nv12(const std::uint8_t *luma, std::size_t luma_length, std::size_t luma_stride, const std::uint8_t *chroma,
                   std::size_t chroma_length, std::size_t chroma_stride, int width, int height, int colours, std::int64_t time_us) {
        check(vicort_push_nv12(session_, luma, luma_length, luma_stride, chroma, chroma_length, chroma_stride, width, height, colours,
                               time_us));
    }

    /// Set the codec of the following packets by FFmpeg's name. extradata: the codec data of the container, if it has any.
    void set_codec(const std::string &codec, const std::uint8_t *extradata = nullptr, std::size_t extradata_length = 0) {
        check(vicort_set_codec(session_, codec.c_str(), extradata, extradata_length));
    }

    void push_packet(const std::uint8_t *data, std::size_t length, std::int64_t time_us) {
        check(vicort_push_packet(session_, data, length, time_us));
    }

    /// Push all frames of a source. pace: 0 = as fast as possible, 1 = by its timestamps.
    void push_source(const std::string &source, double pace = 0) { check(vicort_push_source(session_, source.c_str(), pace)); }

    void finish() { check(vicort_finish(session_)); }

    Answer ask(const std::string &question) {
        return ask(question, [](std::string_view) {});
    }

    /// on_token(std::string_view) is called with each piece on this thread. If it returns a bool, false stops the call. Its exceptions
    /// are rethrown.
    template <class OnToken> Answer ask(const std::string &question, OnToken &&on_token) {
        return ask(question, INT64_MIN, INT64_MAX, std::forward<OnToken>(on_token));
    }

    /// About what was seen from since_us to until_us, as vicort_ask_between.
    Answer ask(const std::string &question, std::int64_t since_us, std::int64_t until_us) {
        return ask(question, since_us, until_us, [](std::string_view) {});
    }

    template <class OnToken> Answer ask(const std::string &question, std::int64_t since_us, std::int64_t until_us, OnToken &&on_token) {
        Call<std::remove_reference_t<OnToken>> call{on_token, {}, nullptr};
        const int code = vicort_ask_between(session_, question.c_str(), since_us, until_us, &decltype(call)::token, &call,
                                            &call.answer.facts);
        if (call.thrown) std::rethrow_exception(call.thrown);
        call.answer.stopped = code == VICORT_E_STOPPED;
        if (!call.answer.stopped) check(code);
        return std::move(call.answer);
    }

    /// An answer whose text is limited, as vicort_ask_constrained.
    Answer ask_constrained(const std::string &question, const Constraint &constraint, std::int64_t since_us = INT64_MIN,
                           std::int64_t until_us = INT64_MAX) {
        std::vector<const char *> choices;
        for (const std::string &choice : constraint.choices) choices.push_back(choice.c_str());
        const auto given = [](const std::string &text) { return text.empty() ? nullptr : text.c_str(); };
        const vicort_constraint limit = {choices.data(), choices.size(), given(constraint.regex), given(constraint.json_schema),
                                         given(constraint.lark)};
        const auto ignore = [](std::string_view) {};
        Call<const decltype(ignore)> call{ignore, {}, nullptr};
        call.answer.probabilities.resize(choices.size());
        check(vicort_ask_constrained(session_, question.c_str(), since_us, until_us, &limit, &decltype(call)::token, &call,
                                     call.answer.probabilities.data(), &call.answer.facts));
        return std::move(call.answer);
    }

    Stats stats() const {
        Stats stats{};
        check(vicort_get_stats(session_, &stats));
        return stats;
    }

    /// Close the session; calls of other threads end with VICORT_E_CLOSED. The destructor does the same and ignores errors.
    void close() { check(vicort_close(session_)); }

    vicort_session *get() const noexcept { return session_; }

private:
    template <class OnToken> struct Call {
        OnToken &on_token;
        Answer answer;
        std::exception_ptr thrown;

        static int token(void *user_data, const char *text, std::size_t length) noexcept {
            auto &call = *static_cast<Call *>(user_data);
            try {
                const std::string_view piece(text, length);
                call.answer.text += piece;
                if constexpr (std::is_same_v<decltype(call.on_token(piece)), bool>) {
                    return call.on_token(piece) ? 0 : 1;
                } else {
                    call.on_token(piece);
                    return 0;
                }
            } catch (...) {
                call.thrown = std::current_exception();
                return 1;
            }
        }
    };

    vicort_session *session_ = nullptr;
};

} // namespace vicort

#endif
