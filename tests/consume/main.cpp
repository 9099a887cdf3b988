// A program outside this repository.
#include <minimamba/minimamba.hpp>
#ifdef WITH_IO
#include <minimamba/io.hpp>
#include <minimamba/text.hpp>
#endif
#ifdef WITH_MODELS
#include <minimamba/io/any_model.hpp>
#endif

#include <string>
#include <vector>

int main() {
  const minimamba::Mamba<float> model({.d_model = 8, .n_layer = 1, .vocab_size = 16});
  auto cache = model.make_cache();
  const auto logits = model.forward(std::vector<std::int32_t>{1, 2, 3}, cache);
#ifdef WITH_IO
  minimamba::save(model, "saved-by-consumer");
  const auto loaded = minimamba::load<minimamba::Mamba<float>>("saved-by-consumer");
  if (loaded.parameter_count() != model.parameter_count()) return 2;
  if (minimamba::Tokenizer::bytes().encode("text").size() != 4) return 3;
#endif
#ifdef WITH_MODELS
  const auto any = minimamba::AnyModel::load("saved-by-consumer", {.weights = "q8"});
  if (any.parameter_count() != model.parameter_count()) return 4;
  int notes = 0;
  minimamba::AnyModel::load("saved-by-consumer", {.backend = "auto", .on_note = [&](const std::string&) { ++notes; }});
  if (notes != 1) return 7;  // that the program has no models for cards
  try {
    minimamba::AnyModel::load("saved-by-consumer", {.backend = "eigen"});
    return 5;
  } catch (const minimamba::ArgumentError& error) {
    if (std::string(error.what()).find("eigen is not available") == std::string::npos) return 6;
  }
#endif
  return logits.rows() == 3 && logits.cols() == 16 ? 0 : 1;
}
