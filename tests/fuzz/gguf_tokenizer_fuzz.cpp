// Any bytes at all as a GGUF file with a tokenizer: an Error, or a tokenizer that encodes, decodes, and is the same as
// tokenizer.json. (The whole file is fuzzed: lengths, types and metadata are what a hostile file would get wrong.)
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "minimamba/text.hpp"

namespace mm = minimamba;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text = "It's  a  test, 1234 \u00E9 e\u0301 \u00F2 <|end|> abc aab\r\n";
  try {
    mm::TensorSet tensors;
    const auto metadata = mm::read_gguf({std::as_bytes(std::span(data, size)), "fuzz"}, tensors);
    const auto tokenizer = mm::Tokenizer::load(metadata, "fuzz");
    const auto ids = tokenizer.encode(text);
    static_cast<void>(tokenizer.decode(ids));
    const auto parts = mm::gguf_tokenizer(metadata, "fuzz");
    static_cast<void>(mm::gguf_tokenizer(parts, 300));
    static_cast<void>(mm::gguf_tokenizer_notes(parts));
    const std::string json = mm::tokenizer_json(parts);
    const mm::Tokenizer again(mm::read_tokenizer_json({std::as_bytes(std::span(json)), "again"}));
    static_cast<void>(again.decode(again.encode(text)));
  } catch (const mm::Error&) {
  }
  return 0;
}
