// The exceptions of the library. Whatever a user can cause (a bad file, argument, configuration or token id) is an
// Error, which names the file or argument and the problem. A function that throws leaves every object as it was.
#ifndef MINIMAMBA_CORE_ERROR_HPP
#define MINIMAMBA_CORE_ERROR_HPP

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "minimamba/core/library.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A number as text, the same in every locale: 1e-05, not 0.000010.
inline std::string number_text(double value) { return detail::general_text(value); }
inline std::string number_text(std::int64_t value) { return std::to_string(value); }

/// Text from an untrusted file, made safe for a message: characters other than printable ASCII become '?', and text
/// longer than `longest` is cut.
inline std::string printable(std::string_view text, std::size_t longest = 200) {
  std::string result(text.substr(0, longest));
  for (char& x : result) x = x < ' ' || x > '~' ? '?' : x;
  return text.size() > longest ? result + "..." : result;
}

/// The base of every exception of the library. what() is "subject: expected this, found that" or "subject: problem".
class Error : public std::runtime_error {
 public:
  Error(std::string subject, std::string expected, std::string found)
      : std::runtime_error(subject + ": " + (expected.empty() ? found : "expected " + expected + ", found " + found)),
        subject_(std::move(subject)),
        expected_(std::move(expected)),
        found_(std::move(found)) {}
  /// For a problem that reads better as a sentence: "loading was cancelled". found() is the sentence, expected() is
  /// empty.
  Error(std::string subject, std::string problem) : Error(std::move(subject), "", std::move(problem)) {}

  /// The file, tensor, key or argument that was rejected.
  const std::string& subject() const noexcept { return subject_; }
  const std::string& expected() const noexcept { return expected_; }
  const std::string& found() const noexcept { return found_; }

 private:
  std::string subject_, expected_, found_;
};

/// An argument of a call: a token id, a batch, a cache of another model, a sampling option.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// A configuration that no model can have: a size that is missing, negative, far too large, or contradicts another.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// The file system: a path that is missing, unreadable, unwritable, or not a regular file; a full disk.
class FileError : public Error {
 public:
  using Error::Error;
};

/// The bytes of a file: truncated, malformed, or of an unsupported kind.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A well-formed checkpoint that does not fit its model: a tensor is missing, repeated, or has the wrong shape or type.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
