// Tensors in files: their names, types, shapes and the places of their bytes. Every reader of a checkpoint format fills
// a TensorSet, and loading reads from that, so a model does not depend on the format.
#ifndef MINIMAMBA_IO_TENSORS_HPP
#define MINIMAMBA_IO_TENSORS_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
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
  std::size_t source = 0;                   // the index of the source that holds it
  std::vector<std::uint64_t> strides = {};  // distances of elements, in elements; empty if contiguous
  std::string other = {};                   // the file's name of the type, if dtype is OTHER

  /// The number of elements; readers have checked that their bytes exist.
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
  /// Adds a source; tensors refer to it by the index returned.
  std::size_t add_source(ByteSource source) {
    sources_.push_back(std::move(source));
    return sources_.size() - 1;
  }
  /// Throws CheckpointError if the set already has a tensor of that name.
  void add(StoredTensor tensor) {  // NOLINT(performance-unnecessary-value-param): it is moved
    const std::string name = tensor.name;
    const std::string& file = source_name(tensor);
    const auto [place, added] = tensors_.try_emplace(name, std::move(tensor));
    if (!added)
      throw CheckpointError(file + ": " + printable(name),
                            "another tensor of this name is in " + source_name(place->second));
  }

  /// Stores a sentence about something in the files that is ignored; if there are very many, the last one reports that
  /// there are more.
  void note(std::string sentence) {
    if (notes_.size() == detail::max_notes) notes_.back() = "there are further notes about these files";
    if (notes_.size() < detail::max_notes) notes_.push_back(std::move(sentence));
  }
  const std::vector<std::string>& notes() const { return notes_; }

  const StoredTensor* find(const std::string& name) const {
    const auto place = tensors_.find(name);
    return place == tensors_.end() ? nullptr : &place->second;
  }
  /// Sorted by name.
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const ByteSource& source(std::size_t index) const { return sources_[index]; }
  const std::string& source_name(const StoredTensor& tensor) const { return sources_[tensor.source].name(); }

  /// Converts elements [first, first + out.size()) to Scalar. Throws CheckpointError if they are not floating-point
  /// values, ArgumentError if the tensor has fewer elements, FileError or FormatError if they cannot be read.
  template <class Scalar>
  void read(const StoredTensor& tensor, std::uint64_t first, std::span<Scalar> out) const;

  /// Copies the bytes of a tensor of a block type as they are, from block `first` on. Throws ArgumentError if the
  /// tensor has fewer, FileError or FormatError if they cannot be read.
  void read_stored(const StoredTensor& tensor, std::uint64_t first, std::span<std::byte> out) const {
    const std::uint64_t blocks = tensor.size() / block_size_of(tensor.dtype), bytes = bytes_of(tensor.dtype);
    if (first > blocks || out.size() > (blocks - first) * bytes) {
      throw ArgumentError(source_name(tensor) + ": " + tensor.name, "at most " + std::to_string(blocks) + " blocks",
                          std::to_string(out.size()) + " bytes from block " + std::to_string(first) + " on");
    }
    sources_[tensor.source].read(tensor.begin + first * bytes, out);
  }

 private:
  [[noreturn]] void refuse_type(const StoredTensor& tensor) const {
    throw CheckpointError(source_name(tensor) + ": " + tensor.name, "floating-point values", type_of(tensor));
  }

  /// Reads a tensor that is not contiguous. Rows are read one by one; if the elements of a row are far apart, as in a
  /// transposed matrix, columns are.
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
  static constexpr std::uint64_t widest_step = 16;  // up to this step, the elements in between are read too

  /// Writes the elements of a run to every out_step-th place of `out`.
  template <class Scalar>
  void gather(const StoredTensor& tensor, const Run& run, Scalar* out, std::uint64_t out_step) const {
    const bool known = detail::with_float_type(tensor.dtype, [&](auto stored) {
      std::array<decltype(stored), 4096> piece;
      const std::uint64_t per_read = run.step == 0            ? run.count
                                     : run.step > widest_step ? 1
                                                              : (piece.size() - 1) / run.step + 1;
      for (std::uint64_t done = 0; done < run.count; done += per_read) {
        const std::uint64_t count = std::min(per_read, run.count - done);
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

  /// Reads and unpacks whole blocks; of the first and the last one only the elements that are wanted are copied.
  template <class Scalar>
  void read_blocks(const StoredTensor& tensor, std::uint64_t first, std::span<Scalar> out) const {
    const std::size_t block_size = block_size_of(tensor.dtype), bytes = bytes_of(tensor.dtype);
    std::array<std::byte, 1U << 14> piece;
    std::array<Scalar, detail::max_block_values> unpacked;
    const std::size_t per_read = piece.size() / bytes;  // blocks
    for (std::size_t done = 0; done < out.size();) {
      const std::uint64_t block = (first + done) / block_size;
      std::size_t skipped = static_cast<std::size_t>((first + done) % block_size);
      const std::size_t blocks = std::min(per_read, (skipped + out.size() - done + block_size - 1) / block_size);
      sources_[tensor.source].read(tensor.begin + block * bytes, std::span(piece).first(blocks * bytes));
      for (std::size_t i = 0; i < blocks; ++i) {
        detail::unpack_block(tensor.dtype, piece.data() + i * bytes, unpacked.data());
        const std::size_t count = std::min(block_size - skipped, out.size() - done);
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

template <class Scalar>
void TensorSet::read(const StoredTensor& tensor, std::uint64_t first, std::span<Scalar> out) const {
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

#ifdef MINIMAMBA_COMPILED_FILES
extern template void TensorSet::read(const StoredTensor&, std::uint64_t, std::span<float>) const;
extern template void TensorSet::read(const StoredTensor&, std::uint64_t, std::span<double>) const;
#endif

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
