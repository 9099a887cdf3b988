// Any bytes at all as tokenizer.json: an Error or a tokenizer whose ids can all be decoded.
#include "minimamba/text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  try {
    const auto tokenizer = minimamba::Tokenizer::load({std::as_bytes(std::span(data, size)), "fuzz"});
    const auto ids = tokenizer.encode("It's  a  test, \u00E9 e\u0301 <|end|> abc aab");
    static_cast<void>(tokenizer.decode(ids));
  } catch (const minimamba::Error&) {
  }
  return 0;
}
