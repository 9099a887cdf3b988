// Whether ranks that train together still do the same.
#ifndef MINIMAMBA_DISTRIBUTED_SAME_TRAINING_HPP
#define MINIMAMBA_DISTRIBUTED_SAME_TRAINING_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/distributed/communicator.hpp"
#include "minimamba/train/trainer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Ranks that should have the same weights, options or data have not. The subject names those that differ from most.
class RanksDifferError : public Error {
 public:
  using Error::Error;
};

namespace detail {

template <class Trainer>
std::uint64_t hash_of_options(const Trainer& trainer, std::uint64_t of_ranks) {
  const TrainerOptions& o = trainer.options();
  Fnv1a hash;
  const auto add = [&](auto... values) { (hash.add_value(values), ...); };
  add(o.batch, o.length, o.accumulate, o.micro_batches, o.validation_fraction, o.seed, trainer.steps());
  add(o.schedule.max_lr, o.schedule.min_lr, o.schedule.warmup_steps, o.schedule.steps, o.tape.chunk, o.tape.dropout);
  add(o.adamw.beta1, o.adamw.beta2, o.adamw.epsilon, o.adamw.weight_decay, o.adamw.clip);
  for (const ParameterGroup& group : o.adamw.groups) {
    hash.add(std::string_view(group.part));
    add(group.rate, group.weight_decay.value_or(-1));
  }
  add(o.average, of_ranks);
  if constexpr (requires { adapter_fingerprint(trainer.model()); }) add(adapter_fingerprint(trainer.model()));
  return hash.value();
}
template <class Model>
std::uint64_t hash_of_weights(const Model& model, bool with_frozen) {
  using Scalar = typename Model::ScalarType;
  using Bits = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;
  Fnv1a hash;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        const bool frozen = parameter.frozen() || !std::remove_cvref_t<decltype(parameter)>::can_train;
        if (frozen && !with_frozen) return;
        hash.add(name);
        hash.add_value(frozen);
        in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
          parameter.download(model.backend(), first, piece);
          for (std::size_t i = 0; i < piece.rows(); ++i) {
            for (const Scalar x : piece.row(i)) hash.add(std::uint64_t{std::bit_cast<Bits>(x)});
          }
        });
      },
      model);
  return hash.value();
}

/// Throws RanksDifferError, on all ranks, unless all train the same model in the same way. Data and frozen
/// parameters, which no step changes, are compared only before the first: to hash data, a file may have to be read.
template <Communicator C, class Trainer>
void require_same_training(const C& ranks, const Trainer& trainer, std::uint64_t options, bool first) {
  constexpr std::array<const char*, 4> what{"options, or another number of steps", "data", "kernels",
                                            "weights: its memory or its processor may be faulty, or a program changes "
                                            "its model"};
  Fnv1a kernels;
  kernels.add(std::string_view(kernels_text(trainer.model().backend())));
  const std::array<std::uint64_t, 4> own{hash_of_options(trainer, options),
                                         first ? std::uint64_t{trainer.data().fingerprint()} : 0, kernels.value(),
                                         hash_of_weights(trainer.model(), first)};
  const auto all = all_gather(ranks, std::span<const std::uint64_t>(own));
  for (std::size_t i = 0; i < own.size(); ++i) {
    std::vector<std::uint64_t> hashes;
    for (std::size_t r = 0; r < static_cast<std::size_t>(ranks.size()); ++r) hashes.push_back(all[r * own.size() + i]);
    const auto alike = [&](std::uint64_t hash) { return std::count(hashes.begin(), hashes.end(), hash); };
    const std::uint64_t most = *std::max_element(hashes.begin(), hashes.end(),
                                                 [&](std::uint64_t a, std::uint64_t b) { return alike(a) < alike(b); });
    std::string odd;
    for (std::size_t r = 0; r < static_cast<std::size_t>(ranks.size()); ++r) {
      if (hashes[r] != most) odd += (odd.empty() ? "rank " : ", rank ") + std::to_string(r);
    }
    if (odd.empty()) continue;
    throw RanksDifferError(odd, "after step " + std::to_string(trainer.steps()) + " it has other " + what[i]);
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
