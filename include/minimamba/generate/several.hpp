// generate_several: samples of one prompt, which is read once.
#ifndef MINIMAMBA_GENERATE_SEVERAL_HPP
#define MINIMAMBA_GENERATE_SEVERAL_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/generate/batch.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/nn/model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Generates `count` continuations of one prompt together. Number i is what generate() gives with the seed
/// options.seed + i. `start` is a cache of one slot that may have read something before; it is not changed.
/// on_token(i, token) returns true to continue number i. Throws ArgumentError as generate() does, and for a count
/// below 1.
template <class Model, class OnToken>
std::vector<GenerationResult> generate_several(const Model& model, const typename Model::Cache& start,
                                               std::span<const std::int32_t> prompt, std::int64_t count,
                                               const GenerateOptions& options, OnToken&& on_token) {
  if (count < 1) throw ArgumentError("count", "at least 1", std::to_string(count));
  if (start.batch() != 1) throw ArgumentError("start", "a cache of one slot", std::to_string(start.batch()));
  if (prompt.empty()) throw ArgumentError("prompt", "at least one token", "none");
  model.check(prompt, start);
  auto cache = model.make_cache(count);  // refuses a count that is too large
  auto one = start.clone();
  const auto before_last = prompt.first(prompt.size() - 1);
  if (!before_last.empty() && options.max_new_tokens > 0) model.forward_last(before_last, one);
  for (std::size_t slot = 0; slot < cache.batch(); ++slot) cache.assign(slot, one, 0);
  GenerateOptions rest = options;
  rest.history.insert(rest.history.end(), before_last.begin(), before_last.end());
  const std::vector<std::vector<std::int32_t>> prompts(static_cast<std::size_t>(count), {prompt.back()});
  auto results = generate_batch(model, cache, prompts, rest, on_token);
  if (options.max_new_tokens == 0) {
    for (GenerationResult& result : results) result.unread.assign(prompt.begin(), prompt.end());
  }
  return results;
}
template <class Model>
std::vector<GenerationResult> generate_several(const Model& model, const typename Model::Cache& start,
                                               std::span<const std::int32_t> prompt, std::int64_t count,
                                               const GenerateOptions& options = {}) {
  return generate_several(model, start, prompt, count, options, [](std::size_t, std::int32_t) { return true; });
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
