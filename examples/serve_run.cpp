// The server of serve: the connections, the scheduler, and their end.
#include "serve_run.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "serve_routes.hpp"

namespace serve {
namespace {

/// Runs the scheduler until the program is told to end and all answers are given, or the time for that is over.
void run_until_stopped(Engine& engine, HttpServer& server, const std::atomic<bool>& stop, int drain_seconds) {
  auto end = Clock::time_point::max();
  engine.run([&] {
    if (!stop) return false;
    if (end == Clock::time_point::max()) {
      std::fprintf(stderr, "ending: %zu connections are open\n", server.open_connections());
      server.drain();
      end = Clock::now() + std::chrono::seconds(drain_seconds);
    }
    return server.open_connections() == 0 || Clock::now() >= end;
  });
}

}  // namespace

void run(const Served& served) {
  const Options& options = served.options;
  Sessions sessions(served.model, served.sessions);
  Engine engine(served.model, served.tokenizer, served.scheduler);
  Service service{served.model, served.tokenizer, served.chat, options.limits, served.name, engine, sessions};
  HttpServer server({.connections = options.connections, .body_bytes = options.limits.body_bytes});
  const Routes routes(service, server, options.api_key);
  const int port = server.bind(options.host, options.port);
  if (port < 0) {
    throw minimamba::ArgumentError("--port", options.host + ":" + std::to_string(options.port) +
                                                 " cannot be listened on: is another server there?");
  }
  std::printf("serving %s at http://%s:%d\n", served.name.c_str(), options.host.c_str(), port);
  std::fflush(stdout);
  std::thread listener([&] { server.listen_after_bind(); });
  run_until_stopped(engine, server, served.stop, options.drain_seconds);
  engine.refuse_all("the server is ending");
  server.stop();
  listener.join();
  sessions.flush();
}

}  // namespace serve
