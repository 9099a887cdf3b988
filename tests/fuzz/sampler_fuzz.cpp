// Any bytes as the state of a sampler: they cause an Error, or restore a sampler that continues and returns that state.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "minimamba/generate/sampler.hpp"

namespace mm = minimamba;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const unsigned flags = data[0];  // the options; the rest is the state
  const std::string_view state(reinterpret_cast<const char*>(data) + 1, size - 1);
  const mm::SamplerOptions options{.temperature = (flags & 1U) != 0 ? 0.7 : 0,
                                   .top_k = (flags & 2U) != 0 ? 3 : 0,
                                   .top_p = (flags & 4U) != 0 ? 0.9 : 1,
                                   .repetition_penalty = (flags & 8U) != 0 ? 1.3 : 1,
                                   .frequency_penalty = (flags & 16U) != 0 ? 0.5 : 0,
                                   .penalty_window = (flags & 32U) != 0 ? 5 : 64};
  constexpr std::int64_t vocabulary = 16;
  mm::Sampler sampler(options, vocabulary);
  const std::string before = sampler.state();
  try {
    sampler.restore(state);
  } catch (const mm::Error&) {
    if (sampler.state() != before) __builtin_trap();  // what throws leaves everything as it was
    return 0;
  }
  mm::Sampler twin(options, vocabulary);
  twin.restore(sampler.state());
  std::vector<float> logits(vocabulary + 3, 1);
  for (std::size_t i = 0; i < 40; ++i) {
    logits[i % logits.size()] = static_cast<float>(i % 7);
    const std::int32_t token = sampler(std::span<const float>(logits));
    if (token < 0 || token >= vocabulary || token != twin(std::span<const float>(logits))) __builtin_trap();
    sampler.accept(token);
    twin.accept(token);
  }
  if (sampler.state() != twin.state()) __builtin_trap();
  return 0;
}
