#include "training_text.hpp"

#include <minimamba/io/atomic_file.hpp>
#include <minimamba/text.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include "program.hpp"
#include "ranks.hpp"

namespace training {
namespace {

namespace fs = std::filesystem;

/// Whether the tokens of the texts may take more memory than they are given. Pipes, whose size is unknown, are read to
/// their end.
bool is_large(const Arguments& arguments) {
  std::uint64_t size = 0;
  for (const std::string& text : arguments.text) {
    std::error_code none;
    if (text == "-" || !fs::is_regular_file(text, none)) return false;
    size += fs::file_size(text, none);
  }
  return size * sizeof(std::int32_t) > arguments.memory << 20;
}

/// The bytes of files, one after the other, as tokens.
minimamba::TokenSource bytes_of(const std::vector<std::string>& texts) {
  std::vector<minimamba::ByteSource> files;
  std::uint64_t size = 0;
  for (const std::string& text : texts) size += files.emplace_back(minimamba::ByteSource::open(fs::path(text))).size();
  return {static_cast<std::size_t>(size), [files](std::size_t first, std::span<std::int32_t> tokens) {
            std::vector<unsigned char> bytes(tokens.size());
            std::uint64_t begin = first;  // in this file, of what is left to read
            std::size_t done = 0;
            for (const minimamba::ByteSource& file : files) {
              if (begin < file.size() && done < bytes.size()) {
                const auto count =
                    static_cast<std::size_t>(std::min<std::uint64_t>(file.size() - begin, bytes.size() - done));
                file.read(begin, std::as_writable_bytes(std::span(bytes).subspan(done, count)));
                done += count;
              }
              begin -= std::min(begin, file.size());
            }
            std::copy(bytes.begin(), bytes.end(), tokens.begin());
          }};
}

using Tokens = std::vector<std::int32_t>;

Tokens plain_tokens(const minimamba::Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text, {.add_special_tokens = false});
}

/// The last place of a text where its parts have the tokens of the whole: after an end of a line and before what is no
/// white space, where most tokenizers cut. 0 if there is no such place, as for tokenizers that begin each text anew.
std::size_t place_to_cut(std::string_view text, const minimamba::Tokenizer& tokenizer) {
  constexpr std::size_t around = 256;
  int tried = 0;
  for (std::size_t i = text.size(); i-- > 1 && tried < 8;) {
    if (text[i - 1] != '\n' || std::string_view(" \t\r\n\v\f").find(text[i]) != std::string_view::npos) continue;
    ++tried;
    const std::size_t before = std::min(i, around);
    Tokens parts = plain_tokens(tokenizer, text.substr(i - before, before));
    const Tokens second = plain_tokens(tokenizer, text.substr(i, around));
    parts.insert(parts.end(), second.begin(), second.end());
    if (parts == plain_tokens(tokenizer, text.substr(i - before, before + around))) return i;
  }
  return 0;
}

/// What a tokenizer puts before and after a text.
std::pair<Tokens, Tokens> tokens_around(const minimamba::Tokenizer& tokenizer) {
  const Tokens all = tokenizer.encode("a"), plain = plain_tokens(tokenizer, "a");
  const auto place = std::search(all.begin(), all.end(), plain.begin(), plain.end());
  if (place == all.end()) return {};
  return {{all.begin(), place}, {place + static_cast<std::ptrdiff_t>(plain.size()), all.end()}};
}

/// Calls body(tokens) for the parts of a text.
template <class Body>
void for_each_part(const std::string& text, const minimamba::Tokenizer& tokenizer, Body&& body) {
  constexpr std::uint64_t piece = std::uint64_t{1} << 20;
  const auto source = minimamba::ByteSource::open(fs::path(text));
  const auto [first, last] = tokens_around(tokenizer);
  body(first);
  std::string rest;
  for (std::uint64_t at = 0; at < source.size();) {
    const auto count = static_cast<std::size_t>(std::min(piece, source.size() - at));
    const std::size_t old = rest.size();
    rest.resize(old + count);
    source.read(at, std::as_writable_bytes(std::span(rest).subspan(old)));
    at += count;
    const std::size_t end = at == source.size() ? rest.size() : place_to_cut(rest, tokenizer);
    if (end > 0) body(plain_tokens(tokenizer, std::string_view(rest).substr(0, end)));
    rest.erase(0, end);
  }
  body(last);
}

}  // namespace

