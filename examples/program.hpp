// What the example programs share: exit codes, Ctrl-C, output that may break, a line that changes, tokenizers.
#ifndef MINIMAMBA_EXAMPLES_PROGRAM_HPP
#define MINIMAMBA_EXAMPLES_PROGRAM_HPP

#include <minimamba/io.hpp>
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
#define MINIMAMBA_EXAMPLE_DATA "examples/data"  // for who compiles by hand, in the source tree
#endif

namespace program {

constexpr int refused = 1, usage = 2, interrupted = 130;

inline std::atomic<bool> stop{false};

/// Ctrl-C sets `stop`; a second one ends the program at once. A reader that goes away, and a limit on the size of
/// files, are seen as a failed write.
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

/// Whether standard error (2) or output (1) is read by a person now, for whom a line may be written over.
inline bool is_terminal(int descriptor = 2) {
#if defined(__unix__) || defined(__APPLE__)
  return ::isatty(descriptor) != 0;
#else
  return descriptor < 0;
#endif
}

/// The width of that terminal.
inline std::size_t columns() {
#if defined(__unix__) || defined(__APPLE__)
  winsize size{};
  if (::ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 1) return size.ws_col;
#endif
  return 80;
}

/// A line of a terminal that is written over; nothing elsewhere. It never wraps, for what has wrapped stays.
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
    text.resize(std::max(size, std::min(shown_, most)), ' ');  // over what is left of the last one
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

inline bool line_open = false;  // whether print() has left off within a line

/// Writes to standard output and shows it. False when nobody reads any more; throws when it cannot be written.
inline bool print(std::string_view text) {
  if (!text.empty()) line_open = text.back() != '\n';
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (written) return true;
  if (errno == EPIPE) return false;
  throw minimamba::FileError("standard output", "room for the text", std::strerror(errno));
}

/// Says why the program ends, on a line of its own.
inline int refuse(const char* name, const std::exception& error) {
  if (line_open) std::fputc('\n', stdout);
  std::fflush(stdout);
  std::fprintf(stderr, "%s: %s\n", name, error.what());
  return refused;
}

/// For CLI11, which would take the nearest number that fits: says what is wrong with a seed, if anything is.
inline std::string check_seed(const std::string& text) {
  std::uint64_t seed = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, seed);
  return error == std::errc() && rest == end ? "" : "expected a whole number from 0 to 2^64 - 1, found " + text;
}

/// What standard input still brings; nothing is left for who asks again.
inline std::string read_input() {
  static bool was_read = false;
  if (std::exchange(was_read, true)) {
    throw minimamba::FileError("standard input", "one use of -", "another one, for which nothing is left");
  }
  std::string text;
  char piece[1 << 16];
  for (std::size_t size = sizeof piece; size == sizeof piece && !stop;) {
    size = std::fread(piece, 1, sizeof piece, stdin);
    text.append(piece, size);
  }
  if (std::ferror(stdin)) throw minimamba::FileError("standard input", "bytes to its end", std::strerror(errno));
  return text;
}

/// The whole of a file, or of what a pipe still brings; of standard input for "-".
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
  if (!stream) throw minimamba::FileError(path.string(), "a file that can be read", std::strerror(errno));
  for (char piece[1 << 16]; stream && !stop;) {
    stream.read(piece, sizeof(piece));
    text.append(piece, static_cast<std::size_t>(stream.gcount()));
  }
  if (stream.bad()) throw minimamba::FileError(path.string(), "bytes to its end", std::strerror(errno));
  return text;
}

/// How many tokens to read at a time, so that Ctrl-C is soon seen: more and more while that takes no time. Only where
/// the bits do not depend on it, which is everywhere but with Eigen: there it is always the same number.
class Pieces {
 public:
  template <class Model>
  Pieces(const Model&, std::size_t most)
      : most_(most),
        size_(minimamba::BackendTraits<typename Model::BackendType>::splits_exactly ? std::min<std::size_t>(most, 16)
                                                                                    : most) {}

