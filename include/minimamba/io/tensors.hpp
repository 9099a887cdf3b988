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
  std::vector<std::uint64_t> shape = {};    // slowest dimension first
  std::uint64_t begin = 0;                  // offset of its first byte
  std::size_t source = 0;                   // which of the set's sources holds it
  std::vector<std::uint64_t> strides = {};  // how far apart elements are, in elements; none when one follows the other
  std::string other = {};                   // what the file calls the type, where that is OTHER

  /// Elements; readers have checked that their bytes are there.
  std::uint64_t size() const {
    std::uint64_t count = 1;
    for (const std::uint64_t extent : shape) count *= extent;
    return count;
  }
};

/// The name of a tensor's type, fit for a message.
inline std::string type_of(const StoredTensor& tensor) {
  return tensor.dtype == DType::OTHER ? printable(tensor.other, 40) : std::string(name_of(tensor.dtype));
}

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
      throw CheckpointError(file + ": " + printable(name), "each tensor once",
                            "it also in " + source_name(place->second));
  }

  /// Keeps a sentence about something in the files that is ignored; of many, the last says that there are more.
  void note(std::string sentence) {
    if (notes_.size() == detail::most_notes) notes_.back() = "there is more to note about these files";
    if (notes_.size() < detail::most_notes) notes_.push_back(std::move(sentence));
  }
  const std::vector<std::string>& notes() const { return notes_; }

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
    if (!tensor.strides.empty()) return read_strided(tensor, first, out);
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
    if (!known) refuse_type(tensor);
  }

 private:
  [[noreturn]] void refuse_type(const StoredTensor& tensor) const {
    throw CheckpointError(source_name(tensor) + ": " + tensor.name, "floating-point numbers", type_of(tensor));
  }

  /// Of a tensor whose elements do not follow each other. Rows are read one by one, or, when the elements of a row lie
  /// far apart, as those of a transposed matrix do, columns.
  template <class Scalar>
  void read_strided(const StoredTensor& tensor, std::uint64_t first, std::span<Scalar> out) const {
    const std::vector<std::uint64_t>&shape = tensor.shape, &strides = tensor.strides;
    const std::size_t last = shape.size() - 1;
    const std::uint64_t cols = shape[last], rows = last > 0 ? shape[last - 1] : 1;
    const std::uint64_t step = strides[last], row_step = last > 0 ? strides[last - 1] : 0;
    for (std::size_t done = 0; done < out.size();) {
      const std::uint64_t col = (first + done) % cols, row = (first + done) / cols, left = out.size() - done;
      std::uint64_t place = col * step, rest = row;
      for (std::size_t i = last; i-- > 0; rest /= shape[i]) place += rest % shape[i] * strides[i];
      const std::uint64_t whole_rows = col == 0 ? std::min(left / cols, rows - row % rows) : 0;
      if (whole_rows > 1 && step > widest_step && row_step < step) {
        for (std::uint64_t j = 0; j < cols; ++j) {
          gather(tensor, {place + j * step, row_step, whole_rows}, out.data() + done + j, cols);
        }
        done += static_cast<std::size_t>(whole_rows * cols);
      } else {
        const std::uint64_t count = std::min(left, cols - col);
        gather(tensor, {place, step, count}, out.data() + done, 1);
        done += static_cast<std::size_t>(count);
      }
    }
  }

  /// Elements of a tensor at equal distances.
  struct Run {
    std::uint64_t place, step, count;
  };
  static constexpr std::uint64_t widest_step = 16;  // up to which what lies between is read as well

  /// Puts the elements of a run into every out_step-th place of `out`.
  template <class Scalar>
  void gather(const StoredTensor& tensor, const Run& run, Scalar* out, std::uint64_t out_step) const {
    const bool known = detail::with_float_type(tensor.dtype, [&](auto stored) {
      std::array<decltype(stored), 4096> piece;
      const std::uint64_t at_once = run.step == 0            ? run.count
                                    : run.step > widest_step ? 1
                                                             : (piece.size() - 1) / run.step + 1;
      for (std::uint64_t done = 0; done < run.count; done += at_once) {
        const std::uint64_t count = std::min(at_once, run.count - done);
        const auto part = std::span(piece).first(static_cast<std::size_t>((count - 1) * run.step + 1));
        sources_[tensor.source].read(tensor.begin + (run.place + done * run.step) * sizeof(stored),
                                     std::as_writable_bytes(part));
        for (std::uint64_t i = 0; i < count; ++i) {
          out[(done + i) * out_step] = static_cast<Scalar>(part[static_cast<std::size_t>(i * run.step)]);
        }
      }
    });
    if (!known) refuse_type(tensor);
  }

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
  std::vector<std::string> notes_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
