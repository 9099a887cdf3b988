// Any bytes at all as tokenizer.json: an Error or a tokenizer whose ids can all be decoded.
#include "minimamba/text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  try {
    const auto tokenizer = minimamba::Tokenizer::load({std::as_bytes(std::span(data, size)), "fuzz"});
    for (const char* const text : {"It's  a  test, 1234 \u00E9 e\u0301 \u00F2 \uFDFA <|end|> abc aab\r\n", "", "   "}) {
      const auto ids = tokenizer.encode(text);
      static_cast<void>(tokenizer.decode(ids));
    }
  } catch (const minimamba::Error&) {
  }
  return 0;
}
