// Code that the example programs share: exit codes, Ctrl-C, output, a progress line, files, checkpoints, tokenizers.
#ifndef MINIMAMBA_EXAMPLES_PROGRAM_HPP
#define MINIMAMBA_EXAMPLES_PROGRAM_HPP

#include <minimamba/io.hpp>
#include <minimamba/io/any_model.hpp>
#include <minimamba/text.hpp>
#if defined(MINIMAMBA_WITH_PCRE2)
#include <minimamba/text/pcre2.hpp>
#endif

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/ioctl.h>
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

#ifndef MINIMAMBA_EXAMPLE_DATA
#define MINIMAMBA_EXAMPLE_DATA "examples/data"  // for programs compiled by hand in the source tree
#endif

namespace program {

constexpr int refused = 1, usage = 2, interrupted = 130;

inline std::atomic<bool> stop{false};

/// The first Ctrl-C sets `stop`, the second one ends the program immediately. SIGPIPE and SIGXFSZ are ignored, so that
/// a closed pipe and a limit on the size of files show up as failed writes.
inline void handle_signals() {
  std::signal(SIGINT, [](int) {
    if (stop) std::_Exit(interrupted);
    stop = true;
  });
#ifdef SIGPIPE
  std::signal(SIGPIPE, SIG_IGN);
#endif
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);
#endif
}

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Whether standard error (2) or standard output (1) is a terminal, where a line can be overwritten.
inline bool is_terminal(int descriptor = 2) {
#if defined(__unix__) || defined(__APPLE__)
  return ::isatty(descriptor) != 0;
#else
  return descriptor < 0;
#endif
}

/// The width of the terminal, in characters.
inline std::size_t columns() {
#if defined(__unix__) || defined(__APPLE__)
  winsize size{};
  if (::ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 1) return size.ws_col;
#endif
  return 80;
}

/// A progress line that overwrites itself on a terminal; it shows nothing elsewhere. The text is cut to the width of
/// the terminal, because a wrapped line could not be overwritten.
class LiveLine {
 public:
  LiveLine() = default;
  LiveLine(const LiveLine&) = delete;
  LiveLine& operator=(const LiveLine&) = delete;
  ~LiveLine() { clear(); }

  void show(std::string text) {
    if (!is_terminal()) return;
    const std::size_t most = columns() - 1, size = std::min(text.size(), most);
    text.resize(size);
    text.resize(std::max(size, std::min(shown_, most)), ' ');  // overwrites the rest of the previous text
    std::fprintf(stderr, "\r%s", text.c_str());
    std::fflush(stderr);
    shown_ = size;
  }
  void clear() {
    if (shown_ == 0) return;
    show("");
    std::fprintf(stderr, "\r");
    std::fflush(stderr);
  }

 private:
  std::size_t shown_ = 0;
};

inline bool line_open = false;  // whether the last print() ended without a newline

/// Writes to standard output and flushes it. Returns false if the reader has closed the pipe. Throws FileError if
/// writing fails for another reason.
inline bool print(std::string_view text) {
  if (!text.empty()) line_open = text.back() != '\n';
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (written) return true;
  if (errno == EPIPE) return false;
  throw minimamba::FileError("standard output", std::string("cannot be written: ") + std::strerror(errno));
}

/// Prints the error on a new line of standard error, and returns the exit code.
inline int refuse(const char* name, const std::exception& error) {
  if (line_open) std::fputc('\n', stdout);
  std::fflush(stdout);
  std::fprintf(stderr, "%s: %s\n", name, error.what());
  return refused;
}

/// Validates a seed for CLI11, which would otherwise clamp it. Returns the problem, or an empty text.
inline std::string check_seed(const std::string& text) {
  std::uint64_t seed = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, seed);
  return error == std::errc() && rest == end ? "" : "expected an integer from 0 to 2^64 - 1, found " + text;
}

/// Reads standard input to its end. It can be read only once.
inline std::string read_input() {
  static bool was_read = false;
  if (std::exchange(was_read, true)) {
    throw minimamba::FileError("standard input", "it can be read only once, but - is given more than once");
  }
  std::string text;
  char piece[1 << 16];
  for (std::size_t size = sizeof piece; size == sizeof piece && !stop;) {
    size = std::fread(piece, 1, sizeof piece, stdin);
    text.append(piece, size);
  }
  if (std::ferror(stdin))
    throw minimamba::FileError("standard input", std::string("cannot be read: ") + std::strerror(errno));
  return text;
}

