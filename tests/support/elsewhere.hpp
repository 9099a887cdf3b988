// The memory that threads keep: work on a thread of its own, and a thread's first scratch.
#ifndef MINIMAMBA_TESTS_ELSEWHERE_HPP
#define MINIMAMBA_TESTS_ELSEWHERE_HPP

#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "minimamba/minimamba.hpp"

namespace support {

/// What action() returns, run by another thread: so the calling thread's scratch does not grow, and the first call that
/// needs it there has yet to allocate it.
template <class Action>
auto elsewhere(Action&& action) {
  if constexpr (std::is_void_v<decltype(action())>) {
    std::thread(action).join();
  } else {
    decltype(action()) result;
    std::thread([&] { result = action(); }).join();
    return result;
  }
}

/// Makes the scratch of this thread, still small: glibc ends a program that has no memory for the note that a thread's
/// variable must be destroyed, so no allocation may fail there.
inline void begin_scratch() {
  const minimamba::Mamba<float> model({.d_model = 1, .n_layer = 1, .vocab_size = 1, .d_state = 1},
                                      minimamba::NativeBackend<float>({.threads = 1}));
  auto cache = model.make_cache();
  model.forward(std::vector<std::int32_t>{0}, cache);
}

}  // namespace support

#endif
