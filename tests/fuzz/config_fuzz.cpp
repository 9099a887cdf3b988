// Any bytes at all as config.json: an Error or a configuration that a model can have.
#include "minimamba/io/config_json.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  try {
    const auto config = minimamba::read_config({std::as_bytes(std::span(data, size)), "fuzz"});
    if (config != config.resolved()) __builtin_trap();
  } catch (const minimamba::Error&) {
  }
  return 0;
}