/// Reads a file or a pipe to its end; "-" is standard input.
inline std::string read_file(const std::filesystem::path& path) {
  if (path == "-") return read_input();
  std::error_code unknown;
  const auto type = std::filesystem::status(path, unknown).type();
  std::string text;
  if (type != std::filesystem::file_type::fifo && type != std::filesystem::file_type::character) {
    const auto source = minimamba::ByteSource::open(path);
    text.resize(static_cast<std::size_t>(source.size()));
    source.read(0, std::as_writable_bytes(std::span(text)));
    return text;
  }
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw minimamba::FileError(path.string(), std::string("cannot be opened: ") + std::strerror(errno));
  for (char piece[1 << 16]; stream && !stop;) {
    stream.read(piece, sizeof(piece));
    text.append(piece, static_cast<std::size_t>(stream.gcount()));
  }
  if (stream.bad()) throw minimamba::FileError(path.string(), std::string("cannot be read: ") + std::strerror(errno));
  return text;
}

/// Parses integers separated by white space or commas.
inline std::vector<std::int32_t> parse_ids(const std::string& text) {
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; (at = text.find_first_not_of(" \t\r\n,", at)) != text.npos;) {
    const std::size_t end = std::min(text.find_first_of(" \t\r\n,", at), text.size());
    std::int32_t id = 0;
    const auto [rest, error] = std::from_chars(text.data() + at, text.data() + end, id);
    if (error != std::errc() || rest != text.data() + end) {
      throw minimamba::ArgumentError("--prompt-ids", "integers", "\"" + text.substr(at, end - at) + "\"");
    }
    ids.push_back(id);
    at = end;
  }
  return ids;
}

/// The number of tokens to read per call, chosen so that Ctrl-C is noticed soon: it starts small and doubles while a
/// call takes less than 0.1 s. On the Eigen backend, whose bits depend on it, it is constant.
class Pieces {
 public:
  Pieces(const minimamba::AnyModel& model, std::size_t most)
      : most_(most), size_(model.splits_exactly() ? std::min<std::size_t>(most, 16) : most) {}

  /// The size of the next piece. Call it right after the previous piece was read.
  std::size_t next() {
    const auto now = std::chrono::steady_clock::now();
    if (begun_ && now - start_ < std::chrono::milliseconds(100)) size_ = std::min(2 * size_, most_);
    begun_ = true;
    start_ = now;
    return size_;
  }

 private:
  std::size_t most_, size_;
  bool begun_ = false;
  std::chrono::steady_clock::time_point start_;
};

/// Prints a note about ignored or changed input to standard error.
inline void print_note(const std::string& note) { std::fprintf(stderr, "note: %s\n", note.c_str()); }

/// Opens a checkpoint and prints its notes.
inline minimamba::Checkpoint open_model(const std::filesystem::path& path) {
  minimamba::Checkpoint checkpoint = minimamba::open_checkpoint(path);
  for (const std::string& note : checkpoint.notes) print_note(note);
  return checkpoint;
}

/// Prints the notes of a tokenizer and returns it.
inline minimamba::Tokenizer with_notes(minimamba::Tokenizer tokenizer) {
  for (const std::string& note : tokenizer.notes()) print_note(note);
  return tokenizer;
}

/// Options for loading a tokenizer: with PCRE2, if the program was built with it, for other regular expressions.
inline minimamba::TokenizerOptions tokenizer_options() {
  minimamba::TokenizerOptions options;
#if defined(MINIMAMBA_WITH_PCRE2)
  options.regex = minimamba::Pcre2();
#endif
  return options;
}

/// The tokenizer at `path` or, if that is empty, the model's own, if it has one. Prints its notes. A tokenizer of the
/// model that is damaged or not supported is an error if the program needs one, and otherwise a note.
inline std::optional<minimamba::Tokenizer> find_tokenizer(const std::string& path,
                                                          const minimamba::Checkpoint& checkpoint, bool needed = true) {
  const minimamba::TokenizerOptions options = tokenizer_options();
  if (!path.empty()) return with_notes(minimamba::Tokenizer::load(std::filesystem::path(path), options));
  try {
    auto own = minimamba::find_tokenizer(checkpoint, options);
    if (own) return with_notes(*std::move(own));
  } catch (const minimamba::FormatError& error) {
    const minimamba::FormatError named(error.subject(), error.expected(),
                                       error.found() + " (--tokenizer FILE reads another tokenizer)");
    if (needed) throw named;
    print_note(named.what());
  }
  return std::nullopt;
}

