// Serves a Mamba model over HTTP, with the interface of OpenAI's API and a page to try it.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "command_line.hpp"
#include "program.hpp"
#include "serve_chat.hpp"
#include "serve_run.hpp"

namespace {

struct Arguments {
  std::string model, tokenizer, weights = "f32", backend = "native", name, chat_template, session_folder;
  int threads = 0;
  bool saturate = false;
  serve::Options options;
  minimamba::SchedulerOptions scheduler{.max_waiting = 256};
  std::size_t prefix_cache_mb = 256, session_mb = 1024, body_mb = 8;
};

void add_model_options(CLI::App& app, Arguments& arguments) {
  app.add_option("--model", arguments.model,
                 "Checkpoint folder or file, in any format (default: the model that ships with minimamba)");
  app.add_option("--tokenizer", arguments.tokenizer,
                 "tokenizer.json or GGUF file to use instead of the model's tokenizer");
  app.add_option("--weights", arguments.weights, "Weight format of the matrices in memory")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8", "q4"}))
      ->capture_default_str();
  app.add_flag("--saturate", arguments.saturate, "Clamp weights outside the range of --weights instead of failing");
  app.add_option("--backend", arguments.backend,
                 "Backend that computes; auto is cuda if there is a card and the model fits, or else native")
      ->check(CLI::IsMember({"native", "eigen", "reference", "cuda", "auto"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "Number of threads that compute (0: one for each available core)")
      ->capture_default_str();
  app.add_option("--name", arguments.name, "Name of the model for clients (default: that of its folder or file)");
  app.add_option("--chat-template", arguments.chat_template,
                 "Template of chats, instead of the model's: chatml, inst or falcon");
}

void add_server_options(CLI::App& app, Arguments& arguments) {
  serve::Options& options = arguments.options;
  const auto some = CLI::Range(std::int64_t{1}, std::int64_t{1} << 40);
  const auto megabytes = CLI::Range(std::int64_t{0}, std::int64_t{1} << 30);
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str();
  };
  add("--host", options.host, "Address to listen on; with 0.0.0.0, other machines can connect");
  add("--port", options.port, "Port to listen on (0: any that is free)")->check(CLI::Range(0, 65535));
  app.add_option("--api-key", options.api_key, "Key that clients must give (also from MINIMAMBA_API_KEY)")
      ->check([](const std::string& key) { return key.empty() ? "the key is empty" : ""; })
      ->envname("MINIMAMBA_API_KEY");
  add("--connections", options.connections, "Connections that are served at the same time")->check(CLI::Range(1, 800));
  add("--slots", arguments.scheduler.slots, "Answers that are generated together; each costs a state")->check(some);
  add("--prompt-tokens", arguments.scheduler.prompt_tokens, "Tokens of prompts that are read in a step")->check(some);
  add("--max-waiting", arguments.scheduler.max_waiting, "Answers that may wait for a slot")->check(some);
  add("--prefix-cache-mb", arguments.prefix_cache_mb, "Memory for states after prompts that begin alike (0: none)")
      ->check(megabytes);
  add("--max-body-mb", arguments.body_mb, "Largest body of a request")->check(CLI::Range(1, 1024));
  add("--max-prompt-tokens", options.limits.prompt_tokens, "Longest prompt")->check(some);
  add("--max-tokens", options.limits.max_tokens, "Longest answer")->check(some);
  add("--max-choices", options.limits.choices, "Most answers to a request")->check(some);
  add("--max-seconds", options.limits.seconds, "Longest time for a request")->check(CLI::PositiveNumber);
  add("--session-mb", arguments.session_mb, "Memory for the states of sessions")->check(megabytes);
  add("--session-folder", arguments.session_folder,
      "Folder for sessions that do not fit in memory, and for all at the end (default: they are forgotten)");
  add("--drain-seconds", options.drain_seconds, "Time to finish answers when the server is told to end")
      ->check(CLI::Range(0, 86400));
}

std::string name_of(const Arguments& arguments) {
  if (!arguments.name.empty()) return arguments.name;
  std::error_code unknown;
  const auto path = std::filesystem::weakly_canonical(arguments.model, unknown);
  const std::string name =
      std::filesystem::is_directory(path, unknown) ? path.filename().string() : path.stem().string();
  return minimamba::printable(name.empty() ? "model" : name, 100);
}

int serve_model(const Arguments& arguments) {
  minimamba::Checkpoint checkpoint = program::open_model(arguments.model);
  const auto tokenizer = program::find_tokenizer(arguments.tokenizer, checkpoint);
  if (!tokenizer) throw minimamba::ArgumentError("--model", "the model has no tokenizer; use --tokenizer");
  minimamba::count_named_tokens(checkpoint.config, *tokenizer);
  const auto model = minimamba::AnyModel::load(checkpoint, {.weights = arguments.weights,
                                                            .backend = arguments.backend,
                                                            .threads = arguments.threads,
                                                            .progress = [](double) { return !program::stop; },
                                                            .on_note = program::print_note,
                                                            .saturate = arguments.saturate});
  const serve::FoundTemplate chat = serve::find_chat_template(arguments.chat_template, checkpoint, &*tokenizer);
  minimamba::SessionStoreOptions sessions{.max_bytes = arguments.session_mb << 20, .folder = arguments.session_folder};
  serve::run({.model = model,
              .tokenizer = *tokenizer,
              .chat = chat,
              .name = name_of(arguments),
              .options = arguments.options,
              .scheduler = arguments.scheduler,
              .sessions = std::move(sessions),
              .stop = program::stop});
  return 0;
}

int run(const CLI::App& app, Arguments& arguments) {
  std::signal(SIGTERM, [](int) {
    if (program::stop) std::_Exit(program::interrupted);
    program::stop = true;
  });
  arguments.scheduler.prefix_cache_bytes = arguments.prefix_cache_mb << 20;
  serve::Limits& limits = arguments.options.limits;
  limits.body_bytes = arguments.body_mb << 20;
  limits.choices = std::min(limits.choices, arguments.scheduler.max_waiting);  // as all of them may wait
  if (app.count("--model") == 0) arguments.model = program::shipped_model("shakespeare").string();
  return serve_model(arguments);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Serves a Mamba model over HTTP, with the interface of OpenAI's API and a page to try it.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  add_model_options(app, arguments);
  add_server_options(app, arguments);
  return program::run("serve", app, {argc, argv}, [&] { return run(app, arguments); });
}
