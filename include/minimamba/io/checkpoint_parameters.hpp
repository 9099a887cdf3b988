// The parameters of a checkpoint, for who writes them elsewhere.
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
#include "minimamba/io/load.hpp"
#include "minimamba/io/tensors.hpp"
#include "minimamba/io/transfer.hpp"
#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The parameters of a checkpoint, in the order in which save writes them. They are read when they are needed, in
/// double, so that no value is rounded twice. The checkpoint must outlive this object.
class CheckpointParameters {
 public:
  using Scalar = double;
  using Weight = float;

  /// Throws CheckpointError unless the tensors fit a model with the checkpoint's settings.
  explicit CheckpointParameters(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint), shapes_(detail::shapes_of<Shapes>(checkpoint)) {}
  const auto& config() const { return shapes_.config(); }
  /// The subject of error messages about a parameter.
  std::string subject(std::string_view name) const {
    const StoredTensor& tensor = *checkpoint_.find(name);
    return checkpoint_.tensors.source_name(tensor) + ": " + printable(tensor.name);
  }
  /// The number of values in all parameters.
  std::size_t parameter_count() const { return shapes_.parameter_count(); }

  /// Calls body(SavedParameter, pieces) for each; pieces(f) calls f(first row, View) until all its rows are read.
  /// Throws FileError, FormatError or CheckpointError if they cannot be read.
  template <class Body>
  void for_each(Body&& body) const {
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          constexpr bool is_matrix = detail::is_weight_matrix<std::remove_cvref_t<decltype(parameter)>>;
          body(SavedParameter{name, parameter, is_matrix, checkpoint_.find(name)->dtype}, [&](auto&& piece_body) {
            detail::in_pieces<double>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<double> piece) {
              checkpoint_.read(name, first * parameter.cols(), detail::values_of(piece));
              piece_body(first, piece);
            });
          });
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
  using Shapes = Mamba<float, ReferenceBackend>;  // never allocated

  const Checkpoint& checkpoint_;
  Shapes shapes_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
