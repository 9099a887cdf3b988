// What the example programs share: exit codes, Ctrl-C, output that may break, tokenizers.
#ifndef MINIMAMBA_EXAMPLES_PROGRAM_HPP
#define MINIMAMBA_EXAMPLES_PROGRAM_HPP

#include <minimamba/io.hpp>
#include <minimamba/text.hpp>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#if defined(__unix__) || defined(__APPLE__)
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

/// Whether standard error is read by a person now, for whom a line may be written over.
inline bool is_terminal() {
#if defined(__unix__) || defined(__APPLE__)
  return ::isatty(2) != 0;
#else
  return false;
#endif
}

/// Writes to standard output and shows it. False when nobody reads any more; throws when it cannot be written.
inline bool print(std::string_view text) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (written) return true;
  if (errno == EPIPE) return false;
  throw minimamba::FileError("standard output", "room for the text", std::strerror(errno));
}

inline std::string read_file(const std::filesystem::path& path) {
  const auto source = minimamba::ByteSource::open(path);
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  source.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

/// The tokenizer that was asked for, or the model's own: in its GGUF file, tokenizer.json beside it, the bytes for a
/// model with 256 tokens. None for others.
inline std::optional<minimamba::Tokenizer> find_tokenizer(const std::string& path,
                                                          const minimamba::Checkpoint& checkpoint) {
  if (!path.empty()) return minimamba::Tokenizer::load(std::filesystem::path(path));
  const auto model = checkpoint.metadata.find("tokenizer.ggml.model");
  const bool none =
      model != checkpoint.metadata.end() && model->second == minimamba::GgufValue(std::string("no_vocab"));
  if (model != checkpoint.metadata.end() && !none) {
    return minimamba::Tokenizer::load(checkpoint.metadata, checkpoint.weights_name);
  }
  const std::filesystem::path json = checkpoint.folder / "tokenizer.json";
  const bool gguf = checkpoint.format == minimamba::CheckpointFormat::gguf;
  if (!gguf && std::filesystem::exists(json)) return minimamba::Tokenizer::load(json);
  if (checkpoint.config.padded_vocab_size() == 256) return minimamba::Tokenizer::bytes();
  return std::nullopt;
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
