// The server of serve: the connections, the scheduler, and their end.
#include "serve_run.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>

#include "serve_routes.hpp"

namespace serve {
namespace {

/// Runs the scheduler until the program is told to end and all answers are given, or the time for that is over.
void run_until_stopped(Engine& engine, HttpServer& server, const std::atomic<bool>& stop, int drain_seconds) {
  auto end = Clock::time_point::max();
  engine.run([&] {
    if (!stop) return false;
    if (end == Clock::time_point::max()) {
      std::fprintf(stderr, "ending: %zu requests are being answered\n", server.answering());
      server.drain();
      end = Clock::now() + std::chrono::seconds(drain_seconds);
    }
    return server.answering() == 0 || Clock::now() >= end;
  });
}

/// As clients write it.
std::string address(const std::string& host, int port) {
  const bool v6 = host.find(':') != host.npos;
  return "http://" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

/// Silent connections get what file descriptors are left below cpp-httplib's limit of 1024.
HttpOptions http_options(const Options& options) {
  HttpOptions http{.connections = options.connections, .body_bytes = options.limits.body_bytes};
  http.silent = std::min<std::size_t>(512, 980 - options.connections - http.waiting);
  return http;
}

}  // namespace

void run(const Served& served) {
  const Options& options = served.options;
  Sessions sessions(served.model, served.sessions);
  Engine engine(served.model, served.tokenizer, served.scheduler);
  Service service{served.model, served.tokenizer, served.chat, options.limits, served.name, engine, sessions};
  HttpServer server(http_options(options));
  const Routes routes(service, server, options.api_key);
  const int port = server.bind(options.host, options.port);
  if (port < 0) {
    throw minimamba::ArgumentError("--port", options.host + ":" + std::to_string(options.port) +
                                                 " cannot be listened on: is another server there?");
  }
  server.begin();
  std::printf("serving %s at %s\n", served.name.c_str(), address(options.host, port).c_str());
  std::fflush(stdout);
  run_until_stopped(engine, server, served.stop, options.drain_seconds);
  engine.refuse_all("the server is ending");
  server.end();
  sessions.flush();
}

}  // namespace serve
