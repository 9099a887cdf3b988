// Any bytes as a GGUF file: an Error, or settings and a set of tensors of which every number can be read.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/gguf_fuzz.cpp
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "minimamba/io/known_mixers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    minimamba::TensorSet set;
    const auto metadata =
        minimamba::read_gguf(minimamba::ByteSource(std::as_bytes(std::span(data, size)), "fuzz"), set);
    for (const auto& [name, tensor] : set.tensors()) {
      if (tensor.dtype == minimamba::DType::OTHER) continue;  // never read
      if (tensor.size() > 2 * size) std::abort();             // a tensor with more numbers than the file has half bytes
      if (!minimamba::is_floating(tensor.dtype)) continue;
      std::vector<float> values(static_cast<std::size_t>(tensor.size()));
      set.read(tensor, 0, std::span(values));
    }
    // As each of the kinds of models, whatever the architecture.
    minimamba::detail::KnownMixers::find(
        [&](auto files) {
          try {
            std::vector<std::string> notes;
            const auto config = files.read_gguf(metadata, set, "fuzz", notes);
            if (config != config.resolved()) std::abort();
          } catch (const minimamba::Error&) {
          }
          return false;
        },
        [](auto) {});
  } catch (const minimamba::Error&) {
  }
  return 0;
}
