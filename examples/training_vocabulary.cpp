#include "training_vocabulary.hpp"

#include <minimamba/text.hpp>

#include <filesystem>

#include "program.hpp"

namespace training {

namespace fs = std::filesystem;
using program::read_file;

Vocabulary find_vocabulary(const Arguments& arguments, const std::optional<minimamba::Checkpoint>& init) {
  if (!arguments.tokenizer.empty()) {
    const fs::path given(arguments.tokenizer),
        file = fs::is_directory(given) ? minimamba::model_folder(given) / "tokenizer.json" : given;
    const auto parts = minimamba::read_tokenizer_json(minimamba::ByteSource::open(file));
    return {program::with_notes(minimamba::Tokenizer(parts, program::tokenizer_options())), read_file(file)};
  }
  if (!init) return {minimamba::Tokenizer::bytes(), ""};
  auto own = program::find_tokenizer("", *init);
  if (!own) {
    throw minimamba::ArgumentError("--init " + arguments.init, "the model has no tokenizer; use --tokenizer FILE");
  }
  if (init->format == minimamba::CheckpointFormat::gguf) return {*std::move(own), program::gguf_tokenizer_json(*init)};
  const fs::path json = init->folder / "tokenizer.json";
  return {*std::move(own), minimamba::is_there(json) ? read_file(json) : ""};
}

std::vector<std::int32_t> read_tokens(const Arguments& arguments, const minimamba::Tokenizer& tokenizer) {
  std::vector<std::int32_t> tokens;
  for (const std::string& file : arguments.text) {
    const auto more = tokenizer.encode(read_file(file));
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  return tokens;
}

}  // namespace training
