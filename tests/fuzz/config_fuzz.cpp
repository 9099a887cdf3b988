// Any bytes at all as config.json: an Error or a configuration that a model of one of the mixers can have.
#include "minimamba/io/known_mixers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace minimamba;
  try {
    const Json json = read_json({std::as_bytes(std::span(data, size)), "fuzz"}, detail::config_limits);
    detail::ConfigReader reader(json, "fuzz");
    detail::KnownMixers::find([&](auto files) { return files.describes(reader); },
                              [&](auto files) {
                                const auto config = files.read(reader, "fuzz", [](auto&&...) {}).config;
                                if (config != config.resolved()) __builtin_trap();
                              });
  } catch (const Error&) {
  }
  return 0;
}
