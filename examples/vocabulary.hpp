// The tokenizer of a model that is to be trained, and what of it is saved with the model.
#ifndef MINIMAMBA_EXAMPLES_VOCABULARY_HPP
#define MINIMAMBA_EXAMPLES_VOCABULARY_HPP

#include <minimamba/io/checkpoint.hpp>
#include <minimamba/text/tokenizer.hpp>

#include <optional>
#include <string>

namespace program {

/// The tokenizer, and the tokenizer.json to save with the model; empty if the tokens are bytes.
struct Vocabulary {
  minimamba::Tokenizer tokenizer;
  std::string json = {};
  bool bytes = false;  // whether tokens are bytes for sure
};

/// The tokenizer in a file or folder or, if none is named, that of the model to start from, or bytes. Throws
/// ArgumentError, which names `flag`, if that model has none.
Vocabulary find_vocabulary(const std::string& named, const std::optional<minimamba::Checkpoint>& init,
                           const std::string& flag);

}  // namespace program

#endif
