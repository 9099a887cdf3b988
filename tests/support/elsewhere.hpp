// Work on a thread of its own, whose memory goes with it.
#ifndef MINIMAMBA_TESTS_ELSEWHERE_HPP
#define MINIMAMBA_TESTS_ELSEWHERE_HPP

#include <thread>
#include <type_traits>

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

}  // namespace support

#endif
