// Mamba2Config: the sizes of a Mamba-2 model. Only d_model, n_layer and vocab_size must be given.
#ifndef MINIMAMBA_CORE_MAMBA2_CONFIG_HPP
#define MINIMAMBA_CORE_MAMBA2_CONFIG_HPP

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "minimamba/core/config.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct Mamba2Config {
  std::int64_t d_model = 0;                   // D, width of the residual stream
  std::int64_t n_layer = 0;                   // number of blocks
  std::int64_t vocab_size = 0;                // token ids run from 0 to vocab_size - 1
  std::int64_t d_state = 128;                 // N, states of a channel
  std::int64_t d_conv = 4;                    // K, width of the causal convolution
  std::int64_t expand = 2;                    // d_inner = expand * d_model, unless inner_size is given
  std::int64_t inner_size = 0;                // d_inner, if it is not a multiple of d_model; otherwise 0
  std::int64_t head_dim = 64;                 // P, channels of a head
  std::int64_t n_groups = 1;                  // G, groups of heads that share B and C
  std::int64_t pad_vocab_size_multiple = 16;  // the embedding's rows: vocab_size, rounded up to a multiple of this
  bool conv_bias = true;                      // conv1d has a bias
  bool bias = false;                          // in_proj and out_proj have a bias
  bool tie_embeddings = true;                 // lm_head shares the embedding's matrix
  double norm_epsilon = 1e-5;                 // of every RMSNorm

  std::array<double, 2> dt_limit{0, std::numeric_limits<double>::infinity()};  // the range to which dt is clamped

  double dt_min = 0.001, dt_max = 0.1;  // initialisation: the range of softplus(dt_bias)
  double dt_init_floor = 1e-4;          // initialisation: lower bound of softplus(dt_bias)

  std::optional<std::int32_t> bos_token_id = {};
  std::optional<std::int32_t> eos_token_id = {};  // generation ends here
  std::optional<std::int32_t> pad_token_id = {};
  std::vector<std::int32_t> other_eos_token_ids = {};  // and here, for models with several end tokens

  std::int64_t d_inner() const { return inner_size != 0 ? inner_size : expand * d_model; }  // E
  std::int64_t n_heads() const { return d_inner() / head_dim; }                             // H
  std::int64_t conv_channels() const { return d_inner() + 2 * n_groups * d_state; }         // x, B and C
  /// Whether generation ends at this token.
  bool ends_text(std::int32_t token) const {
    return token == eos_token_id ||
           std::find(other_eos_token_ids.begin(), other_eos_token_ids.end(), token) != other_eos_token_ids.end();
  }
  std::int64_t padded_vocab_size() const {  // V
    return (vocab_size + pad_vocab_size_multiple - 1) / pad_vocab_size_multiple * pad_vocab_size_multiple;
  }

  /// A copy in which an inner_size that is a multiple of d_model is replaced by `expand`. Throws ConfigError if a size
  /// is out of range, or if heads or groups do not divide evenly.
  Mamba2Config resolved() const;

  bool operator==(const Mamba2Config&) const = default;
};

inline Mamba2Config Mamba2Config::resolved() const {
  const detail::ConfigChecks check("Mamba2Config");
  check.common(*this);
  check.size("head_dim", head_dim, d_inner());
  if (d_inner() % head_dim != 0) {
    check.fail("head_dim", "a divisor of d_inner = " + std::to_string(d_inner()), std::to_string(head_dim));
  }
  check.size("n_groups", n_groups, n_heads());
  if (n_heads() % n_groups != 0) {
    check.fail("n_groups", "a divisor of the " + std::to_string(n_heads()) + " heads", std::to_string(n_groups));
  }
  const bool starts_well = dt_limit[0] >= 0 && dt_limit[0] <= static_cast<double>(std::numeric_limits<float>::max());
  if (!(starts_well && dt_limit[1] >= dt_limit[0] && dt_limit[1] > 0)) {
    check.fail("dt_limit", "two numbers, the first from 0 to 3.4e38 and the second above 0 and not below the first",
               number_text(dt_limit[0]) + " and " + number_text(dt_limit[1]));
  }
  Mamba2Config config = *this;
  detail::expand_inner_size(config);
  return config;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
