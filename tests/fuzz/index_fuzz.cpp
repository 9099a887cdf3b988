// Any bytes as the index of a sharded checkpoint, with two shards that exist: an Error or a set of their tensors.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/index_fuzz.cpp
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "minimamba/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

/// A file of one tensor of one byte.
std::string shard(const std::string& tensor) {
  const std::string header = "{\"" + tensor + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
  const std::uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + "x";
}

minimamba::ByteSource open_shard(const std::string& name) {
  static const std::string a = shard("a"), b = shard("b");
  if (name.find_first_of(std::string("/\\:\0", 4)) != name.npos || name == "..") std::abort();  // out of the folder
  if (name != "1" && name != "2") throw minimamba::FileError(name, "a file", "none");
  return {std::as_bytes(std::span(name == "1" ? a : b)), name};
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    minimamba::TensorSet set;
    minimamba::read_sharded_safetensors(minimamba::ByteSource(std::as_bytes(std::span(data, size)), "fuzz"), open_shard,
                                        set);
  } catch (const minimamba::Error&) {
  }
  return 0;
}
