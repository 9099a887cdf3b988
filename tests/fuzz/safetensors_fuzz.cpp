// Any bytes as a safetensors file: an Error or a set of tensors of which every number can be read.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/safetensors_fuzz.cpp
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <utility>
#include <vector>

#include "minimamba/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    minimamba::TensorSet set;
    minimamba::read_safetensors(minimamba::ByteSource(std::as_bytes(std::span(data, size)), "fuzz"), set);
    for (const auto& [name, tensor] : set.tensors()) {
      if (tensor.dtype == minimamba::DType::OTHER) continue;  // never read
      if (tensor.size() > size) std::abort();                 // a tensor with more numbers than the file has bytes
      if (!minimamba::detail::with_float_type(tensor.dtype, [](auto) {})) continue;
      std::vector<float> values(static_cast<std::size_t>(tensor.size()));
      set.read(tensor, 0, std::span(values));
    }
  } catch (const minimamba::Error&) {
  }
  return 0;
}
