// The parameters of a checkpoint, for code that writes them to another file.
#ifndef MINIMAMBA_IO_CHECKPOINT_PARAMETERS_HPP
#define MINIMAMBA_IO_CHECKPOINT_PARAMETERS_HPP

#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>

#include "minimamba/backend/reference.hpp"
#include "minimamba/core/config.hpp"
#include "minimamba/core/view.hpp"
#include "minimamba/io/checkpoint.hpp"
#include "minimamba/io/known_mixers.hpp"
#include "minimamba/io/load.hpp"
#include "minimamba/io/tensors.hpp"
#include "minimamba/io/transfer.hpp"
#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The parameters of a checkpoint for models with one mixer, in the order in which save writes them. Values are read
/// when they are needed, in double, so that none is rounded twice. The checkpoint must outlive this object.
template <class Files = detail::S6Files>
class CheckpointParameters {
 public:
  using Scalar = double;
  using Weight = float;

  /// Throws CheckpointError unless the tensors fit a model with the checkpoint's settings, and ConfigError for a
  /// checkpoint of another mixer.
  explicit CheckpointParameters(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint), shapes_(detail::shapes_of<Shapes>(checkpoint)) {}
  const auto& config() const { return shapes_.config(); }
  /// A model that has the parameters, without memory.
  const auto& shapes() const { return shapes_; }
  /// The subject of error messages about a parameter.
  std::string subject(std::string_view name) const {
    const StoredTensor& tensor = *checkpoint_.find(name);
    return checkpoint_.tensors.source_name(tensor) + ": " + printable(tensor.name);
  }
  /// The number of values in all parameters.
  std::size_t parameter_count() const { return shapes_.parameter_count(); }

  /// Calls body(SavedParameter, pieces) for each; pieces(f) calls f(first row, View) until all its rows are read, and
  /// pieces.blocks(dtype, f) calls f(bytes) if they are stored in blocks of that type.
  /// Throws FileError, FormatError or CheckpointError if they cannot be read.
  template <class Body>
  void for_each(Body&& body) const {
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          constexpr bool is_matrix = detail::is_weight_matrix<std::remove_cvref_t<decltype(parameter)>>;
          body(SavedParameter{name, parameter, is_matrix, checkpoint_.find(name)->dtype},
               Pieces{checkpoint_, name, parameter});
        },
        shapes_);
  }
  /// The same for -exp of a parameter, which GGUF stores in place of A_log.
  template <class Body>
  void minus_exp_pieces(const SavedParameter& parameter, Body&& body) const {
    const detail::Extents& extents = parameter.extents;
    detail::in_pieces<double>(extents.rows(), extents.cols(), [&](std::size_t first, View<double> piece) {
      checkpoint_.read_minus_exp(parameter.name, first * extents.cols(), detail::values_of(piece));
      body(first, piece);
    });
  }

 private:
  using Shapes = typename Files::template Model<float, ReferenceBackend>;  // never allocated

  /// The stored values of a parameter: see detail::ParameterPieces.
  struct Pieces {
    const Checkpoint& checkpoint;
    std::string_view name;
    const detail::Extents& extents;

    template <class Body>
    void operator()(Body&& body) const {
      detail::in_pieces<double>(extents.rows(), extents.cols(), [&](std::size_t first, View<double> piece) {
        checkpoint.read(name, first * extents.cols(), detail::values_of(piece));
        body(first, piece);
      });
    }
    template <class Body>
    bool blocks(DType dtype, Body&& body) const {
      const StoredTensor& stored = *checkpoint.find(name);
      if (block_size_of(dtype) == 1 || stored.dtype != dtype) return false;
      const std::size_t block_size = block_size_of(dtype), bytes = bytes_of(dtype);
      std::vector<std::byte> piece(bytes << 12);
      for (std::uint64_t first = 0, all = stored.size() / block_size; first < all; first += 1U << 12) {
        const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(all - first, 1U << 12));
        const auto part = std::span(piece).first(count * bytes);
        checkpoint.tensors.read_stored(stored, first, part);
        body(std::span<const std::byte>(part));
      }
      return true;
    }
  };

  const Checkpoint& checkpoint_;
  Shapes shapes_;
};

/// Calls body(parameters) with the CheckpointParameters of the checkpoint's own mixer.
template <class Body>
decltype(auto) with_parameters(const Checkpoint& checkpoint, Body&& body) {
  return checkpoint.config.visit_files(
      [&]<class Files>(Files) -> decltype(auto) { return body(CheckpointParameters<Files>(checkpoint)); });
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
