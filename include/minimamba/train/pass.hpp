// How a Trainer runs a model on a batch of its data: a Pass. That of language models is here.
#ifndef MINIMAMBA_TRAIN_PASS_HPP
#define MINIMAMBA_TRAIN_PASS_HPP

#include <cstddef>
#include <cstdint>
#include <functional>

#include "minimamba/train/adamw.hpp"
#include "minimamba/train/data.hpp"
#include "minimamba/train/schedule.hpp"
#include "minimamba/train/tape.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct TrainerOptions {
  std::int64_t batch = 8, length = 256;  // windows in a batch, and tokens of a window
  std::int64_t accumulate = 1;           // batches of a micro-batch, whose gradients are added one after another
  std::int64_t micro_batches = 1;        // of a step; ranks divide them: see train/micro_batches.hpp
  double validation_fraction = 0.1;      // part of the tokens, their end, that is kept for validation
  std::uint64_t seed = 0;                // of the windows and of dropout; below 2^53
  Schedule schedule = {};
  AdamWOptions adamw = {};
  TapeOptions tape = {};
  double average = 0;  // decay of the average of the weights over the steps, such as 0.999; 0: no average
};

/// The factor of a batch's summed loss, and where the sum is added: [1, 1], in the backend's memory.
struct PassArguments {
  double scale = 1;
  View<double> sum;
  /// A pass may call it as BackwardOptions say; all gradients are whole when backward returns.
  std::function<void(std::size_t)> on_layer = {};
};

/// The pass of a language model on windows of tokens.
template <class Model>
class TokenPass {
 public:
  TokenPass(const Model& model, const TrainerOptions& options)
      : length_(options.length),
        tape_(model, options.tape),
        validation_tape_(model, {.chunk = options.length, .recompute = true}),
        cache_(model.make_cache(options.batch)) {
    model.check({}, cache_);
  }

  /// The number of terms of a batch's loss.
  std::size_t count(const Windows& windows) const { return windows.targets.size(); }

  void forward(const Model& model, const Windows& windows, std::uint64_t seed) {
    cache_.reset();
    tape_.forward(model, windows.tokens, cache_, seed);
  }
  /// The loss of the batch that forward has read, and its gradients, which are added.
  Loss loss(const Model& model, const Windows& windows) { return tape_.loss(model, windows.targets); }
  void backward(const Model& model, const Windows& windows, Gradients<Model>& gradients, const PassArguments& p) {
    tape_.backward(model, windows.targets, gradients, {.scale = p.scale, .on_layer = p.on_layer}, p.sum);
  }
  /// The loss of a batch without dropout, and without memory for backward.
  Loss validate(const Model& model, const Windows& windows) {
    auto cache = model.make_cache(static_cast<std::int64_t>(windows.tokens.size()) / length_);
    validation_tape_.forward(model, windows.tokens, cache);
    return validation_tape_.loss(model, windows.targets);
  }

 private:
  std::int64_t length_;
  Tape<Model> tape_, validation_tape_;
  typename Model::Cache cache_;
};

/// The pass of a type of model. Specialise it for a model of your own.
template <class Model>
struct PassOf {
  using Type = TokenPass<Model>;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
