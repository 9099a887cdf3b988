// MambaConfig: the sizes of a model. Only d_model, n_layer and vocab_size must be given.
#ifndef MINIMAMBA_CORE_CONFIG_HPP
#define MINIMAMBA_CORE_CONFIG_HPP

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct MambaConfig {
  std::int64_t d_model = 0;                  // D, width of the residual stream
  std::int64_t n_layer = 0;                  // number of blocks
  std::int64_t vocab_size = 0;               // token ids run from 0 to vocab_size - 1
  std::int64_t d_state = 16;                 // N, states of a channel
  std::int64_t d_conv = 4;                   // K, width of the causal convolution
  std::int64_t expand = 2;                   // d_inner = expand * d_model, unless inner_size is given
  std::int64_t inner_size = 0;               // d_inner, if it is not a multiple of d_model; otherwise 0
  std::int64_t dt_rank = 0;                  // R; 0 means ceil(d_model / 16)
  std::int64_t pad_vocab_size_multiple = 8;  // the embedding's rows: vocab_size, rounded up to a multiple of this
  bool conv_bias = true;                     // conv1d has a bias
  bool bias = false;                         // in_proj and out_proj have a bias
  bool tie_embeddings = true;                // lm_head shares the embedding's matrix
  double norm_epsilon = 1e-5;                // of every RMSNorm

  double dt_min = 0.001, dt_max = 0.1;  // initialisation: the range of softplus(dt_proj.bias)
  double dt_scale = 1.0;                // initialisation: dt_proj.weight is U(+-dt_scale / sqrt(R))
  double dt_init_floor = 1e-4;          // initialisation: lower bound of softplus(dt_proj.bias)

  std::optional<std::int32_t> bos_token_id = {};
  std::optional<std::int32_t> eos_token_id = {};  // generation ends here
  std::optional<std::int32_t> pad_token_id = {};
  std::vector<std::int32_t> other_eos_token_ids = {};  // and here, for models with several end tokens

  std::int64_t d_inner() const { return inner_size != 0 ? inner_size : expand * d_model; }  // E
  /// Whether generation ends at this token.
  bool ends_text(std::int32_t token) const {
    return token == eos_token_id ||
           std::find(other_eos_token_ids.begin(), other_eos_token_ids.end(), token) != other_eos_token_ids.end();
  }
  std::int64_t padded_vocab_size() const {  // V
    return (vocab_size + pad_vocab_size_multiple - 1) / pad_vocab_size_multiple * pad_vocab_size_multiple;
  }

  /// A copy with every default filled in. An inner_size that is a multiple of d_model is replaced by `expand`. Throws
  /// ConfigError if a size is out of range.
  MambaConfig resolved() const;

  bool operator==(const MambaConfig&) const = default;
};

/// What a language model needs to know of its vocabulary.
template <class Config>
concept VocabularyConfig = requires(const Config& config, std::int32_t token) {
  { config.vocab_size } -> std::convertible_to<std::int64_t>;
  { config.padded_vocab_size() } -> std::convertible_to<std::int64_t>;
  { config.ends_text(token) } -> std::convertible_to<bool>;
};

/// The configuration of a model, of which a mixer may define its own type: the fields that all models use, of the names
/// and meanings that they have in MambaConfig; whatever the mixer needs; and resolved(), which throws ConfigError.
template <class Config>
concept ModelConfig = VocabularyConfig<Config> && std::equality_comparable<Config> && requires(const Config& config) {
  { config.d_model } -> std::convertible_to<std::int64_t>;
  { config.n_layer } -> std::convertible_to<std::int64_t>;
  { config.norm_epsilon } -> std::convertible_to<double>;
  { config.tie_embeddings } -> std::convertible_to<bool>;
  { config.resolved() } -> std::same_as<Config>;
};

namespace detail {

/// The largest sizes allowed: every product of two sizes, and every byte count of one tensor, is far below 2^63.
struct LargestSize {
  static constexpr std::int64_t d_model = 1 << 18, n_layer = 1 << 14, vocab_size = 1 << 28, d_state = 1 << 14,
                                d_conv = 1 << 10, expand = 1 << 8, dt_rank = 1 << 18;
};

inline void check_size(const char* name, std::int64_t value, std::int64_t largest) {
  if (value >= 1 && value <= largest) return;
  throw ConfigError(std::string("MambaConfig.") + name, "a size from 1 to " + std::to_string(largest),
                    std::to_string(value));
}

inline void check_positive(const char* name, double value) {
  if (value > 0 && std::isfinite(value)) return;
  throw ConfigError(std::string("MambaConfig.") + name, "a positive number", number_text(value));
}

inline void check_token(const char* name, std::optional<std::int32_t> token, std::int64_t padded_vocab_size) {
  if (!token || (*token >= 0 && *token < padded_vocab_size)) return;
  throw ConfigError(std::string("MambaConfig.") + name, "a token id below " + std::to_string(padded_vocab_size),
                    std::to_string(*token));
}

}  // namespace detail

inline MambaConfig MambaConfig::resolved() const {
  using Largest = detail::LargestSize;
  detail::check_size("d_model", d_model, Largest::d_model);
  detail::check_size("n_layer", n_layer, Largest::n_layer);
  detail::check_size("pad_vocab_size_multiple", pad_vocab_size_multiple, Largest::vocab_size);
  detail::check_size("vocab_size", vocab_size, Largest::vocab_size);
  detail::check_size("padded vocab_size", padded_vocab_size(), Largest::vocab_size);
  detail::check_size("d_state", d_state, Largest::d_state);
  detail::check_size("d_conv", d_conv, Largest::d_conv);
  detail::check_size("expand", expand, Largest::expand);
  if (inner_size != 0) detail::check_size("inner_size", inner_size, Largest::expand * Largest::d_model);
  detail::check_positive("norm_epsilon", norm_epsilon);
  detail::check_positive("dt_min", dt_min);
  detail::check_positive("dt_scale", dt_scale);
  detail::check_positive("dt_init_floor", dt_init_floor);
  if (!(dt_max >= dt_min) || !std::isfinite(dt_max)) {
    throw ConfigError("MambaConfig.dt_max", "at least dt_min = " + number_text(dt_min), number_text(dt_max));
  }
  MambaConfig config = *this;
  if (config.dt_rank == 0) config.dt_rank = (d_model + 15) / 16;
  detail::check_size("dt_rank", config.dt_rank, Largest::dt_rank);
  detail::check_token("bos_token_id", bos_token_id, padded_vocab_size());
  detail::check_token("eos_token_id", eos_token_id, padded_vocab_size());
  detail::check_token("pad_token_id", pad_token_id, padded_vocab_size());
  for (const std::int32_t id : other_eos_token_ids) detail::check_token("other_eos_token_ids", id, padded_vocab_size());
  if (inner_size % d_model == 0 && inner_size / d_model <= Largest::expand) {
    if (inner_size != 0) config.expand = inner_size / d_model;
    config.inner_size = 0;
  }
  return config;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
