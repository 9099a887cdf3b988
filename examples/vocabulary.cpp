#include "vocabulary.hpp"

#include <minimamba/text.hpp>

#include <filesystem>
#include <utility>

#include "program.hpp"

namespace program {

Vocabulary find_vocabulary(const std::string& named, const std::optional<minimamba::Checkpoint>& init,
                           const std::string& flag) {
  namespace fs = std::filesystem;
  if (!named.empty()) {
    const fs::path given(named),
        file = fs::is_directory(given) ? minimamba::model_folder(given) / "tokenizer.json" : given;
    const auto parts = minimamba::read_tokenizer_json(minimamba::ByteSource::open(file));
    return {with_notes(minimamba::Tokenizer(parts, tokenizer_options())), read_file(file)};
  }
  if (!init) return {.tokenizer = minimamba::Tokenizer::bytes(), .bytes = true};
  auto own = find_tokenizer("", *init);
  if (!own) throw minimamba::ArgumentError(flag, "the model has no tokenizer; use --tokenizer FILE");
  if (init->format == minimamba::CheckpointFormat::gguf) return {*std::move(own), gguf_tokenizer_json(*init)};
  const fs::path json = init->folder / "tokenizer.json";
  if (!minimamba::is_there(json)) return {.tokenizer = *std::move(own), .bytes = true};
  return {*std::move(own), read_file(json)};
}

}  // namespace program
