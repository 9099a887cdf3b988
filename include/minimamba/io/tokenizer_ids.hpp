// Counts the tokens that a model's tokenizer.json names among the padding rows of its embedding: they are tokens like
// others.
#ifndef MINIMAMBA_IO_TOKENIZER_IDS_HPP
#define MINIMAMBA_IO_TOKENIZER_IDS_HPP

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/json.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// A handler of parse_json for tokenizer.json: collects the ids from `first` to `rows` - 1 in model.vocab and
/// added_tokens.
class TokenizerIds final : public JsonHandler {
 public:
  TokenizerIds(std::int64_t first, std::int64_t rows) : first_(first), rows_(rows) {}

  const std::set<std::int64_t>& found() const { return found_; }

  void open(bool) override { path_.push_back(std::exchange(key_, {})); }
  void close() override {
    path_.pop_back();
    key_.clear();
  }
  void key(std::string& name) override { key_ = std::move(name); }
  void value(Json&& x) override {
    const bool in_vocabulary = path_.size() == 3 && path_[1] == "model" && path_[2] == "vocab";
    const bool added = path_.size() == 3 && path_[1] == "added_tokens" && key_ == "id";
    const std::uint64_t* const id = x.unsigned_integer();
    const bool inside = id != nullptr && std::cmp_greater_equal(*id, first_) && std::cmp_less(*id, rows_);
    if ((in_vocabulary || added) && inside) found_.insert(static_cast<std::int64_t>(*id));
    key_.clear();
  }

 private:
  std::int64_t first_, rows_;
  std::set<std::int64_t> found_;
  std::vector<std::string> path_;  // the names of the open containers; "" for the root and for elements of arrays
  std::string key_;
};

/// Counts them in vocab_size, and adds a note about rows between them that have no name, because those count as well. A
/// file that cannot be read is ignored here: loading the tokenizer reports it.
template <class Config>
void count_named_tokens(Config& config, const std::filesystem::path& folder, std::vector<std::string>& notes) {
  const std::filesystem::path path = folder / "tokenizer.json";
  const std::int64_t rows = config.padded_vocab_size();
  if (config.vocab_size == rows || !is_there(path)) return;
  try {
    const ByteSource source = ByteSource::open(path);
    TokenizerIds ids(config.vocab_size, rows);
    parse_json(source, 0, source.size(), tokenizer_limits, ids);
    if (ids.found().empty()) return;
    const std::int64_t end = *ids.found().rbegin() + 1;
    const std::int64_t unnamed = end - config.vocab_size - static_cast<std::int64_t>(ids.found().size());
    if (unnamed > 0) {
      notes.push_back(source.name() + ": names token " + std::to_string(end - 1) + ", so the " +
                      std::to_string(unnamed) +
                      " rows of the embedding before it that have no name count as tokens too");
    }
    config.vocab_size = end;
  } catch (const Error&) {
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
