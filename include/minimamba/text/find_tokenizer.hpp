// The tokenizer that belongs to a checkpoint.
#ifndef MINIMAMBA_TEXT_FIND_TOKENIZER_HPP
#define MINIMAMBA_TEXT_FIND_TOKENIZER_HPP

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "minimamba/core/config.hpp"
#include "minimamba/io/checkpoint.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/io/pending_files.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/tokenizer_json.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The checkpoint's own tokenizer: from its GGUF file, from the tokenizer.json in its folder, or bytes for a model with
/// 256 tokens. Otherwise there is none. Throws what Tokenizer::load throws.
inline std::optional<Tokenizer> find_tokenizer(const Checkpoint& checkpoint, const TokenizerOptions& options = {}) {
  const auto model = checkpoint.metadata.find("tokenizer.ggml.model");
  const auto is = [&](const char* name) { return model->second == GgufValue(std::string(name)); };
  if (model != checkpoint.metadata.end() && !is("no_vocab") && !is("none")) {  // llama.cpp has both names for none
    return Tokenizer::load(checkpoint.metadata, checkpoint.weights_name, options);
  }
  const bool in_folder = checkpoint.has_folder && checkpoint.format != CheckpointFormat::gguf;
  const std::filesystem::path json = checkpoint.folder / "tokenizer.json";
  if (in_folder && is_there(json)) return Tokenizer::load(json, options);
  if (checkpoint.config.padded_vocab_size() == 256) return Tokenizer::bytes();
  return std::nullopt;
}

/// Counts the tokens that a tokenizer has for padding rows of the embedding in config.vocab_size, so that a model with
/// this configuration reads and generates them. Rows between them that have no token count as well.
template <VocabularyConfig Config>
void count_named_tokens(Config& config, const Tokenizer& tokenizer) {
  auto id = static_cast<std::int32_t>(std::min<std::int64_t>(tokenizer.size(), config.padded_vocab_size()));
  while (id > config.vocab_size && tokenizer.bytes_of(id - 1).empty()) --id;
  config.vocab_size = std::max<std::int64_t>(config.vocab_size, id);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
