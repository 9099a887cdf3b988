// All fuzz targets in one program, compiled at once: it runs the one by whose name it is called.
#ifndef MINIMAMBA_TESTS_FUZZ_TARGETS_HPP
#define MINIMAMBA_TESTS_FUZZ_TARGETS_HPP

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string_view>

namespace fuzz {

using Target = int (*)(const std::uint8_t*, std::size_t);

inline std::map<std::string_view, Target>& targets() {
  static std::map<std::string_view, Target> all;
  return all;
}
inline Target chosen = nullptr;

struct Registration {
  Registration(std::string_view name, Target target) { targets().emplace(name, target); }
};

}  // namespace fuzz

#define FUZZ_TARGET(name) static const fuzz::Registration name##_registration(#name, name)

extern "C" int LLVMFuzzerInitialize(int*, char*** arguments) {
  const std::string_view path = (*arguments)[0], name = path.substr(path.find_last_of('/') + 1);
  const auto found = fuzz::targets().find(name);
  if (found == fuzz::targets().end()) {
    std::fprintf(stderr, "there is no fuzz target %s\n", std::string_view(name).data());
    std::exit(2);
  }
  fuzz::chosen = found->second;
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { return fuzz::chosen(data, size); }

#endif
