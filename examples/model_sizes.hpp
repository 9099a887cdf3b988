// What the flags of the programs that train say of a new model.
#ifndef MINIMAMBA_EXAMPLES_MODEL_SIZES_HPP
#define MINIMAMBA_EXAMPLES_MODEL_SIZES_HPP

#include <cstdint>
#include <optional>
#include <string>

namespace program {

struct ModelSizes {
  std::string mixer = "s6";
  std::int64_t d_model = 0, n_layer = 0, vocab_size = 0, d_conv = 4, expand = 2;
  std::optional<std::int64_t> d_state = {}, head_dim = {}, n_groups = {};  // default: those of the mixer
  bool dt_b_c_rms = false, untied = false;
};

}  // namespace program

#endif
