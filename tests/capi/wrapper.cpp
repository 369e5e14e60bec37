// wrapper ENGINE_DIR: vicort.hpp turns codes into exceptions, and lets no exception into C.
#include <iostream>
#include <thread>
#include <type_traits>
#include <vector>

#include <vicort.hpp>

#define CHECK(truth)                                                                                \
    do {                                                                                            \
        if (!(truth)) {                                                                             \
            std::cerr << "line " << __LINE__ << ": not true: " #truth "\n";                         \
            std::exit(1);                                                                           \
        }                                                                                           \
    } while (0)

namespace {

template <class Work> int code_of(Work work) {
    try {
        work();
    } catch (const vicort::Error &error) {
        CHECK(std::string(error.what()).size() > 10);
        return error.code();
    }
    return VICORT_OK;
}

const std::vector<std::uint8_t> pixels(64 * 48 * 3, 90);

void push(vicort::Session &session, std::int64_t time_us) { session.push_rgb24(pixels.data(), pixels.size(), 64, 48, 192, time_us); }

void callbacks(vicort::Session &session) {
    std::string heard;
    const vicort::Answer answer = session.ask("what is there now?", [&](std::string_view piece) { heard += piece; });
    CHECK(heard == answer.text && !answer.stopped && answer.facts.tokens > 0 && !heard.empty());
    CHECK(session.ask("what is there now?").text == answer.text);

    const std::int64_t second = 1000000;
    CHECK(session.ask("what is there now?", -second, INT64_MAX).text == answer.text);
    CHECK(session.ask("what is there now?", 0, second / 25).facts.pages > 0);
    CHECK(session.ask("what is there now?", 10 * second, 20 * second).facts.pages == 0);
    CHECK(code_of([&] { session.ask("what is there now?", second, 0); }) == VICORT_E_QUESTION);
    CHECK(code_of([&] { session.ask("what is there now?", INT64_MIN, -1); }) == VICORT_E_QUESTION);

    struct Own {};
    bool caught = false;
    try {
        session.ask("what is there now?", [](std::string_view) { throw Own(); });
    } catch (const Own &) {
        caught = true;
    }
    CHECK(caught);

    int calls = 0;
    const vicort::Answer stopped = session.ask("what is there now?", [&](std::string_view) { return ++calls < 1; });
    CHECK(stopped.stopped && calls == 1 && !stopped.text.empty() && answer.text.compare(0, stopped.text.size(), stopped.text) == 0);

    std::string nested; // a question within an answer, and a frame
    session.ask("what is there now?", [&](std::string_view) {
        if (nested.empty()) nested = session.ask("what is there now?").text;
    });
    CHECK(nested == answer.text);
}

void closing_from_a_callback(const vicort::Params &params) {
    vicort::Session session(params);
    push(session, 0);
    push(session, 1);
    const int code = code_of([&] { session.ask("what is there now?", [&](std::string_view) { session.close(); }); });
    CHECK(code == VICORT_E_CLOSED);
    CHECK(code_of([&] { session.close(); }) == VICORT_E_CLOSED);
}

} // namespace

int main(int, char **arguments) {
    static_assert(!std::is_copy_constructible_v<vicort::Session> && std::is_nothrow_move_constructible_v<vicort::Session>);
    vicort::Params params = vicort::defaults();
    params.engine_dir = "/nowhere/at/all";
    CHECK(code_of([&] { vicort::Session session(params); }) == VICORT_E_ENGINE);
    params.engine_dir = arguments[1];
    params.fps = VICORT_FPS_SOURCE;
    params.max_tokens = 8;

    vicort::Session first(params);
    for (int i = 0; i < 6; i++) push(first, 40000 * i);
    CHECK(code_of([&] { push(first, 0); }) == VICORT_E_TIME);
    callbacks(first);

    CHECK(code_of([&] { first.push_packet(pixels.data(), pixels.size(), 0); }) == VICORT_E_CONFIG);
    CHECK(code_of([&] { first.set_codec("no-such-codec"); }) == VICORT_E_SOURCE);
    first.set_codec("mjpeg");
    CHECK(code_of([&] { first.push_packet(pixels.data(), pixels.size(), 0); }) == VICORT_E_SOURCE);

    vicort::Session second(std::move(first));
    CHECK(first.get() == nullptr && code_of([&] { push(first, 1); }) == VICORT_E_NULL);
    push(second, 400000);
    second.finish();
    const vicort::Answer chosen = second.ask_constrained("was there a circle?", {{"yes", "no"}, {}, {}, {}});
    CHECK(chosen.probabilities.size() == 2 && chosen.facts.complete == 1);
    CHECK((chosen.text == "yes") == (chosen.probabilities[0] >= chosen.probabilities[1]));
    CHECK(second.ask_constrained("what is there?", {{}, "red circle", {}, {}}).text == "red circle");
    CHECK(code_of([&] { second.ask_constrained("what is there?", {{}, "(", {}, {}}); }) == VICORT_E_QUESTION);
    CHECK(second.stats().frames == 7);
    vicort_session *handle = second.get();
    {
        const vicort::Session last(std::move(second));
    }
    CHECK(vicort_close(handle) == VICORT_E_CLOSED); // its destructor did

    closing_from_a_callback(params);
    std::cout << "the wrapper holds" << std::endl;
    return 0;
}
