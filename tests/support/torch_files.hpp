// PyTorch files, made byte by byte: zip files of stored entries, and pickles.
#ifndef MINIMAMBA_TESTS_TORCH_FILES_HPP
#define MINIMAMBA_TESTS_TORCH_FILES_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace support::torch_files {

template <class T>
inline std::string bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

struct Entry {
  std::string name, data;
  std::uint16_t method = 0, flags = 0;
};

/// A zip file of stored entries, with sizes in the directory only.
inline std::string zip(const std::vector<Entry>& entries) {
  std::string file, directory;
  for (const Entry& entry : entries) {
    const auto offset = static_cast<std::uint32_t>(file.size()), size = static_cast<std::uint32_t>(entry.data.size());
    const auto name_size = static_cast<std::uint16_t>(entry.name.size());
    file += "PK\3\4" + std::string(22, '\0') + bytes(name_size) + bytes(std::uint16_t{0}) + entry.name + entry.data;
    directory += "PK\1\2" + std::string(4, '\0') + bytes(entry.flags) + bytes(entry.method) + std::string(8, '\0') +
                 bytes(size) + bytes(size) + bytes(name_size) + std::string(12, '\0') + bytes(offset) + entry.name;
  }
  const auto count = static_cast<std::uint16_t>(entries.size());
  return file + directory + "PK\5\6" + std::string(4, '\0') + bytes(count) + bytes(count) +
         bytes(static_cast<std::uint32_t>(directory.size())) + bytes(static_cast<std::uint32_t>(file.size())) +
         bytes(std::uint16_t{0});
}

// Pickles.
inline std::string text(const std::string& x) { return "X" + bytes(static_cast<std::uint32_t>(x.size())) + x; }
inline std::string integer(std::int32_t x) { return "J" + bytes(x); }
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string tuple(const std::string& parts) { return "(" + parts + "t"; }
inline std::string storage(const std::string& type = "FloatStorage", const std::string& key = "0",
                           std::int32_t size = 4) {
  return tuple(text("storage") + global("torch", type) + text(key) + text("cpu") + integer(size)) + "Q";
}
inline std::string tensor(const std::string& stored, const std::string& offset, const std::string& size,
                          const std::string& stride) {
  return global("torch._utils", "_rebuild_tensor_v2") +
         tuple(stored + offset + tuple(size) + tuple(stride) + "\x89" + global("collections", "OrderedDict") + ")R") +
         "R";
}
inline const std::string good = tensor(storage(), integer(0), integer(4), integer(1));
inline std::string dict(const std::string& value) { return "\x80\x02}(" + text("x") + value + "u."; }
inline const std::string numbers(16, '\1');
inline std::string repeated(std::size_t count, const std::string& unit) {
  std::string all;
  all.reserve(count * unit.size());
  for (std::size_t i = 0; i < count; ++i) all += unit;
  return all;
}
inline std::string pickled(const std::string& pickle) { return zip({{"a/data.pkl", pickle}, {"a/data/0", numbers}}); }
inline std::string holding(const std::string& value) { return pickled(dict(value)); }

}  // namespace support::torch_files

#endif