  /// The size of the next piece, asked for as soon as the last one was read.
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

/// Says on standard error what is ignored or changed.
inline void print_note(const std::string& note) { std::fprintf(stderr, "note: %s\n", note.c_str()); }

/// Opens a checkpoint, and says what of it is ignored.
inline minimamba::Checkpoint open_model(const std::filesystem::path& path) {
  minimamba::Checkpoint checkpoint = minimamba::open_checkpoint(path);
  for (const std::string& note : checkpoint.notes) print_note(note);
  return checkpoint;
}

/// Says what was ignored in a tokenizer, and passes it on.
inline minimamba::Tokenizer with_notes(minimamba::Tokenizer tokenizer) {
  for (const std::string& note : tokenizer.notes()) print_note(note);
  return tokenizer;
}

/// Regular expressions that the library does not know are PCRE2's affair, where it is there.
inline minimamba::TokenizerOptions tokenizer_options() {
  minimamba::TokenizerOptions options;
#if defined(MINIMAMBA_WITH_PCRE2)
  options.regex = minimamba::Pcre2();
#endif
  return options;
}

/// The tokenizer that was asked for, or the model's own: in its GGUF file, tokenizer.json beside it, the bytes for a
/// model with 256 tokens. None for others.
inline std::optional<minimamba::Tokenizer> find_tokenizer(const std::string& path,
                                                          const minimamba::Checkpoint& checkpoint) {
  const minimamba::TokenizerOptions options = tokenizer_options();
  if (!path.empty()) return with_notes(minimamba::Tokenizer::load(std::filesystem::path(path), options));
  const auto model = checkpoint.metadata.find("tokenizer.ggml.model");
  const bool none =
      model != checkpoint.metadata.end() && model->second == minimamba::GgufValue(std::string("no_vocab"));
  if (model != checkpoint.metadata.end() && !none) {
    return with_notes(minimamba::Tokenizer::load(checkpoint.metadata, checkpoint.weights_name, options));
  }
  const std::filesystem::path json = checkpoint.folder / "tokenizer.json";
  const bool gguf = checkpoint.format == minimamba::CheckpointFormat::gguf;
  if (!gguf && minimamba::is_there(json)) return with_notes(minimamba::Tokenizer::load(json, options));
  if (checkpoint.config.padded_vocab_size() == 256) return minimamba::Tokenizer::bytes();
  return std::nullopt;
}

/// Rows that fill up the embedding are tokens where the tokenizer that was asked for names them.
inline void count_named_tokens(minimamba::Checkpoint& checkpoint, const minimamba::Tokenizer& tokenizer) {
  auto id = static_cast<std::int32_t>(std::min<std::int64_t>(tokenizer.size(), checkpoint.config.padded_vocab_size()));
  while (id > checkpoint.config.vocab_size && tokenizer.bytes_of(id - 1).empty()) --id;
  checkpoint.config.vocab_size = std::max<std::int64_t>(checkpoint.config.vocab_size, id);
}

/// Says why logits are no numbers: names the first tensor of the model's that holds NaN or infinity, if one does.
template <class Model>
[[noreturn]] void refuse_numbers(const minimamba::Checkpoint& checkpoint, const Model& model, std::int64_t tokens) {
  const std::string expected = "finite numbers (the logits are none after " + std::to_string(tokens) + " tokens)";
  std::vector<double> some(1U << 14);
  minimamba::for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        for (std::size_t first = 0; first < parameter.size(); first += some.size()) {
          const auto part = std::span(some).first(std::min(some.size(), parameter.size() - first));
          checkpoint.read(name, first, part);
          const auto bad = std::find_if(part.begin(), part.end(), [&](double x) {
            const bool zero_a = name.ends_with("A_log") && x == -std::numeric_limits<double>::infinity();
            return !std::isfinite(x) && !zero_a;  // an A of zero is one as any other
          });
          if (bad == part.end()) continue;
          throw minimamba::CheckpointError(checkpoint.weights_name + ": " + checkpoint.find(name)->name, expected,
                                           minimamba::number_text(*bad) + " in element " +
                                               std::to_string(first + static_cast<std::size_t>(bad - part.begin())));
        }
      },
      model);
  throw minimamba::CheckpointError(checkpoint.weights_name, expected,
                                   "finite numbers in all tensors, which are too large to compute with");
}

/// The tokenizer in a GGUF file as tokenizer.json: the one that it holds, or one made of its parts. Empty if its tokens
/// are the bytes, or if it has none.
inline std::string gguf_tokenizer_json(const minimamba::Checkpoint& checkpoint) {
  const auto json = checkpoint.metadata.find(minimamba::hugging_face_tokenizer_key);
  const auto model = checkpoint.metadata.find("tokenizer.ggml.model");
  if (json != checkpoint.metadata.end() && std::holds_alternative<std::string>(json->second)) {
    return std::get<std::string>(json->second);
  }
  if (model == checkpoint.metadata.end() || model->second != minimamba::GgufValue(std::string("gpt2"))) return "";
  const auto parts = minimamba::gguf_tokenizer(checkpoint.metadata, checkpoint.weights_name);
  return minimamba::are_bytes(parts.tokens) ? "" : minimamba::tokenizer_json(parts);
}

/// Where this program lies; empty where the system does not tell.
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

/// A model that comes with the programs: beside them where they are installed, or in the source tree that they were
/// built from. Throws FileError.
inline std::filesystem::path shipped_model(const std::string& name) {
  const std::filesystem::path installed = executable().parent_path().parent_path() / "share" / "minimamba" / name;
  const std::filesystem::path source = std::filesystem::path(MINIMAMBA_EXAMPLE_DATA) / name;
  for (const auto& folder : {installed, source}) {
    if (std::filesystem::exists(folder / "config.json")) return folder;
  }
  throw minimamba::FileError(installed.string(), "the model that comes with minimamba, or --model", "none");
}

/// Greatest resident memory so far, in MB; 0 where the system does not tell.
inline double peak_megabytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtod(line.c_str() + 6, nullptr) / 1000;
  }
  return 0;
}

}  // namespace program

#endif
