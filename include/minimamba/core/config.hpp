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
  bool dt_b_c_rms = false;                   // dt, B and C are normalised, as in FalconMamba
  double mixer_rms_eps = 1e-6;               // of these norms

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

/// The vocabulary of a language model's configuration.
template <class Config>
concept VocabularyConfig = requires(const Config& config, std::int32_t token) {
  { config.vocab_size } -> std::convertible_to<std::int64_t>;
  { config.padded_vocab_size() } -> std::convertible_to<std::int64_t>;
  { config.ends_text(token) } -> std::convertible_to<bool>;
};

/// The configuration of a model. A mixer may define its own type: it has the fields below, which mean the same as in
/// MambaConfig, the mixer's own fields, and resolved(), which throws ConfigError.
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

/// Checks the fields of a configuration. Errors are ConfigErrors that name the field and the type of the configuration.
class ConfigChecks {
 public:
  explicit ConfigChecks(const char* type) : type_(type) {}

  void size(const char* name, std::int64_t value, std::int64_t largest) const {
    if (value >= 1 && value <= largest) return;
    fail(name, "a size from 1 to " + std::to_string(largest), std::to_string(value));
  }
  void positive(const char* name, double value) const {
    if (!(value > 0 && std::isfinite(value))) fail(name, "a positive number", number_text(value));
  }
  /// The fields that the configurations of all language models have.
  template <class Config>
  void common(const Config& config) const {
    using Largest = LargestSize;
    size("d_model", config.d_model, Largest::d_model);
    size("n_layer", config.n_layer, Largest::n_layer);
    size("pad_vocab_size_multiple", config.pad_vocab_size_multiple, Largest::vocab_size);
    size("vocab_size", config.vocab_size, Largest::vocab_size);
    size("padded vocab_size", config.padded_vocab_size(), Largest::vocab_size);
    size("d_state", config.d_state, Largest::d_state);
    size("d_conv", config.d_conv, Largest::d_conv);
    size("expand", config.expand, Largest::expand);
    if (config.inner_size != 0) size("inner_size", config.inner_size, Largest::expand * Largest::d_model);
    positive("norm_epsilon", config.norm_epsilon);
    positive("dt_min", config.dt_min);
    positive("dt_init_floor", config.dt_init_floor);
    if (!(config.dt_max >= config.dt_min) || !std::isfinite(config.dt_max)) {
      fail("dt_max", "at least dt_min = " + number_text(config.dt_min), number_text(config.dt_max));
    }
    const auto token = [&](const char* name, std::optional<std::int32_t> id) {
      if (!id || (*id >= 0 && *id < config.padded_vocab_size())) return;
      fail(name, "a token id below " + std::to_string(config.padded_vocab_size()), std::to_string(*id));
    };
    token("bos_token_id", config.bos_token_id);
    token("eos_token_id", config.eos_token_id);
    token("pad_token_id", config.pad_token_id);
    for (const std::int32_t id : config.other_eos_token_ids) token("other_eos_token_ids", id);
  }
  [[noreturn]] void fail(const char* name, const std::string& expected, const std::string& found) const {
    throw ConfigError(std::string(type_) + "." + name, expected, found);
  }

 private:
  const char* type_;
};

/// Replaces an inner_size that is a multiple of d_model by `expand`.
template <class Config>
void expand_inner_size(Config& config) {
  if (config.inner_size % config.d_model != 0 || config.inner_size / config.d_model > LargestSize::expand) return;
  if (config.inner_size != 0) config.expand = config.inner_size / config.d_model;
  config.inner_size = 0;
}

}  // namespace detail

inline MambaConfig MambaConfig::resolved() const {
  const detail::ConfigChecks check("MambaConfig");
  check.common(*this);
  check.positive("dt_scale", dt_scale);
  check.positive("mixer_rms_eps", mixer_rms_eps);
  MambaConfig config = *this;
  if (config.dt_rank == 0) config.dt_rank = (d_model + 15) / 16;
  check.size("dt_rank", config.dt_rank, detail::LargestSize::dt_rank);
  detail::expand_inner_size(config);
  return config;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
