// Merges an adapter into a checkpoint while it is written: tensor by tensor, so that the model is never in memory.
#ifndef MINIMAMBA_IO_MERGE_ADAPTER_HPP
#define MINIMAMBA_IO_MERGE_ADAPTER_HPP

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "minimamba/io/adapter_files.hpp"
#include "minimamba/io/checkpoint_parameters.hpp"
#include "minimamba/io/gguf_writer.hpp"
#include "minimamba/io/save.hpp"
#include "minimamba/nn/adapters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The parameters of a checkpoint, with an adapter merged.
template <class Parameters>
class MergedParameters : public Parameters {
 public:
  /// Throws CheckpointError for an adapter that does not fit the checkpoint.
  MergedParameters(const Checkpoint& checkpoint, const AdapterFiles& adapter) : Parameters(checkpoint) {
    const auto pairs = pairs_for(adapter, this->shapes(), checkpoint.config.tie_embeddings);
    for (const auto& [name, pair] : pairs) {
      const bool looked_up = name == "embedding";
      std::vector<double> a = stored_values<double>(adapter, *pair.a);
      if (looked_up) a = transposed(a, static_cast<std::size_t>(pair.settings.rank));
      deltas_.emplace(name + ".weight",
                      Delta(pair.settings, looked_up, std::move(a), stored_values<double>(adapter, *pair.b)));
    }
  }

  template <class Body>
  void for_each(Body&& body) const {
    Parameters::for_each([&](const SavedParameter& parameter, auto&& pieces) {
      const auto delta = deltas_.find(parameter.name);
      if (delta == deltas_.end()) return body(parameter, pieces);
      body(SavedParameter{parameter.name, parameter.extents, parameter.is_matrix, DType::F64}, [&](auto&& piece_body) {
        pieces([&](std::size_t first, auto piece) {
          delta->second.add_to(first, piece);
          piece_body(first, piece);
        });
      });
    });
  }

 private:
  std::map<std::string, Delta, std::less<>> deltas_;
};

}  // namespace detail

/// Saves a checkpoint of any format with an adapter merged into it, as save does for the checkpoint alone. Matrices are
/// in F32 unless the options name a type. Throws what save throws, and CheckpointError or ConfigError for an adapter
/// that does not fit.
inline void save_merged(const Checkpoint& checkpoint, const AdapterFiles& adapter, const std::filesystem::path& folder,
                        SaveOptions options = {}) {
  if (!options.matrices) options.matrices = DType::F32;
  checkpoint.config.visit_files([&]<class Files>(Files) {
    using Parameters = detail::MergedParameters<CheckpointParameters<Files>>;
    detail::save_folder(Parameters(checkpoint, adapter), folder, options);
  });
}
/// The same as a GGUF file.
inline void save_merged_gguf(const Checkpoint& checkpoint, const AdapterFiles& adapter,
                             const std::filesystem::path& path, SaveOptions options = {},
                             const GgufMetadata& metadata = {}) {
  if (!options.matrices) options.matrices = DType::F32;
  checkpoint.config.visit_files([&]<class Files>(Files) {
    using Parameters = detail::GgufParameters<detail::MergedParameters<CheckpointParameters<Files>>>;
    detail::save_gguf_file(Parameters(checkpoint, adapter), path, options, metadata);
  });
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
