// The parameters of any module as one safetensors file: for example of a model of your own, without configuration or
// vocabulary, whose static visit() names its parts.
#ifndef MINIMAMBA_IO_PARAMETER_FILE_HPP
#define MINIMAMBA_IO_PARAMETER_FILE_HPP

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/io/file.hpp"
#include "minimamba/io/safetensors.hpp"
#include "minimamba/io/safetensors_writer.hpp"
#include "minimamba/io/transfer.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct ParameterSaveOptions {
  /// How matrices that carry a weight format are stored: F32, F16, BF16 or F64. By default as the module has them, or
  /// in F32 if that format has no type in the file.
  std::optional<DType> matrices = {};
  /// Texts to store in the file, such as what the module was trained on: see read_safetensors_metadata.
  std::map<std::string, std::string> metadata = {};
  /// As in SaveOptions.
  std::function<bool(double)> progress = {};
  bool saturate = false;
  std::function<void(const std::string&)> on_note = {};
};

struct ParameterLoadOptions {
  /// As in LoadOptions.
  std::function<bool(double)> progress = {};
  bool saturate = false;
  std::function<void(const std::string&)> on_note = {};
  /// Whether a NaN or an infinity is a CheckpointError.
  bool finite = false;
};

namespace detail {

/// Throws ArgumentError unless the module has parameters and all of them have memory.
template <class Module>
void check_memory(const Module& module) {
  bool any = false;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        any = true;
        if (parameter.allocated()) return;
        throw ArgumentError("module", std::string(name) + " has no memory");
      },
      module);
  if (!any) throw ArgumentError("module", "it has no parameters, or was moved from");
}

/// Throws CheckpointError unless the tensors are the parameters of a module, and no others.
template <class Module>
void check_parameters(const TensorSet& tensors, const std::string& file, const Module& module) {
  std::set<std::string, std::less<>> expected;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        const auto place = expected.emplace(name).first;
        const StoredTensor* const stored = tensors.find(*place);
        if (stored == nullptr) {
          throw CheckpointError(file + ": " + *place, "a tensor of shape " + shape_text(parameter.shape()),
                                "no tensor");
        }
        check_stored(tensors, *stored, parameter.shape(), [] { return ""; });
      },
      module);
  for (const auto& [name, tensor] : tensors.tensors()) {
    if (expected.contains(name)) continue;
    throw CheckpointError(file + ": " + printable(name), "the module has no parameter of this name");
  }
}

}  // namespace detail

/// Saves the parameters of a module (see for_each_parameter) as one safetensors file, under their names: matrices in
/// the module's weight format and everything else in the backend's Scalar, unless the options name a type. The file
/// gets its name when it is complete on the disk. Throws FileError; CheckpointError for values that do not fit;
/// CancelledError; and ArgumentError for parameters without memory, with equal names or with more than 8 dimensions,
/// for a type that the file cannot have, and for metadata of more than 16 MiB in all, of more than 1 MiB in one text,
/// or not in UTF-8. An existing file is then as it was.
template <class Module, class Backend>
void save_parameters(const Module& module, const Backend& backend, const std::filesystem::path& path,
                     const ParameterSaveOptions& options = {}) {
  detail::check_memory(module);
  const detail::ModuleParameters<Module, Backend> parameters(module, backend);
  const auto type = detail::types_in_safetensors(options.matrices);
  detail::Saturation saturation(options.saturate);
  saturation.check(parameters, type);
  AtomicFile::remove_strays_beside(path);
  const auto same_name = [](std::string_view name) { return std::string(name); };
  SafetensorsWriter file(path, detail::safetensors_of(parameters, type, same_name), options.metadata);
  detail::Progress progress(options.progress, path.string(), "saving", parameters.parameter_count());
  detail::write_safetensors(parameters, type, {file, saturation, progress});
  file.finish();
  saturation.report(path.string(), options.on_note);
  file.commit();
}

/// Reads the parameters of a module from a safetensors file of any floating-point types. The file must have each
/// parameter of the module with its shape, and nothing else. All are read into new memory, which then replaces the old,
/// if there was any: until then twice the memory is needed. Views of the old memory are then dangling; values that are
/// derived from the parameters, as in S6 and Mamba, must be refreshed. Throws ArgumentError for gradients, FileError,
/// FormatError, CheckpointError, which names file and tensor, CancelledError, and std::bad_alloc; the module is then as
/// it was.
template <class Module, class Backend>
void load_parameters(Module& module, const Backend& backend, const ByteSource& source,
                     const ParameterLoadOptions& options = {}) {
  for_each_parameter(
      [](std::string_view name, const auto& parameter) {
        if (!parameter.placed()) return;
        throw ArgumentError("module", "parameters that own their memory", std::string(name) + " of gradients");
      },
      module);
  detail::refuse_pointer(source);
  TensorSet tensors;
  read_safetensors(source, tensors);
  detail::check_parameters(tensors, source.name(), module);
  detail::Saturation saturation(options.saturate);
  detail::Progress progress(options.progress, source.name(), "loading", count_parameters(module));
  std::vector<std::function<void()>> moves;  // put what was read into its place, and cannot fail
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        using P = std::remove_cvref_t<decltype(parameter)>;
        static_assert(std::is_nothrow_move_assignable_v<P>);
        const StoredTensor& stored = *tensors.find(std::string(name));
        const auto fresh = std::make_shared<P>(parameter.shape(), parameter.role());
        detail::read_parameter(*fresh, backend, {stored.dtype, source.name() + ": " + stored.name, saturation},
                               [&](std::size_t first, auto values) {
                                 tensors.read(stored, first, values);
                                 using Value = typename decltype(values)::element_type;
                                 if (!options.finite) return;
                                 detail::require_finite(std::span<const Value>(values),
                                                        source.name() + ": " + stored.name);
                               });
        moves.push_back([fresh, &parameter] { parameter = std::move(*fresh); });
        progress.add(parameter.size());
      },
      module);
  saturation.report(source.name(), options.on_note);
  for (const auto& move : moves) move();
}
template <class Module, class Backend>
void load_parameters(Module& module, const Backend& backend, const std::filesystem::path& path,
                     const ParameterLoadOptions& options = {}) {
  load_parameters(module, backend, ByteSource::open(path), options);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
