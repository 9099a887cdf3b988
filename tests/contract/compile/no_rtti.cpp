// Builds, saves, loads and generates: compiled with -fno-rtti.
#include <minimamba/io.hpp>

#include <cstdio>
#include <vector>

int main(int, char** arguments) {
  const minimamba::Mamba<float> model({.d_model = 8, .n_layer = 1, .vocab_size = 16});
  const std::string folder = std::string(arguments[0]) + "-saved";
  minimamba::save(model, folder);
  const auto loaded = minimamba::load<minimamba::Mamba<float, minimamba::NativeBackend>>(folder);
  auto cache = loaded.make_cache();
  int count = 0;
  for (auto token : minimamba::generate(loaded, cache, std::vector<std::int32_t>{1, 2, 3}, {.max_new_tokens = 4})) {
    count += token >= 0 && token < 16 ? 1 : 0;
  }
  try {
    minimamba::load<minimamba::Mamba<float>>(folder + "/nothing");
  } catch (const minimamba::FileError& error) {
    std::puts(error.what());
    return count == 4 ? 0 : 1;
  }
  return 2;
}
