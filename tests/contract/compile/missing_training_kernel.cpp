// A backend without one of the functions that training asks for, in a program that trains: compiled with
// -DWITHOUT=<function>, it must be refused in few words that name the function; without, it must pass. A Trainer
// trains, or with -DBY_ADAMW or -DBY_TAPE one of its parts.
#include <minimamba/backend/reference_training.hpp>
#include <minimamba/train/adamw.hpp>
#include <minimamba/train/tape.hpp>
#include <minimamba/train/trainer.hpp>

#include <utility>
#include <vector>

using namespace minimamba;

template <class Number>
class Port : public ReferenceTraining<Number> {
#ifdef WITHOUT
  using ReferenceTraining<Number>::WITHOUT;  // private here
#endif
};
using Model = Mamba<float, Port>;

int main() {
  Model model({.d_model = 64, .n_layer = 2, .vocab_size = 256});
  const std::vector<std::int32_t> tokens(100);
#if defined(BY_TAPE)
  auto gradients = zeros_like(model);
  auto cache = model.make_cache();
  Tape<Model> tape(model);
  tape.forward(model, tokens, cache);
  return tape.backward(model, next_token_targets(tokens), gradients).mean() > 0 ? 0 : 1;
#elif defined(BY_ADAMW)
  auto gradients = zeros_like(model);
  AdamW<Model> optimizer(model);
  return optimizer.step(model, gradients, 0.1) >= 0 ? 0 : 1;
#else
  Trainer trainer(std::move(model), tokens, {.batch = 2, .length = 16});
  return trainer.step().loss > 0 ? 0 : 1;
#endif
}
