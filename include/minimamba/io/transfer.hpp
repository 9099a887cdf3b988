// Parameters on their way between memory and a file: piece by piece, so that no copy of a whole matrix is needed, and
// checked for numbers that do not fit. What load, save, save_gguf, load_parameters and save_parameters share.
#ifndef MINIMAMBA_IO_TRANSFER_HPP
#define MINIMAMBA_IO_TRANSFER_HPP

#include <algorithm>
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

/// The caller's callback asked to stop.
class CancelledError : public Error {
 public:
  using Error::Error;
};

/// A parameter that is to be saved.
struct SavedParameter {
  std::string_view name;
  const detail::Extents& extents;
  bool is_matrix;  // whether it carries the weight format
  DType dtype;     // whose numbers it has
};

namespace detail {

/// Whether a parameter carries the weight format.
template <class P>
inline constexpr bool is_weight_matrix = requires {
  typename P::Weight;
};

/// How a parameter keeps its numbers.
template <class P>
constexpr DType kept_as() {
  if constexpr (is_weight_matrix<P>) {
    return dtype_of_weight<typename P::Weight>();
  } else {
    return dtype_of<typename P::Scalar>();
  }
}

template <class Scalar>
std::span<Scalar> numbers_of(View<Scalar> piece) {
  return {piece.data(), piece.rows() * piece.cols()};
}

/// Counts what is read or written, and asks whether to go on.
class Progress {
 public:
  /// Told which part of `total` numbers is done; where it says no, the error is that `file` was to be `expected`.
  Progress(const std::function<bool(double)>& told, std::string file, std::string expected, std::size_t total)
      : told_(told),
        file_(std::move(file)),
        expected_(std::move(expected)),
        total_(static_cast<double>(std::max<std::size_t>(total, 1))) {}
  void add(std::size_t numbers) {
    done_ += static_cast<double>(numbers);
    if (told_ && !told_(done_ / total_)) throw CancelledError(file_, expected_, "the request to stop");
  }

 private:
  const std::function<bool(double)>& told_;
  std::string file_, expected_;
  double total_ = 0, done_ = 0;
};

/// What happens to numbers that may not fit where they go.
class Fitting {
 public:
  explicit Fitting(bool saturate) : saturate_(saturate) {}

  /// Clamps numbers that do not fit; unless that is wanted, throws CheckpointError for the first of them.
  template <class Scalar>
  void fit(const Narrowing& narrowing, std::span<Scalar> numbers, const std::string& subject) {
    if (!narrowing.needed()) return;
    if (saturate_) {
      clamped_[narrowing.type()] += narrowing.clamp(numbers);
    } else if (const auto number = narrowing.first_beyond(std::span<const Scalar>(numbers))) {
      throw CheckpointError(subject, narrowing.expected(), number_text(*number));
    }
  }
  /// Before anything is written: throws CheckpointError for the first number that would be refused. `type` gives the
  /// type in the file of one parameter after another.
  template <class Parameters, class Type>
  void check(const Parameters& parameters, Type&& type) {
    parameters.for_each([&](const SavedParameter& parameter, auto&& pieces) {
      const Narrowing narrowing(parameter.dtype, type(parameter));
      if (saturate_ || !narrowing.needed()) return;
      pieces([&](std::size_t, auto piece) { fit(narrowing, numbers_of(piece), parameters.subject(parameter.name)); });
    });
  }
  /// While it is written: clamps, if that is wanted.
  template <class Scalar>
  void apply(const Narrowing& narrowing, View<Scalar> piece) {
    if (saturate_) fit(narrowing, numbers_of(piece), "");
  }
  /// Before a file gets its name, or a model its numbers: what fails after that would say that it has not.
  void tell(const std::string& file, const std::function<void(const std::string&)>& on_note) const {
    for (const auto& [type, count] : clamped_) {
      if (count > 0 && on_note) on_note(file + ": " + clamped_text(count, type));
    }
  }

