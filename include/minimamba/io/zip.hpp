// The directory of a zip file: its entries and the places of their bytes. Only uncompressed entries are supported,
// which is how PyTorch packs its tensors.
#ifndef MINIMAMBA_IO_ZIP_HPP
#define MINIMAMBA_IO_ZIP_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The place of an entry's bytes in the file.
struct ZipEntry {
  std::uint64_t begin = 0, size = 0;
};

/// Reads the central directory at the end of a zip file, in its 32-bit or its 64-bit form. Local headers are used only
/// to find where the bytes after them begin, because PyTorch leaves their sizes zero.
class ZipDirectory {
 public:
  /// Throws FormatError if the file is not a zip file, or if an entry is compressed, encrypted or duplicated, overlaps
  /// another, or extends beyond the file.
  explicit ZipDirectory(const ByteSource& source) : source_(source) {
    find_directory();
    read_directory();
    find_bytes();
  }

  const std::map<std::string, ZipEntry>& entries() const { return entries_; }

 private:
  static constexpr std::uint64_t end_bytes = 22, longest_comment = 65535, locator_bytes = 20, end64_bytes = 56;
  static constexpr std::uint64_t max_entries = 32768, max_directory_bytes = std::uint64_t{4} << 20;
  static constexpr std::uint32_t local_magic = 0x04034b50, entry_magic = 0x02014b50, end_magic = 0x06054b50,
                                 end64_magic = 0x06064b50, locator_magic = 0x07064b50;
  static constexpr std::uint32_t saturated = 0xFFFFFFFF;

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    throw FormatError(source_.name(), expected, found);
  }
  [[noreturn]] void refuse_entry(const std::string& name, const std::string& expected, const std::string& found) const {
    throw FormatError(source_.name() + ": " + printable(name), expected, found);
  }

  template <class T>
  static T number(std::span<const std::byte> bytes, std::size_t at) {
    T value{};
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    return value;
  }

  /// The end record is the last thing in the file apart from a comment, whose length it contains.
  void find_directory() {
    const std::uint64_t size = source_.size();
    const std::uint64_t tail_size = std::min(size, end_bytes + longest_comment);
    std::vector<std::byte> tail(static_cast<std::size_t>(tail_size));
    source_.read(size - tail_size, tail);
    std::optional<std::size_t> end;
    for (std::size_t at = tail.size() + 1; !end && at-- > 0;) {
      if (tail.size() - at < end_bytes || number<std::uint32_t>(tail, at) != end_magic) continue;
      if (number<std::uint16_t>(tail, at + 20) == tail.size() - at - end_bytes) end = at;
    }
    if (!end) refuse("a zip file with a directory at its end", "none (truncated?)");
    count_ = number<std::uint16_t>(tail, *end + 10);
    bytes_ = number<std::uint32_t>(tail, *end + 12);
    offset_ = number<std::uint32_t>(tail, *end + 16);
    limit_ = size - tail_size + *end;
    read_end64();
    if (offset_ > limit_ || bytes_ > limit_ - offset_ || bytes_ > max_directory_bytes || count_ > max_entries) {
      refuse("a directory within the file, of at most 32768 entries and 4 MiB",
             std::to_string(count_) + " entries in " + std::to_string(bytes_) + " bytes at " + std::to_string(offset_));
    }
  }

  /// The end record may be preceded by a 64-bit one, and by a locator that points to that.
  void read_end64() {
    if (limit_ < locator_bytes + end64_bytes) return;
    if (source_.read_value<std::uint32_t>(limit_ - locator_bytes) != locator_magic) return;
    const auto at = source_.read_value<std::uint64_t>(limit_ - locator_bytes + 8);
    limit_ -= locator_bytes;
    if (at > limit_ - end64_bytes || source_.read_value<std::uint32_t>(at) != end64_magic) {
      refuse("a 64-bit end record before byte " + std::to_string(limit_), "none at byte " + std::to_string(at));
    }
    count_ = source_.read_value<std::uint64_t>(at + 32);
    bytes_ = source_.read_value<std::uint64_t>(at + 40);
    offset_ = source_.read_value<std::uint64_t>(at + 48);
    limit_ = at;
  }

  void read_directory() {
    std::vector<std::byte> directory(static_cast<std::size_t>(bytes_));
    source_.read(offset_, directory);
    std::span<const std::byte> rest = directory;
    for (std::uint64_t i = 0; i < count_; ++i) {
      constexpr std::size_t fixed = 46;
      if (rest.size() < fixed || number<std::uint32_t>(rest, 0) != entry_magic) {
        refuse("a directory of " + std::to_string(count_) + " entries", "only " + std::to_string(i));
      }
      const std::size_t name_size = number<std::uint16_t>(rest, 28), extra_size = number<std::uint16_t>(rest, 30),
                        comment_size = number<std::uint16_t>(rest, 32);
      if (rest.size() - fixed < name_size + extra_size + comment_size)
        throw FormatError(source_.name(), "the directory ends inside an entry");
      const std::string name(reinterpret_cast<const char*>(rest.data()) + fixed, name_size);
      add_entry(name, rest.first(fixed), rest.subspan(fixed + name_size, extra_size));
      rest = rest.subspan(fixed + name_size + extra_size + comment_size);
    }
  }

  void add_entry(const std::string& name, std::span<const std::byte> fixed, std::span<const std::byte> extra) {
    const auto flags = number<std::uint16_t>(fixed, 8), method = number<std::uint16_t>(fixed, 10);
    if ((flags & 1U) != 0) throw FormatError(source_.name() + ": " + printable(name), "the entry is encrypted");
    if (method != 0) refuse_entry(name, "an uncompressed entry", "compression method " + std::to_string(method));
    std::uint64_t packed = number<std::uint32_t>(fixed, 20), size = number<std::uint32_t>(fixed, 24),
                  local = number<std::uint32_t>(fixed, 42);
    const std::span<const std::byte> wide = zip64_field(extra);
    std::size_t at = 0;
    for (std::uint64_t* value : {&size, &packed, &local}) {  // in this order, those that do not fit in 32 bits
      if (*value != saturated) continue;
      if (wide.size() - at < 8)
        throw FormatError(source_.name() + ": " + printable(name), "the entry lacks its 64-bit sizes");
      *value = number<std::uint64_t>(wide, at);
      at += 8;
    }
    if (packed != size)
      refuse_entry(name, "equal sizes of stored and original bytes",
                   std::to_string(packed) + " and " + std::to_string(size));
    if (!entries_.try_emplace(name, ZipEntry{local, size}).second)
      throw FormatError(source_.name() + ": " + printable(name), "the entry occurs twice");
  }

  /// The contents of the zip64 extra field (number 1); empty if there is none.
  static std::span<const std::byte> zip64_field(std::span<const std::byte> extra) {
    while (extra.size() >= 4) {
      const std::size_t size = std::min<std::size_t>(number<std::uint16_t>(extra, 2), extra.size() - 4);
      if (number<std::uint16_t>(extra, 0) == 1) return extra.subspan(4, size);
      extra = extra.subspan(4 + size);
    }
    return {};
  }

  /// Turns the offsets of local headers into those of the bytes after them, none of which may overlap.
  void find_bytes() {
    std::vector<std::pair<std::uint64_t, const std::string*>> order;
    for (auto& [name, entry] : entries_) {
      constexpr std::uint64_t fixed = 30;
      const std::uint64_t local = entry.begin;
      if (local > offset_ || offset_ - local < fixed || source_.read_value<std::uint32_t>(local) != local_magic) {
        refuse_entry(name, "a header before the directory", "none at byte " + std::to_string(local));
      }
      entry.begin =
          local + fixed + source_.read_value<std::uint16_t>(local + 26) + source_.read_value<std::uint16_t>(local + 28);
      if (entry.begin > offset_ || entry.size > offset_ - entry.begin) {
        refuse_entry(name, "data before the directory at byte " + std::to_string(offset_),
                     std::to_string(entry.size) + " bytes at byte " + std::to_string(entry.begin));
      }
      order.emplace_back(local, &name);
    }
    std::sort(order.begin(), order.end());
    std::uint64_t end = 0;
    for (const auto& [local, name] : order) {
      if (local < end) throw FormatError(source_.name() + ": " + printable(*name), "the entry overlaps another");
      end = entries_[*name].begin + entries_[*name].size;
    }
  }

  const ByteSource& source_;
  std::uint64_t count_ = 0, bytes_ = 0, offset_ = 0;  // of the directory
  std::uint64_t limit_ = 0;                           // the directory must end before this
  std::map<std::string, ZipEntry> entries_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