/// Throws CheckpointError for logits that are NaN or infinite. It names the first tensor that contains such a value.
[[noreturn]] inline void refuse_logits(const minimamba::Checkpoint& checkpoint, const minimamba::AnyModel& model,
                                       std::int64_t tokens) {
  const std::string logits =
      "the logits after " + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens") + " are not finite: ";
  std::vector<double> some(1U << 14);
  for (const auto& [name, size] : model.parameters()) {
    const bool log_of_a = name.ends_with("A_log");  // A = 0 is valid
    for (std::size_t first = 0; first < size; first += some.size()) {
      const auto part = std::span(some).first(std::min(some.size(), size - first));
      checkpoint.read(name, first, part);
      const auto bad = std::find_if(part.begin(), part.end(), [log_of_a](double x) {
        return !std::isfinite(x) && !(log_of_a && x == -std::numeric_limits<double>::infinity());
      });
      if (bad == part.end()) continue;
      throw minimamba::CheckpointError(checkpoint.weights_name + ": " + checkpoint.find(name)->name,
                                       logits + "element " +
                                           std::to_string(first + static_cast<std::size_t>(bad - part.begin())) +
                                           " of this tensor is " + minimamba::number_text(*bad));
    }
  }
  throw minimamba::CheckpointError(checkpoint.weights_name,
                                   logits + "all weights are finite, but too large to compute with");
}

/// The text of a tokenizer.json for the tokenizer of a GGUF file: the one stored in it, or one built from its parts.
/// Empty if the tokens are bytes, or if there is no tokenizer.
inline std::string gguf_tokenizer_json(const minimamba::Checkpoint& checkpoint) {
  const auto json = checkpoint.metadata.find(minimamba::hugging_face_tokenizer_key);
  const auto model = checkpoint.metadata.find("tokenizer.ggml.model");
  if (json != checkpoint.metadata.end() && std::holds_alternative<std::string>(json->second)) {
    return std::get<std::string>(json->second);
  }
  const bool supported =
      model != checkpoint.metadata.end() && (model->second == minimamba::GgufValue(std::string("gpt2")) ||
                                             model->second == minimamba::GgufValue(std::string("llama")));
  if (!supported) return "";
  const auto parts = minimamba::gguf_tokenizer(checkpoint.metadata, checkpoint.weights_name);
  return minimamba::are_bytes(parts.tokens) ? "" : minimamba::tokenizer_json(parts);
}

/// The path of this program; empty where the system does not provide it.
inline std::filesystem::path executable() {
  std::error_code error;
#if defined(__APPLE__)
  char path[4096];
  std::uint32_t size = sizeof(path);
  return _NSGetExecutablePath(path, &size) == 0 ? std::filesystem::canonical(path, error) : std::filesystem::path();
#elif defined(_WIN32)
  return _pgmptr == nullptr ? std::filesystem::path() : std::filesystem::canonical(_pgmptr, error);
#else
  return std::filesystem::read_symlink("/proc/self/exe", error);
#endif
}

/// The folder of a model that ships with minimamba: from the installation of this program, or from the source tree that
/// it was built from. Throws FileError if neither exists.
inline std::filesystem::path shipped_model(const std::string& name) {
  const std::filesystem::path installed = executable().parent_path().parent_path() / "share" / "minimamba" / name;
  const std::filesystem::path source = std::filesystem::path(MINIMAMBA_EXAMPLE_DATA) / name;
  for (const auto& folder : {installed, source}) {
    if (std::filesystem::exists(folder / "config.json")) return folder;
  }
  throw minimamba::FileError(installed.string(),
                             "the model that ships with minimamba is missing; name one with --model");
}

/// Peak resident memory so far, in MB; 0 where the system does not provide it.
inline double peak_megabytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtod(line.c_str() + 6, nullptr) / 1000;
  }
  return 0;
}

}  // namespace program

#endif
