// The server of serve, which serve_run.cpp compiles: the only file that includes cpp-httplib.
#ifndef MINIMAMBA_EXAMPLES_SERVE_RUN_HPP
#define MINIMAMBA_EXAMPLES_SERVE_RUN_HPP

#include <minimamba/generate/request.hpp>
#include <minimamba/io/any_model.hpp>
#include <minimamba/io/session_store.hpp>
#include <minimamba/text/tokenizer.hpp>

#include <atomic>
#include <cstddef>
#include <string>

#include "serve_api.hpp"
#include "serve_chat.hpp"

namespace serve {

struct Options {
  std::string host = "127.0.0.1", api_key;
  int port = 8080;                // 0: any that is free
  std::size_t connections = 256;  // that are served at the same time
  int drain_seconds = 30;         // to finish answers at the end
  Limits limits;
};

struct Served {
  const minimamba::AnyModel& model;
  const minimamba::Tokenizer& tokenizer;
  const FoundTemplate& chat;
  std::string name;  // of the model
  Options options;
  minimamba::SchedulerOptions scheduler;
  minimamba::SessionStoreOptions sessions;
  const std::atomic<bool>& stop;  // set to end it
};

/// Serves until it is told to stop. Throws ArgumentError if the port is taken.
void run(const Served& served);

}  // namespace serve

#endif
