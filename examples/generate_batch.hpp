// `generate --prompts`: the continuations of many independent prompts, which ranks divide.
#ifndef MINIMAMBA_EXAMPLES_GENERATE_BATCH_HPP
#define MINIMAMBA_EXAMPLES_GENERATE_BATCH_HPP

#include <cstddef>
#include <optional>

#include "generate_output.hpp"
#include "program.hpp"

namespace program {

/// Prints an object of JSON for each prompt, in the order of the file, on the first rank. Returns the number of tokens
/// that this rank has generated. Throws FormatError for a line that is no prompt.
std::size_t generate_batch(const minimamba::AnyModel& model, const std::optional<minimamba::Tokenizer>& tokenizer,
                           const Arguments& arguments);

}  // namespace program

#endif
