// Any bytes as the files beside config.json that say where texts end: generation_config.json, tokenizer_config.json and
// tokenizer.json with a byte 0 between them, of which each may be missing. End tokens within the vocabulary, and notes
// for what is wrong.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/generation_fuzz.cpp
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

#include "minimamba/io/end_tokens.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::array<std::string_view, 3> names{"generation_config.json", "tokenizer_config.json", "tokenizer.json"};
  std::array<std::span<const std::uint8_t>, 3> files;
  std::span rest(data, size);
  for (std::span<const std::uint8_t>& file : files) {
    file = rest.first(static_cast<std::size_t>(std::find(rest.begin(), rest.end(), 0) - rest.begin()));
    rest = rest.subspan(std::min(rest.size(), file.size() + 1));
  }
  const auto open = [&](std::string_view name) -> std::optional<minimamba::ByteSource> {
    const auto& file = files[static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin())];
    if (file.empty()) return std::nullopt;
    return minimamba::ByteSource(std::as_bytes(file), std::string(name));
  };
  constexpr std::int64_t vocabulary = 300;
  std::vector<std::string> notes;
  for (const std::int32_t id : minimamba::detail::end_tokens(open, vocabulary, notes)) {
    if (id < 0 || id >= vocabulary) std::abort();
  }
  return 0;
}
