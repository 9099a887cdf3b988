// The tokens that a model's tokenizer.json names among the rows that fill up its embedding: they are tokens as others.
#ifndef MINIMAMBA_IO_TOKENIZER_IDS_HPP
#define MINIMAMBA_IO_TOKENIZER_IDS_HPP

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/json.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Hears a tokenizer.json, and keeps the largest id below `rows` in model.vocab and added_tokens.
class TokenizerIds {
 public:
  explicit TokenizerIds(std::int64_t rows) : rows_(rows) {}

  std::int64_t largest() const { return largest_; }

  void open(bool) { path_.push_back(std::exchange(key_, {})); }
  void close() {
    path_.pop_back();
    key_.clear();
  }
  void key(std::string& name) { key_ = std::move(name); }
  void value(const Json& x) {
    const bool in_vocabulary = path_.size() == 3 && path_[1] == "model" && path_[2] == "vocab";
    const bool added = path_.size() == 3 && path_[1] == "added_tokens" && key_ == "id";
    const std::uint64_t* const id = x.whole();
    if ((in_vocabulary || added) && id != nullptr && std::cmp_less(*id, rows_)) {
      largest_ = std::max(largest_, static_cast<std::int64_t>(*id));
    }
    key_.clear();
  }

 private:
  std::int64_t rows_, largest_ = -1;
  std::vector<std::string> path_;  // the names of the open containers; none for the root and what lies in an array
  std::string key_;
};

/// Counts them into vocab_size. A file that cannot be read is for who wants the tokenizer to complain of.
inline void count_named_tokens(MambaConfig& config, const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  const std::int64_t rows = config.padded_vocab_size();
  if (config.vocab_size == rows || !is_there(path)) return;
  try {
    const ByteSource source = ByteSource::open(path);
    TokenizerIds ids(rows);
    parse_json(source, 0, source.size(), tokenizer_limits, ids);
    config.vocab_size = std::max(config.vocab_size, ids.largest() + 1);
  } catch (const Error&) {
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
