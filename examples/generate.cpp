// Generates a continuation of a prompt with any Mamba checkpoint, token by token as it is made.
#include <minimamba/io.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int refused = 1, usage = 2, interrupted = 130;

struct Arguments {
  std::string model, prompt, prompt_file, prompt_ids, weights = "f32", backend = "native";
  minimamba::GenerateOptions options;
  int threads = 0;
  bool ids = false, stats = false;
};

std::atomic<bool> stop{false};
extern "C" void on_interrupt(int) { stop = true; }

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Whole numbers between white space or commas.
std::vector<std::int32_t> parse_ids(const std::string& text) {
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; (at = text.find_first_not_of(" \t\r\n,", at)) != text.npos;) {
    const std::size_t end = std::min(text.find_first_of(" \t\r\n,", at), text.size());
    std::int32_t id = 0;
    const auto [rest, error] = std::from_chars(text.data() + at, text.data() + end, id);
    if (error != std::errc() || rest != text.data() + end) {
      throw minimamba::ArgumentError("--prompt-ids", "token ids", "\"" + text.substr(at, end - at) + "\"");
    }
    ids.push_back(id);
    at = end;
  }
  return ids;
}

std::string read_file(const std::string& path) {
  const auto source = minimamba::ByteSource::open(path);
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  source.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

/// A byte-level model has a token for each byte; text of any other needs its tokenizer, which is not read yet.
std::vector<std::int32_t> encode_bytes(const std::string& text, const minimamba::MambaConfig& config) {
  if (config.vocab_size != 256) {
    throw minimamba::ArgumentError("--prompt", "a byte-level model (256 tokens), or --prompt-ids",
                                   "a vocabulary of " + std::to_string(config.vocab_size));
  }
  std::vector<std::int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

/// Shows what was printed. False when nobody reads any more; throws when it cannot be written.
bool flush() {
  errno = 0;
  if (std::fflush(stdout) == 0) return true;
  if (errno == EPIPE) return false;
  throw minimamba::FileError("standard output", "room for the text", std::strerror(errno));
}

template <class Model>
int run(const Arguments& arguments) {
  using Backend = typename Model::BackendType;
  const auto load_start = std::chrono::steady_clock::now();
  const Model model = minimamba::load<Model>(arguments.model, {.backend = Backend({.threads = arguments.threads})});
  const double load_seconds = seconds_since(load_start);

  std::vector<std::int32_t> prompt = parse_ids(arguments.prompt_ids);
  if (!arguments.prompt_file.empty()) prompt = encode_bytes(read_file(arguments.prompt_file), model.config());
  if (!arguments.prompt.empty()) prompt = encode_bytes(arguments.prompt, model.config());
  if (prompt.empty()) prompt.push_back(model.config().bos_token_id.value_or(0));

  const bool as_ids = arguments.ids || model.config().vocab_size != 256;
  if (!as_ids) std::fwrite(arguments.prompt.data(), 1, arguments.prompt.size(), stdout);
  auto cache = model.make_cache();
  auto tokens = minimamba::generate(model, cache, prompt, arguments.options);
  std::size_t count = 0;
  double prompt_seconds = 0;
  auto start = std::chrono::steady_clock::now();
  for (const std::int32_t token : tokens) {
    if (count++ == 0) prompt_seconds = seconds_since(std::exchange(start, std::chrono::steady_clock::now()));
    if (as_ids) {
      std::printf(count == 1 ? "%d" : " %d", token);
    } else {
      std::putchar(token);
    }
    if (!flush()) return 0;
    if (stop) break;
  }
  std::printf("\n");
  if (!flush()) return 0;
  if (arguments.stats) {
    const double rest = seconds_since(start);
    std::fprintf(stderr, "backend %s, %d threads, %zu parameters, %s weights, state of %zu bytes\n",
                 model.backend().name(), model.backend().threads(), model.parameter_count(), arguments.weights.c_str(),
                 cache.state_bytes());
    std::fprintf(stderr, "load %.3f s; prompt %zu tokens, %.1f tokens/s; generated %zu tokens, %.1f tokens/s\n",
                 load_seconds, prompt.size(), static_cast<double>(prompt.size()) / std::max(prompt_seconds, 1e-9),
                 count, count > 1 ? static_cast<double>(count - 1) / std::max(rest, 1e-9) : 0.0);
  }
  return stop ? interrupted : 0;
}

template <template <class> class Backend>
int run_with(const Arguments& arguments) {
  if (arguments.weights == "bf16") return run<minimamba::Mamba<float, Backend, minimamba::bf16>>(arguments);
  if (arguments.weights == "f16") return run<minimamba::Mamba<float, Backend, minimamba::f16>>(arguments);
  if (arguments.weights == "q8") return run<minimamba::Mamba<float, Backend, minimamba::q8>>(arguments);
  if (arguments.weights == "q4") return run<minimamba::Mamba<float, Backend, minimamba::q4>>(arguments);
  return run<minimamba::Mamba<float, Backend>>(arguments);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  auto& options = arguments.options;
  CLI::App app("Generates a continuation of a prompt with a Mamba model.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("--model", arguments.model, "Folder, or safetensors file beside its config.json")->required();
  auto* text = app.add_option("--prompt", arguments.prompt, "Text to continue (byte-level models)");
  auto* file = app.add_option("--prompt-file", arguments.prompt_file, "File with the text to continue");
  auto* ids = app.add_option("--prompt-ids", arguments.prompt_ids, "Token ids to continue, as \"1 2 3\"");
  text->excludes(file)->excludes(ids);
  file->excludes(ids);
  app.add_option("--max-new-tokens", options.max_new_tokens, "Tokens to generate at most")->capture_default_str();
  app.add_option("--temperature", options.temperature, "0 takes the most likely token")->capture_default_str();
  app.add_option("--top-k", options.top_k, "Choose among the k most likely tokens (0: all)")->capture_default_str();
  app.add_option("--top-p", options.top_p, "Choose among those with this probability together")->capture_default_str();
  app.add_option("--min-p", options.min_p, "Choose among those this likely beside the likeliest")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Seed of the random choices")->capture_default_str();
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on after the end-of-text token");
  app.add_option("--weights", arguments.weights, "How the matrices are kept in memory")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8", "q4"}))
      ->capture_default_str();
  app.add_option("--backend", arguments.backend, "What computes")
      ->check(CLI::IsMember({"native", "eigen", "reference"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "0: as many as the process may use")->capture_default_str();
  app.add_flag("--ids", arguments.ids, "Print token ids, not text");
  app.add_flag("--stats", arguments.stats, "Print rates and sizes to standard error at the end");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : usage;
  }
  std::signal(SIGINT, on_interrupt);
#ifdef SIGPIPE
  std::signal(SIGPIPE, SIG_IGN);
#endif
  try {
    if (arguments.backend == "reference") return run_with<minimamba::ReferenceBackend>(arguments);
    if (arguments.backend == "eigen") return run_with<minimamba::EigenBackend>(arguments);
    return run_with<minimamba::NativeBackend>(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "generate: %s\n", error.what());
    return refused;
  }
}