 private:
  bool saturate_;
  std::map<DType, std::size_t> clamped_;  // numbers, by the type that they did not fit
};

/// Throws CheckpointError unless a stored tensor has the shape of a parameter and holds floating-point numbers.
/// because() says what gives it that shape, as in ", by d_model 8 in config.json".
template <class Because>
void check_stored(const TensorSet& tensors, const StoredTensor& stored, const Shape& shape, Because&& because) {
  const std::string subject = tensors.source_name(stored) + ": " + printable(stored.name);
  if (!std::equal(stored.shape.begin(), stored.shape.end(), shape.begin(), shape.end())) {
    throw CheckpointError(subject, "shape " + shape_text(shape) + because(), "shape " + shape_text(stored.shape));
  }
  if (!is_floating(stored.dtype)) throw CheckpointError(subject, "floating-point numbers", type_of(stored));
}

/// The numbers of a parameter in a file.
struct StoredNumbers {
  DType dtype;
  std::string subject;  // what to call them in a message
  Fitting& fitting;
};

/// Gives a parameter memory, and the numbers that read(first element, span) reads.
template <class P, class Backend, class Read>
void read_parameter(P& parameter, const Backend& backend, const StoredNumbers& stored, Read&& read) {
  using Scalar = typename P::Scalar;
  const Narrowing narrowing(stored.dtype, kept_as<P>());
  parameter.allocate(backend);
  in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
    const std::span<Scalar> numbers = numbers_of(piece);
    if (std::is_same_v<Scalar, float> && stored.dtype == DType::F64) {  // a float would hide what does not fit
      std::vector<double> wide(numbers.size());
      read(first * parameter.cols(), std::span(wide));
      stored.fitting.fit(narrowing, std::span(wide), stored.subject);
      std::transform(wide.begin(), wide.end(), numbers.begin(), [](double x) { return static_cast<Scalar>(x); });
    } else {
      read(first * parameter.cols(), numbers);
      stored.fitting.fit(narrowing, numbers, stored.subject);
    }
    parameter.upload(backend, first, piece);
  });
}

/// What is to be saved, tensor by tensor: for_each calls body(SavedParameter, pieces), and pieces(f) calls f(first row,
/// View) until all rows are done.
template <class Module, class Backend>
class ModuleParameters {
 public:
  using Scalar = typename Backend::Scalar;

  ModuleParameters(const Module& module, const Backend& backend) : module_(module), backend_(backend) {}
  /// What to call a parameter in a message.
  std::string subject(std::string_view name) const { return "model: " + std::string(name); }
  std::size_t parameter_count() const { return count_parameters(module_); }

  template <class Body>
  void for_each(Body&& body) const {
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          using P = std::remove_cvref_t<decltype(parameter)>;
          body(SavedParameter{name, parameter, is_weight_matrix<P>, kept_as<P>()}, [&](auto&& piece_body) {
            in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
              parameter.download(backend_, first, piece);
              piece_body(first, piece);
            });
          });
        },
        module_);
  }

 private:
  const Module& module_;
  const Backend& backend_;
};

/// The tensors of a file of safetensors: named by name(parameter), of the types that type(parameter) gives.
template <class Parameters, class Type, class Name>
std::vector<StoredTensor> safetensors_of(const Parameters& parameters, Type&& type, Name&& name) {
  std::vector<StoredTensor> tensors;
  parameters.for_each([&](const SavedParameter& parameter, auto&&) {
    const Shape& shape = parameter.extents.shape();
    tensors.push_back({name(parameter.name), type(parameter), {shape.begin(), shape.end()}});
  });
  return tensors;
}

/// What takes part in writing numbers.
struct Writing {
  SafetensorsWriter& file;
  Fitting& fitting;
  Progress& progress;
};

/// Writes the numbers of those tensors.
template <class Parameters, class Type>
void write_safetensors(const Parameters& parameters, Type&& type, const Writing& to) {
  using Scalar = typename Parameters::Scalar;
  parameters.for_each([&](const SavedParameter& parameter, auto&& pieces) {
    const DType dtype = type(parameter);
    const Narrowing narrowing(parameter.dtype, dtype);
    pieces([&](std::size_t, auto piece) {
      to.fitting.apply(narrowing, piece);
      to.file.write(std::span<const Scalar>(numbers_of(piece)), dtype);
    });
    to.progress.add(parameter.extents.size());
  });
}

/// The type of everything else beside matrices of a type. Throws ArgumentError for a type that safetensors has not.
inline DType type_beside(DType matrices) {
  if (with_float_type(matrices, [](auto) {})) return matrices == DType::F64 ? DType::F64 : DType::F32;
  throw ArgumentError("matrices", "F32, F16, BF16 or F64 in safetensors", std::string(name_of(matrices)));
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
