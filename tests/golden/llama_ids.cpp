// What llama.cpp makes of texts and ids, for make_tokenizers.mjs; needs llama.h and its library, and is no part of the
// build. Each line "E HEX" of the standard input is a text in hexadecimal (- for none), whose ids it prints; each line
// "D ID ID..." is ids, whose bytes it prints in hexadecimal.
// Usage: llama_ids FILE.gguf
#include <llama.h>

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

int main(int, char** arguments) {
  ggml_backend_load_all();
  llama_model_params parameters = llama_model_default_params();
  parameters.vocab_only = true;
  const llama_model* const model = llama_model_load_from_file(arguments[1], parameters);
  if (model == nullptr) return 1;
  const llama_vocab* const vocab = llama_model_get_vocab(model);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line.substr(2));
    if (line[0] == 'E') {
      std::string hex, text;
      words >> hex;
      for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
        text += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
      }
      std::vector<llama_token> ids(4 * text.size() + 16);
      const auto size = static_cast<std::int32_t>(text.size()), room = static_cast<std::int32_t>(ids.size());
      const std::int32_t count = llama_tokenize(vocab, text.data(), size, ids.data(), room, false, true);
      for (std::int32_t i = 0; i < count; ++i) std::printf("%d ", ids[static_cast<std::size_t>(i)]);
    } else {
      std::vector<llama_token> ids;
      for (llama_token id = 0; words >> id;) ids.push_back(id);
      std::string text(256 * ids.size() + 16, '\0');
      const auto size = static_cast<std::int32_t>(text.size()), count = static_cast<std::int32_t>(ids.size());
      text.resize(static_cast<std::size_t>(llama_detokenize(vocab, ids.data(), count, text.data(), size, false, true)));
      for (const char byte : text) std::printf("%02x", static_cast<unsigned>(static_cast<unsigned char>(byte)));
    }
    std::printf("\n");
  }
}
