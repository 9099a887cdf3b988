// What the example programs share in reading and printing: exit codes, Ctrl-C, output, a progress line, files.
#ifndef MINIMAMBA_EXAMPLES_TERMINAL_HPP
#define MINIMAMBA_EXAMPLES_TERMINAL_HPP

#include <minimamba/core/error.hpp>
#include <minimamba/io/file.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/ioctl.h>
#include <unistd.h>
#endif

namespace program {

constexpr int refused = 1, usage = 2, interrupted = 130;

inline std::atomic<bool> stop{false}, ends_at_once{false};

/// The first Ctrl-C sets `stop`, the second one, or the first while an EndsAtOnce lives, ends the program immediately.
/// SIGPIPE and SIGXFSZ are ignored, so that a closed pipe and a limit on the size of files show up as failed writes.
inline void handle_signals() {
  std::signal(SIGINT, [](int) {
    if (stop || ends_at_once) std::_Exit(interrupted);
    stop = true;
  });
#ifdef SIGPIPE
  std::signal(SIGPIPE, SIG_IGN);
#endif
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);
#endif
}

/// While it lives, Ctrl-C ends the program immediately: for what takes long, looks at `stop` nowhere and leaves nothing
/// behind, as encoding a large text.
class EndsAtOnce {
 public:
  EndsAtOnce() {
    ends_at_once = true;
    if (stop) std::_Exit(interrupted);
  }
  EndsAtOnce(const EndsAtOnce&) = delete;
  EndsAtOnce& operator=(const EndsAtOnce&) = delete;
  ~EndsAtOnce() { ends_at_once = false; }
};

/// A word of a command line: in quotation marks where it has signs that a shell does not take as they are.
inline std::string shell_word(const std::string& text) {
  constexpr std::string_view plain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+=:,./-"
#if defined(_WIN32)
      "\\"
#endif
      ;
  if (!text.empty() && text.find_first_not_of(plain) == text.npos) return text;
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return word + "'";
}

/// A text as a terminal may be given it: control characters, which could change it, are written as \x1b, but for tab
/// and newline; a carriage return is left out.
inline std::string for_terminal(std::string_view text) {
  std::string shown;
  const auto escape = [&](unsigned code) {
    char number[8];
    std::snprintf(number, sizeof number, "\\x%02x", code);
    shown += number;
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto x = static_cast<unsigned char>(text[i]);
    const unsigned next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0U;
    if (x == '\r') continue;
    if ((x < 0x20 && x != '\n' && x != '\t') || x == 0x7F) {
      escape(x);
    } else if (x == 0xC2 && next >= 0x80 && next < 0xA0) {  // U+0080 to U+009F, in UTF-8
      escape(next);
      ++i;
    } else {
      shown += text[i];
    }
  }
  return shown;
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

/// Prints a note about ignored or changed input to standard error.
inline void print_note(const std::string& note) { std::fprintf(stderr, "note: %s\n", note.c_str()); }

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
