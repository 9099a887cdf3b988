// Any bytes as a PyTorch file: an Error, or a set of tensors of which every number can be read.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/torch_bin_fuzz.cpp
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "minimamba/io/torch_bin.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const minimamba::ByteSource source(std::as_bytes(std::span(data, size)), "fuzz");
  try {
    minimamba::TensorSet set;
    minimamba::read_torch_bin(source, set);
    for (const auto& [name, tensor] : set.tensors()) {
      if (tensor.dtype == minimamba::DType::OTHER) continue;  // which nobody reads
      const bool repeats = !tensor.strides.empty();           // as an expanded tensor does
      if (tensor.size() > size && !repeats) std::abort();     // a tensor with more numbers than the file has bytes
      if (!minimamba::is_floating(tensor.dtype) || tensor.size() > (1U << 20)) continue;
      std::vector<float> values(static_cast<std::size_t>(tensor.size()));
      set.read(tensor, 0, std::span(values));
    }
  } catch (const minimamba::Error&) {
  }
  try {  // most changes spoil the zip file: so the same bytes as a pickle alone
    minimamba::detail::Pickle(source, 0, source.size());
  } catch (const minimamba::Error&) {
  }
  return 0;
}
