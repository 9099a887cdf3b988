// The flags that describe a new model, for the programs that train.
#ifndef MINIMAMBA_EXAMPLES_MODEL_FLAGS_HPP
#define MINIMAMBA_EXAMPLES_MODEL_FLAGS_HPP

#include <CLI/CLI.hpp>

#include <vector>

#include "new_model.hpp"

namespace program {

/// Adds the flags, and returns them.
inline std::vector<CLI::Option*> add_model_options(CLI::App& app, ModelSizes& sizes) {
  std::vector<CLI::Option*> options;
  const auto add = [&](const char* name, auto& value, const char* what) {
    options.push_back(app.add_option(name, value, what));
    return options.back();
  };
  const auto size = CLI::Range(1, 1 << 24);
  add("--mixer", sizes.mixer, "Mixer of the blocks: s6 (Mamba) or ssd (Mamba-2)")
      ->check(CLI::IsMember({"s6", "ssd"}))
      ->capture_default_str();
  add("--d-model", sizes.d_model, "Model width")->check(size)->capture_default_str();
  add("--n-layer", sizes.n_layer, "Number of blocks")->check(size)->capture_default_str();
  add("--d-state", sizes.d_state, "States per channel (default: 16, of ssd 128)")->check(size);
  add("--d-conv", sizes.d_conv, "Width of the convolution")->check(size)->capture_default_str();
  add("--expand", sizes.expand, "Inner width as a multiple of the model width")->check(size)->capture_default_str();
  add("--head-dim", sizes.head_dim, "Channels of a head, of ssd (default: 64)")->check(size);
  add("--n-groups", sizes.n_groups, "Groups of heads that share B and C, of ssd (default: 1)")->check(size);
  options.push_back(
      app.add_flag("--dt-b-c-rms", sizes.dt_b_c_rms, "Normalise dt, B and C, as FalconMamba does, of s6"));
  options.push_back(app.add_flag("--untied", sizes.untied, "Use separate matrices for the embedding and the head"));
  return options;
}

}  // namespace program

#endif
