// Moves parameters between memory and a file: piece by piece, so that no copy of a whole matrix is needed, and with a
// check for values that do not fit. Shared by load, save, save_gguf, load_parameters and save_parameters.
#ifndef MINIMAMBA_IO_TRANSFER_HPP
#define MINIMAMBA_IO_TRANSFER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/view.hpp"
#include "minimamba/io/dtype.hpp"
#include "minimamba/io/safetensors_writer.hpp"
#include "minimamba/io/tensors.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The caller's progress callback returned false: "loading was cancelled".
class CancelledError : public Error {
 public:
  using Error::Error;
};

/// A parameter that is to be saved.
struct SavedParameter {
  std::string_view name;
  const detail::Extents& extents;
  bool is_matrix;  // whether it carries the weight format
  DType dtype;     // the type in which it is kept
};

namespace detail {

/// Whether a parameter carries the weight format.
template <class P>
inline constexpr bool is_weight_matrix = requires {
  typename P::Weight;
};

/// Whether a parameter can be copied as the blocks of its quantised format.
template <class P>
inline constexpr bool has_blocks = false;
template <class P>
requires(P::has_blocks) inline constexpr bool has_blocks<P> = true;

/// The type in which a parameter is kept in memory.
template <class P>
constexpr DType kept_as() {
  if constexpr (is_weight_matrix<P>) {
    return dtype_of_weight<typename P::Weight>();
  } else {
    return dtype_of<typename P::Scalar>();
  }
}

template <class Scalar>
std::span<Scalar> values_of(View<Scalar> piece) {
  return {piece.data(), piece.rows() * piece.cols()};
}

/// Counts the values that are read or written, and asks the callback whether to continue.
class Progress {
 public:
  /// `callback` is called with the fraction of `total` values that is done. If it returns false, the error's message is
  /// that `action`, which is "loading" or "saving", of `file` was cancelled.
  Progress(const std::function<bool(double)>& callback, std::string file, std::string action, std::size_t total)
      : callback_(callback),
        file_(std::move(file)),
        action_(std::move(action)),
        total_(static_cast<double>(std::max<std::size_t>(total, 1))) {}
  void add(std::size_t count) {
    done_ += static_cast<double>(count);
    if (callback_ && !callback_(done_ / total_)) throw CancelledError(file_, action_ + " was cancelled");
  }

 private:
  const std::function<bool(double)>& callback_;
  std::string file_, action_;
  double total_ = 0, done_ = 0;
};

/// What happens to values that do not fit the type in which they are stored: they are an error, or they are clamped.
class Saturation {
 public:
  explicit Saturation(bool saturate) : saturate_(saturate) {}

  /// Clamps values that do not fit, if that is wanted; otherwise throws CheckpointError for the first of them.
  template <class Scalar>
  void fit(const RangeCheck& range, std::span<Scalar> values, const std::string& subject) {
    if (!range.needed()) return;
    if (saturate_) {
      clamped_[range.type()] += range.clamp(values);
    } else if (const auto number = range.first_beyond(std::span<const Scalar>(values))) {
      throw CheckpointError(subject, range.expected(), number_text(*number));
    }
  }
  /// Called before anything is written: throws CheckpointError for the first value that does not fit. `type` gives the
  /// type in the file of one parameter after another.
  template <class Parameters, class Type>
  void check(const Parameters& parameters, Type&& type) {
    parameters.for_each([&](const SavedParameter& parameter, auto&& pieces) {
      const RangeCheck range(parameter.dtype, type(parameter));
      if (saturate_ || !range.needed()) return;
      pieces([&](std::size_t, auto piece) { fit(range, values_of(piece), parameters.subject(parameter.name)); });
    });
  }
  /// Called while it is written: clamps, if that is wanted.
  template <class Scalar>
  void apply(const RangeCheck& range, View<Scalar> piece) {
    if (saturate_) fit(range, values_of(piece), "");
  }
  /// Reports the number of clamped values. Called before a file gets its name, or a model its values, because an
  /// exception from on_note must still leave those as they were.
  void report(const std::string& file, const std::function<void(const std::string&)>& on_note) const {
    for (const auto& [type, count] : clamped_) {
      if (count > 0 && on_note) on_note(file + ": " + clamped_text(count, type));
    }
  }

