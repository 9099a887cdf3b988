// The tokenizer of a training run, and its texts as tokens.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_VOCABULARY_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_VOCABULARY_HPP

#include <minimamba/io/checkpoint.hpp>
#include <minimamba/text/tokenizer.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "training_options.hpp"

namespace training {

/// The tokenizer, and the tokenizer.json to save with the model; empty if the tokens are bytes.
struct Vocabulary {
  minimamba::Tokenizer tokenizer;
  std::string json;
};

/// The tokenizer given by --tokenizer, or that of the model given by --init, or bytes. Throws ArgumentError if the
/// model of --init has none.
Vocabulary find_vocabulary(const Arguments& arguments, const std::optional<minimamba::Checkpoint>& init);

/// The tokens of the texts of --text, one after the other.
std::vector<std::int32_t> read_tokens(const Arguments& arguments, const minimamba::Tokenizer& tokenizer);

}  // namespace training

#endif
