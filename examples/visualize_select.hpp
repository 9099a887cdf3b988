// What visualize asks of a model.
#ifndef MINIMAMBA_EXAMPLES_VISUALIZE_SELECT_HPP
#define MINIMAMBA_EXAMPLES_VISUALIZE_SELECT_HPP

#include <minimamba/io/checkpoint.hpp>
#include <minimamba/nn/selection.hpp>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace visualize {

/// What each layer selects at each token, [layers][tokens].
using Selections = std::vector<std::vector<minimamba::TokenSelection>>;

struct RunOptions {
  int threads = 0;
  bool saturate = false;
  std::function<bool(double)> progress = {};  // of loading; false cancels
  std::function<void(const std::string&)> on_note = {};
};

/// Loads a model and reads the tokens. Throws what load and for_each_selection throw, and CancelledError.
template <class Model>
Selections select(const minimamba::Checkpoint& checkpoint, std::span<const std::int32_t> tokens,
                  const RunOptions& options);

}  // namespace visualize

#ifndef MINIMAMBA_COMPILED_SELECTION  // which CMakeLists.txt defines: they are compiled in files of their own
#include "visualize_run.hpp"
#endif
#endif
