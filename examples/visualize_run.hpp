// The part of visualize that is compiled for each type of model: see CMakeLists.txt.
#ifndef MINIMAMBA_EXAMPLES_VISUALIZE_RUN_HPP
#define MINIMAMBA_EXAMPLES_VISUALIZE_RUN_HPP

#include <minimamba/io/load.hpp>
#include <minimamba/nn/selection.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

#include "visualize_select.hpp"

namespace visualize {

template <class Model>
Selections select(const minimamba::Checkpoint& checkpoint, std::span<const std::int32_t> tokens,
                  const RunOptions& options) {
  using Backend = typename Model::BackendType;
  const auto model = minimamba::load<Model>(checkpoint, {.backend = Backend({.threads = options.threads}),
                                                         .progress = options.progress,
                                                         .on_note = options.on_note,
                                                         .saturate = options.saturate});
  Selections layers;
  minimamba::for_each_selection(model, tokens, [&](std::size_t, const minimamba::LayerSelection& selection) {
    if (options.progress && !options.progress(1)) throw minimamba::CancelledError("visualize", "it was interrupted");
    layers.push_back(summary(selection));
  });
  return layers;
}

}  // namespace visualize

#endif