 private:
  bool saturate_;
  std::map<DType, std::size_t> clamped_;  // values, by the type that they did not fit
};

/// Throws CheckpointError unless a stored tensor has the shape of a parameter and holds floating-point values.
/// because() gives the settings that the shape follows from, as in " (d_model 8 in config.json)".
template <class Because>
void check_stored(const TensorSet& tensors, const StoredTensor& stored, const Shape& shape, Because&& because) {
  const std::string subject = tensors.source_name(stored) + ": " + printable(stored.name);
  if (!std::equal(stored.shape.begin(), stored.shape.end(), shape.begin(), shape.end())) {
    throw CheckpointError(subject, "shape " + shape_text(shape) + because(), "shape " + shape_text(stored.shape));
  }
  if (!is_floating(stored.dtype)) throw CheckpointError(subject, "floating-point values", type_of(stored));
}

/// Throws CheckpointError for values that are NaN or infinite.
template <class Scalar>
void require_finite(std::span<const Scalar> values, const std::string& subject) {
  for (const Scalar value : values) {
    if (std::isfinite(value)) continue;
    throw CheckpointError(subject, "finite values", number_text(static_cast<double>(value)));
  }
}

/// The stored values of a parameter.
struct StoredValues {
  DType dtype;
  std::string subject;  // of error messages
  Saturation& saturation;
};

/// Allocates a parameter and fills it with the values that read(first element, span) reads.
template <class P, class Backend, class Read>
void read_parameter(P& parameter, const Backend& backend, const StoredValues& stored, Read&& read) {
  using Scalar = typename P::Scalar;
  const RangeCheck range(stored.dtype, kept_as<P>());
  parameter.allocate(backend);
  in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
    const std::span<Scalar> values = values_of(piece);
    if (std::is_same_v<Scalar, float> && stored.dtype == DType::F64) {  // a float would hide values that do not fit
      std::vector<double> wide(values.size());
      read(first * parameter.cols(), std::span(wide));
      stored.saturation.fit(range, std::span(wide), stored.subject);
      std::transform(wide.begin(), wide.end(), values.begin(), [](double x) { return static_cast<Scalar>(x); });
    } else {
      read(first * parameter.cols(), values);
      stored.saturation.fit(range, values, stored.subject);
    }
    parameter.upload(backend, first, piece);
  });
}

/// Allocates a matrix and fills it with the blocks of a stored tensor as they are, if it holds them in the matrix's own
/// format: nothing is rounded. Returns whether it does.
template <class P, class Backend>
bool read_blocks([[maybe_unused]] const TensorSet& tensors, [[maybe_unused]] const StoredTensor& stored,
                 [[maybe_unused]] P& parameter, [[maybe_unused]] const Backend& backend) {
  if constexpr (has_blocks<P>) {
    using Block = typename P::Block;
    if (stored.dtype != kept_as<P>()) return false;
    parameter.allocate(backend);
    const std::size_t in_row = blocks_in<typename P::Weight>(parameter.cols());
    in_pieces<Block>(parameter.rows(), in_row, [&](std::size_t first, View<Block> piece) {
      tensors.read_stored(stored, first * in_row, std::as_writable_bytes(values_of(piece)));
      parameter.upload_blocks(backend, first, piece);
    });
    return true;
  }
  return false;
}

/// The values of a parameter that is to be saved, in pieces.
template <class P, class Backend>
class ParameterPieces {
 public:
  using Scalar = typename Backend::Scalar;

  ParameterPieces(const P& parameter, const Backend& backend) : parameter_(parameter), backend_(backend) {}

