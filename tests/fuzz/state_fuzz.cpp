// Any bytes as a state file, with a checksum that is right: an Error, or a cache that can be read.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/state_fuzz.cpp
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "minimamba/backend/reference.hpp"
#include "minimamba/io/state.hpp"
#include "minimamba/nn/ssd.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using namespace minimamba;

template <class Model>
void read(const ByteSource& source, const Model& model) {
  try {
    auto saved = load_state(source, model);
    const std::vector<std::int32_t> tokens(saved.cache.batch(), 1);
    model.forward_last(tokens, saved.cache);
  } catch (const Error&) {
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Mamba<float, ReferenceBackend> s6(
      {.d_model = 2, .n_layer = 1, .vocab_size = 3, .d_state = 1, .d_conv = 2, .expand = 1});
  static const Mamba<float, ReferenceBackend, float, SSD> ssd(
      {.d_model = 2, .n_layer = 1, .vocab_size = 3, .d_state = 1, .d_conv = 2, .expand = 1, .head_dim = 1});
  std::vector<std::uint8_t> bytes(data, data + size);
  detail::Fnv1a sum;
  sum.add(std::as_bytes(std::span(bytes)));
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<std::uint8_t>(sum.value() >> (8 * i)));
  const ByteSource source(std::as_bytes(std::span(bytes)), "fuzz");
  read(source, s6);
  read(source, ssd);
  return 0;
}
