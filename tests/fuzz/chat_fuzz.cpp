// Any bytes as what serve reads for chats: tokenizer_config.json, a chat template and the messages of a request, with a
// byte 0 between them. Errors, or texts with every message in them.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I. -Iinclude tests/fuzz/chat_fuzz.cpp -lutf8proc
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "examples/serve_chat.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace chat_files {

void fill(serve::ChatFormat format, const serve::ChatTokens& tokens, std::string_view source,
          const std::vector<serve::Message>& messages) {
  const serve::ChatTemplate chat(format, tokens, source);
  static_cast<void>(chat.answer_end(true) + chat.answer_end(false) + chat.end_token());
  try {
    const std::string text = chat(messages);
    for (const serve::Message& message : messages) {
      const auto first = message.content.find_first_not_of(" \t\n\v\f\r");
      const auto last = message.content.find_last_not_of(" \t\n\v\f\r");
      if (first == message.content.npos) continue;
      if (text.find(message.content.substr(first, last + 1 - first)) == text.npos) std::abort();
    }
  } catch (const serve::ApiError&) {
  }
}

std::vector<serve::Message> read_messages(std::string_view text) {
  try {
    return serve::read_chat(serve::parse_body(std::string(text), {}), {}).messages;
  } catch (const serve::ApiError&) {
    return {{"system", "Be brief."}, {"user", " Hi "}, {"assistant", "Hello."}, {"user", "a\tb"}};
  }
}

}  // namespace chat_files

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::array<std::string_view, 3> parts;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  for (std::string_view& part : parts) {
    part = rest.substr(0, rest.find('\0'));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
  }
  serve::detail::ChatSettings settings{std::string(parts[1]), "template", {"</s>", "<s>"}};
  try {
    auto read = serve::detail::read_chat_settings({std::as_bytes(std::span(parts[0])), "tokenizer_config.json"});
    if (!read.source) read.source = settings.source;
    settings = std::move(read);
  } catch (const minimamba::Error&) {
  }
  const std::vector<serve::Message> messages = chat_files::read_messages(parts[2]);
  const auto recognised = serve::ChatTemplate::recognised(*settings.source);
  for (const auto format : {serve::ChatFormat::chatml, serve::ChatFormat::inst, serve::ChatFormat::falcon}) {
    if (recognised == format) chat_files::fill(format, settings.tokens, *settings.source, messages);
  }
  return 0;
}