  /// Calls body(first row, View) until all rows are done.
  template <class Body>
  void operator()(Body&& body) const {
    in_pieces<Scalar>(parameter_.rows(), parameter_.cols(), [&](std::size_t first, View<Scalar> piece) {
      parameter_.download(backend_, first, piece);
      body(first, piece);
    });
  }
  /// If the parameter is kept in blocks of this type: calls body(bytes) with them as they are, and returns true.
  template <class Body>
  bool blocks([[maybe_unused]] DType dtype, [[maybe_unused]] Body&& body) const {
    if constexpr (has_blocks<P>) {
      using Block = typename P::Block;
      if (dtype != kept_as<P>()) return false;
      in_pieces<Block>(parameter_.rows(), blocks_in<typename P::Weight>(parameter_.cols()),
                       [&](std::size_t first, View<Block> piece) {
                         parameter_.download_blocks(backend_, first, piece);
                         body(std::as_bytes(values_of(piece)));
                       });
      return true;
    }
    return false;
  }

 private:
  const P& parameter_;
  const Backend& backend_;
};

/// The parameters of a module to save: for_each calls body(SavedParameter, pieces) for each, and pieces(f) calls
/// f(first row, View) until all rows are done; see ParameterPieces.
template <class Module, class Backend>
class ModuleParameters {
 public:
  using Scalar = typename Backend::Scalar;

  ModuleParameters(const Module& module, const Backend& backend) : module_(module), backend_(backend) {}
  /// The subject of error messages about a parameter.
  std::string subject(std::string_view name) const { return "model: " + std::string(name); }
  std::size_t parameter_count() const { return count_parameters(module_); }

  template <class Body>
  void for_each(Body&& body) const {
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          using P = std::remove_cvref_t<decltype(parameter)>;
          body(SavedParameter{name, parameter, is_weight_matrix<P>, kept_as<P>()},
               ParameterPieces<P, Backend>(parameter, backend_));
        },
        module_);
  }

 private:
  const Module& module_;
  const Backend& backend_;
};

/// The tensors of a safetensors file, with the names name(parameter) and the types type(parameter).
template <class Parameters, class Type, class Name>
std::vector<StoredTensor> safetensors_of(const Parameters& parameters, Type&& type, Name&& name) {
  std::vector<StoredTensor> tensors;
  parameters.for_each([&](const SavedParameter& parameter, auto&&) {
    const Shape& shape = parameter.extents.shape();
    tensors.push_back({name(parameter.name), type(parameter), {shape.begin(), shape.end()}});
  });
  return tensors;
}

/// What write_safetensors writes to.
struct Writing {
  SafetensorsWriter& file;
  Saturation& saturation;
  Progress& progress;
};

/// Writes the values of those tensors.
template <class Parameters, class Type>
void write_safetensors(const Parameters& parameters, Type&& type, const Writing& to) {
  using Scalar = typename Parameters::Scalar;
  parameters.for_each([&](const SavedParameter& parameter, auto&& pieces) {
    const DType dtype = type(parameter);
    const RangeCheck range(parameter.dtype, dtype);
    pieces([&](std::size_t, auto piece) {
      to.saturation.apply(range, piece);
      to.file.write(std::span<const Scalar>(values_of(piece)), dtype);
    });
    to.progress.add(parameter.extents.size());
  });
}

/// The type of all other parameters if matrices have this type. Throws ArgumentError for a type that is not supported
/// in safetensors.
inline DType other_type_for(DType matrices) {
  if (with_float_type(matrices, [](auto) {})) return matrices == DType::F64 ? DType::F64 : DType::F32;
  throw ArgumentError("matrices", "F32, F16, BF16 or F64 in safetensors", std::string(name_of(matrices)));
}

/// The type of each parameter in a safetensors file: of the types that the option asks for, or its own, or F32 if its
/// own has blocks.
inline auto types_in_safetensors(std::optional<DType> matrices) {
  const DType others = matrices ? other_type_for(*matrices) : DType::F32;
  return [=](const SavedParameter& parameter) {
    if (matrices) return parameter.is_matrix ? *matrices : others;
    return block_size_of(parameter.dtype) > 1 ? DType::F32 : parameter.dtype;
  };
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
