// Any bytes as a model: the length of config.json, that text, and the weights in any format. An Error, or a model that
// can be run.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/load_fuzz.cpp
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "minimamba/backend/reference.hpp"
#include "minimamba/io/load.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::uint16_t length = 0;
  if (size < sizeof(length)) return 0;
  std::memcpy(&length, data, sizeof(length));
  const auto all = std::as_bytes(std::span(data, size)).subspan(sizeof(length));
  const auto config = all.first(std::min<std::size_t>(length, all.size()));
  try {
    const auto checkpoint = minimamba::open_checkpoint({all.subspan(config.size()), "weights"}, {config, "config"});
    checkpoint.config.visit_files([&]<class Files>(Files) {
      using Model = typename Files::template Model<float, minimamba::ReferenceBackend>;
      const Model model = minimamba::load<Model>(checkpoint);
      if (model.parameter_count() > size + (1U << 23)) std::abort();  // more numbers than bytes, but for repeated ones
      auto cache = model.make_cache();
      model.forward_last(std::vector<std::int32_t>{0}, cache);
    });
  } catch (const minimamba::Error&) {
  }
  return 0;
}
