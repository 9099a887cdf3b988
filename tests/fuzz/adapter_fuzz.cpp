// Any bytes as an adapter: the length of adapter_config.json, that text, and the weights in any format. An Error, with
// the model as it was, or a model that can be run.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/adapter_fuzz.cpp
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "minimamba/backend/reference.hpp"
#include "minimamba/io/adapter.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using Model = minimamba::Mamba<float, minimamba::ReferenceBackend, minimamba::Lora<float>>;
  std::uint16_t length = 0;
  if (size < sizeof(length)) return 0;
  std::memcpy(&length, data, sizeof(length));
  const auto all = std::as_bytes(std::span(data, size)).subspan(sizeof(length));
  const auto config = all.first(std::min<std::size_t>(length, all.size()));
  static std::optional<Model> model;  // used again as long as it is as it was
  if (!model) {
    model.emplace(minimamba::MambaConfig{
        .d_model = 2, .n_layer = 1, .vocab_size = 3, .d_state = 1, .d_conv = 2, .expand = 1, .tie_embeddings = false});
  }
  try {
    minimamba::load_adapter(*model,
                            minimamba::open_adapter({config, "config"}, {all.subspan(config.size()), "weights"}));
    auto cache = model->make_cache();
    model->forward_last(std::vector<std::int32_t>{0}, cache);
    model.reset();
  } catch (const minimamba::Error&) {
    if (model->layers[0].mixer.in_proj.weight.adapter.present()) std::abort();
  }
  return 0;
}
