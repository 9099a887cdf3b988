// Tensors as files hold them: a name, a type, a shape, and where their bytes lie. Every reader of a checkpoint format
// fills a TensorSet, and loading reads from that, so a model does not know which format it came from.
#ifndef MINIMAMBA_IO_TENSORS_HPP
#define MINIMAMBA_IO_TENSORS_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/formats.hpp"
#include "minimamba/io/dtype.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/ggml_blocks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A tensor in a file.
struct StoredTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::uint64_t> shape = {};  // slowest dimension first
  std::uint64_t begin = 0;                // offset of its first byte
  std::size_t source = 0;                 // which of the set's sources holds it

  /// Elements; readers have checked that their bytes are there.
  std::uint64_t size() const {
    std::uint64_t count = 1;
    for (const std::uint64_t extent : shape) count *= extent;
    return count;
  }
};

/// All tensors of a checkpoint, from one file or several.
class TensorSet {
 public:
  /// Takes a source in; tensors refer to it by the number returned.
  std::size_t add_source(ByteSource source) {
    sources_.push_back(std::move(source));
    return sources_.size() - 1;
  }
  /// Throws CheckpointError if there is one of that name.
  void add(StoredTensor tensor) {
    const std::string name = tensor.name;
    const std::string& file = source_name(tensor);
    const auto [place, added] = tensors_.try_emplace(name, std::move(tensor));
    if (!added)
      throw CheckpointError(file + ": " + detail::printable(name), "each tensor once",
                            "it also in " + source_name(place->second));
  }

  const StoredTensor* find(const std::string& name) const {
    const auto place = tensors_.find(name);
    return place == tensors_.end() ? nullptr : &place->second;
  }
  /// By name, in the order of the names.
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const ByteSource& source(std::size_t index) const { return sources_[index]; }
  const std::string& source_name(const StoredTensor& tensor) const { return sources_[tensor.source].name(); }

  /// Converts elements [first, first + out.size()) to Scalar. Throws CheckpointError if they are no floating-point
  /// numbers, ArgumentError if there are not as many, FileError or FormatError if they cannot be read.
  template <class Scalar>
  void read(const StoredTensor& tensor, std::uint64_t first, std::span<Scalar> out) const {
    const ByteSource& source = sources_[tensor.source];
    if (first > tensor.size() || out.size() > tensor.size() - first) {
      throw ArgumentError(source.name() + ": " + tensor.name, "at most " + std::to_string(tensor.size()) + " elements",
                          "elements up to " + std::to_string(first + out.size()));
    }
    if (block_size_of(tensor.dtype) > 1) return read_blocks(tensor, first, out);
    const bool known = detail::with_float_type(tensor.dtype, [&](auto stored) {
      using Stored = decltype(stored);
      const std::uint64_t begin = tensor.begin + first * sizeof(Stored);
      if constexpr (std::is_same_v<Stored, Scalar>) {
        source.read(begin, std::as_writable_bytes(out));
      } else {
        std::array<Stored, 4096> piece;
        for (std::size_t done = 0; done < out.size(); done += piece.size()) {
          const auto part = std::span(piece).first(std::min(piece.size(), out.size() - done));
          source.read(begin + done * sizeof(Stored), std::as_writable_bytes(part));
          if constexpr (std::is_same_v<Stored, f16> && std::is_same_v<Scalar, float>) {
            detail::widen(part.data(), part.size(), out.data() + done);
          } else {
            std::transform(part.begin(), part.end(), out.begin() + static_cast<std::ptrdiff_t>(done),
                           [](Stored value) { return static_cast<Scalar>(value); });
          }
        }
      }
    });
    if (!known) {
      throw CheckpointError(source.name() + ": " + tensor.name, "floating-point numbers",
                            std::string(name_of(tensor.dtype)));
    }
  }

 private:
  /// Whole blocks are read and unpacked; of the first and the last one, what is wanted.
  template <class Scalar>
  void read_blocks(const StoredTensor& tensor, std::uint64_t first, std::span<Scalar> out) const {
    const std::size_t numbers = block_size_of(tensor.dtype), bytes = bytes_of(tensor.dtype);
    std::array<std::byte, 1U << 14> piece;
    std::array<Scalar, detail::most_block_numbers> unpacked;
    const std::size_t at_once = piece.size() / bytes;  // blocks
    for (std::size_t done = 0; done < out.size();) {
      const std::uint64_t block = (first + done) / numbers;
      std::size_t skipped = static_cast<std::size_t>((first + done) % numbers);
      const std::size_t blocks = std::min(at_once, (skipped + out.size() - done + numbers - 1) / numbers);
      sources_[tensor.source].read(tensor.begin + block * bytes, std::span(piece).first(blocks * bytes));
      for (std::size_t i = 0; i < blocks; ++i) {
        detail::unpack_block(tensor.dtype, piece.data() + i * bytes, unpacked.data());
        const std::size_t count = std::min(numbers - skipped, out.size() - done);
        std::copy_n(unpacked.begin() + static_cast<std::ptrdiff_t>(skipped), count,
                    out.begin() + static_cast<std::ptrdiff_t>(done));
        done += count;
        skipped = 0;
      }
    }
  }

  std::vector<ByteSource> sources_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
