// A service in small: one thread streams a file at its own speed, another asks about it meanwhile, and prints tokens as they arrive.
//
//     service FILE [PACE [ENGINE_DIR]]
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include <vicort.hpp>

namespace {

void ask(vicort::Session &session, const std::string &question) {
    const vicort::Answer answer = session.ask(question, [first = true, &question](std::string_view piece) mutable {
        if (first) std::cout << question << "  ";
        first = false;
        std::cout << piece << std::flush;
    });
    std::cout << "   (at " << answer.facts.at_us / 1e6 << " s, first token after " << answer.facts.ttft_ms << " ms)" << std::endl;
}

// Every two seconds of the stream, until it ends.
void keep_asking(vicort::Session &session, double pace, const std::atomic<bool> &ended) {
    const auto period = std::chrono::duration<double>(2 / (pace > 0 ? pace : 1));
    auto due = std::chrono::steady_clock::now() + period;
    while (!ended) {
        if (std::chrono::steady_clock::now() < due) {
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
            continue;
        }
        due += period;
        ask(session, "what is there now?");
    }
}

int serve(const std::string &file, double pace, const char *engine_dir) {
    vicort::Params params = vicort::defaults();
    params.engine_dir = engine_dir;
    vicort::Session session(params);

    std::atomic<bool> ended{false};
    std::exception_ptr failure;
    std::thread asker([&] {
        try {
            keep_asking(session, pace, ended);
        } catch (...) {
            failure = std::current_exception();
        }
    });
    try {
        session.push_source(file, pace);
    } catch (...) {
        ended = true;
        asker.join();
        throw;
    }
    ended = true;
    asker.join();
    if (failure) std::rethrow_exception(failure);

    session.finish();
    ask(session, "what color was the circle?");
    const vicort::Stats stats = session.stats();
    std::cout << stats.frames << " frames in " << stats.chunks << " chunks, first token p50 " << stats.ttft_p50_ms << " ms" << std::endl;
    return EXIT_SUCCESS;
}

} // namespace

int main(int count, char **arguments) {
    if (count < 2) {
        std::cerr << "usage: service FILE [PACE [ENGINE_DIR]]\n";
        return EXIT_FAILURE;
    }
    try {
        return serve(arguments[1], count > 2 ? std::atof(arguments[2]) : 1, count > 3 ? arguments[3] : nullptr);
    } catch (const std::exception &error) {
        std::cerr << "service: " << error.what() << "\n";
        return EXIT_FAILURE;
    }
}
