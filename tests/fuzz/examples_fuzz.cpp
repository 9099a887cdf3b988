// Any bytes as JSON lines of labelled texts, and of labelled words: an Error, or examples that can all be had.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/examples_fuzz.cpp
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "minimamba/io.hpp"
#include "minimamba/train/example_files.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace example_lines {

template <class Examples>
void read(const minimamba::ByteSource& source, std::vector<std::string> labels, bool label_for_each_token) {
  try {
    const Examples examples(source, minimamba::byte_tokens, std::move(labels));
    minimamba::SequenceBatch batch;
    for (std::size_t i = 0; i < examples.size(); ++i) examples.append(i, batch);
    if (batch.lengths.size() != examples.size()) std::abort();
    if (batch.labels.size() != (label_for_each_token ? batch.tokens.size() : examples.size())) std::abort();
    const auto known = static_cast<std::int32_t>(examples.labels().size());
    for (const std::int32_t label : batch.labels) {
      if (label >= known || (label < 0 && label != minimamba::ignored_target)) std::abort();
    }
  } catch (const minimamba::Error&) {
  }
}

}  // namespace example_lines

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const minimamba::ByteSource source(std::as_bytes(std::span(data, size)), "fuzz");
  for (const bool known : {false, true}) {
    const std::vector<std::string> labels = known ? std::vector<std::string>{"b", "a"} : std::vector<std::string>{};
    example_lines::read<minimamba::LabelledLines>(source, labels, false);
    example_lines::read<minimamba::LabelledWords>(source, labels, true);
  }
  return 0;
}
