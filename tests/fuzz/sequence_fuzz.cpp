// Any bytes as a model with a head: the length of config.json, that text, and the weights. An Error, or a model that
// can be run. clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/sequence_fuzz.cpp
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "minimamba/backend/reference.hpp"
#include "minimamba/io/pretrained.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::uint16_t length = 0;
  if (size < sizeof(length)) return 0;
  std::memcpy(&length, data, sizeof(length));
  const auto all = std::as_bytes(std::span(data, size)).subspan(sizeof(length));
  const auto text = all.first(std::min<std::size_t>(length, all.size()));
  const minimamba::ByteSource config(text, "config"), weights(all.subspan(text.size()), "weights");
  try {
    minimamba::read_backbone_config(config).visit_files([&]<class Files>(Files) {
      using Model = minimamba::SequenceModelOf<typename Files::template Model<float, minimamba::ReferenceBackend>>;
      const auto model = minimamba::load_sequence_model<Model>(config, weights);
      if (model.parameter_count() > size + (1U << 23)) std::abort();
      auto cache = model.make_cache();
      if (model.config().columns == 0) {
        model.forward(std::vector<std::int32_t>{0}, cache);
      } else {
        const std::vector<float> row(static_cast<std::size_t>(model.config().columns));
        model.forward(minimamba::View<const float>(row.data(), 1, row.size()), cache);
      }
    });
  } catch (const minimamba::Error&) {
  }
  return 0;
}