Text::Text(const Arguments& arguments, const program::Vocabulary& vocabulary) : arguments_(arguments) {
  for (const std::string& text : arguments.text) {
    std::error_code not_there;
    if (fs::equivalent(text, tokens_file(), not_there)) {
      throw minimamba::ArgumentError("--text", "another file than the one that training writes", text);
    }
  }
  if (program::ranks().first()) {  // what a training over several machines has left that was killed
    std::error_code ignored;
    fs::remove(tokens_file(), ignored);
  }
  // If it is so to one rank, it is to all, which may have to wait for one another.
  if (!minimamba::DataParallel(program::ranks()).any(is_large(arguments))) {
    const program::EndsAtOnce ends;
    for (const std::string& text : arguments.text) {
      const auto more = vocabulary.tokenizer.encode(program::read_file(text));
      tokens_.insert(tokens_.end(), more.begin(), more.end());
    }
  } else if (vocabulary.bytes) {
    source_ = bytes_of(arguments.text);
  } else {
    encode(vocabulary.tokenizer);
  }
  keep_beginning(vocabulary.tokenizer);
}

/// At most two words of the first line that has some.
void Text::keep_beginning(const minimamba::Tokenizer& tokenizer) {
  Tokens first(std::min<std::size_t>(source_ ? source_->size : tokens_.size(), 24));
  if (source_) {
    source_->read(0, first);
  } else {
    std::copy_n(tokens_.begin(), first.size(), first.begin());
  }
  minimamba::StreamingDecoder decoder(tokenizer);
  std::string text;
  for (const std::int32_t token : first) text += decoder.push(token);
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  const auto at = [&](const char* signs, std::size_t from) {
    return std::min(text.find_first_of(signs, from), text.size());
  };
  const std::size_t begin = std::min(text.find_first_not_of(" \t\r\n"), text.size()), one = at(" \t\r\n", begin);
  const std::size_t two = one < text.size() && text[one] == ' ' ? at(" \t\r\n", one + 1) : one;
  beginning_ = text.substr(begin, (two < text.size() ? two : one) - begin);
  if (program::for_terminal(beginning_) != beginning_) beginning_.clear();
}

Text::~Text() {
  source_.reset();  // closes the file
  remove_file();
}
void Text::remove_file() {
  std::error_code error;  // as on Windows, while it is open
  if (!file_.empty() && fs::remove(file_, error)) file_.clear();
}

fs::path Text::tokens_file() const { return fs::path(arguments_.out) / "training-tokens.bin"; }

minimamba::TokenWindows Text::windows() {
  const auto& options = arguments_.options;
  try {
    if (source_) return {*source_, options.validation_fraction, options.length};
    return {std::move(tokens_), options.validation_fraction, options.length};
  } catch (const minimamba::ArgumentError& error) {
    if (error.subject() != "text") throw;
    std::string names = "--text";
    for (const std::string& text : arguments_.text) names += " " + text;
    const bool validates = error.expected().find("validate") != std::string::npos;
    throw minimamba::ArgumentError(names, error.expected(),
                                   error.found() + ": a longer text, a smaller --length" +
                                       (validates ? ", or another --validation-fraction" : "") + " would do");
  }
}

/// The first rank writes all tokens to a file in the folder of --out, and all read it.
void Text::encode(const minimamba::Tokenizer& tokenizer) {
  const fs::path path = tokens_file();
  if (program::ranks().first()) {
    folders_.emplace(fs::path(arguments_.out));
    minimamba::AtomicFile file(path);
    for (const std::string& text : arguments_.text) {
      for_each_part(text, tokenizer, [&](const Tokens& tokens) {
        if (program::stop) throw minimamba::CancelledError(text, "to encode it was interrupted");
        file.write(std::as_bytes(std::span<const std::int32_t>(tokens)));
      });
    }
    file.commit();
    file_ = path;
  }
  const minimamba::DataParallel together(program::ranks());
  together.any(true);  // the others wait until it is there
  const auto source = minimamba::ByteSource::open(path);
  // Open files need no name, so that a rank that is killed leaves none. Other machines of a network would miss it.
  if (!together.any(!program::ranks().may_be_on_one_machine())) remove_file();
  source_ = minimamba::TokenSource{static_cast<std::size_t>(source.size() / sizeof(std::int32_t)),
                                   [source](std::size_t first, std::span<std::int32_t> tokens) {
                                     source.read(first * sizeof(std::int32_t), std::as_writable_bytes(tokens));
                                   }};
}

}  // namespace training
