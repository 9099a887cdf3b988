// Saves a state as a program of a user does, with all of its text read: whole_state MODEL FILE
#include <minimamba/io.hpp>
#include <minimamba/minimamba.hpp>

#include <cstdio>
#include <exception>

int main(int argc, char** argv) {
  try {
    if (argc != 3) return 2;
    const auto model = minimamba::load<minimamba::Mamba<float>>(argv[1]);
    auto cache = model.make_cache();
    model.forward_last({1, 2, 3}, cache);
    minimamba::save_state(model, cache, argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "whole_state: %s\n", error.what());
    return 1;
  }
}
