// The mixers whose models can be in files. A new mixer adds a header that describes its files, such as
// io/ssd_files.hpp, and its line here.
#ifndef MINIMAMBA_IO_KNOWN_MIXERS_HPP
#define MINIMAMBA_IO_KNOWN_MIXERS_HPP

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <variant>
#include <vector>

#include "minimamba/io/s6_files.hpp"
#include "minimamba/io/ssd_files.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class... Files>
struct MixerList {
  using Configs = std::variant<typename Files::Config...>;

  /// Calls body(Files()) for the first mixer of which is_it(Files()) is true; returns whether there is one.
  template <class Condition, class Body>
  static bool find(Condition&& is_it, Body&& body) {
    return ((is_it(Files()) && (body(Files()), true)) || ...);
  }
};

/// In order of priority: the first mixer that recognises a file is used, and S6Files accepts every file.
using KnownMixers = MixerList<SsdFiles,  //
                              S6Files>;

template <class Config, class List>
inline constexpr bool is_known = false;
template <class Config, class... Files>
inline constexpr bool is_known<Config, MixerList<Files...>> = (std::is_same_v<Config, typename Files::Config> || ...);

template <class Config, class List>
struct FilesOfConfig;
template <class Config, class First, class... Rest>
struct FilesOfConfig<Config, MixerList<First, Rest...>>
    : std::conditional_t<std::is_same_v<Config, typename First::Config>, std::type_identity<First>,
                         FilesOfConfig<Config, MixerList<Rest...>>> {};
template <class Config>
struct FilesOfConfig<Config, MixerList<>> {};

/// The description of the files of models with this configuration, such as S6Files.
template <class Config>
using FilesOf = typename FilesOfConfig<Config, KnownMixers>::type;

}  // namespace detail

/// The configuration of a model in a file, of any mixer. The fields that all mixers have mean the same as in
/// MambaConfig; as<Config>() adds those of the model's own mixer.
class AnyConfig {
 public:
  std::int64_t d_model = 0, n_layer = 0, vocab_size = 0, pad_vocab_size_multiple = 1;
  bool conv_bias = true, bias = false, tie_embeddings = true;
  double norm_epsilon = 1e-5;
  std::optional<std::int32_t> bos_token_id, eos_token_id, pad_token_id;
  std::vector<std::int32_t> other_eos_token_ids;

  AnyConfig() = default;
  template <class Config>
  requires detail::is_known<Config, detail::KnownMixers>
  explicit AnyConfig(const Config& config) : own_(config) { copy_common(config, *this); }

  /// Whether the model has this type of configuration.
  template <class Config>
  bool is() const {
    if constexpr (detail::is_known<Config, detail::KnownMixers>) return std::holds_alternative<Config>(own_);
    return false;
  }
  /// The configuration in its own type, which is<Config>() has confirmed.
  template <class Config>
  Config as() const {
    Config config = std::get<Config>(own_);
    copy_common(*this, config);
    return config;
  }
  /// Calls body(files, config): the description of the mixer's files, such as S6Files(), and the configuration in its
  /// own type.
  template <class Body>
  decltype(auto) visit(Body&& body) const {
    return std::visit(
        [&]<class Config>(const Config&) -> decltype(auto) { return body(detail::FilesOf<Config>(), as<Config>()); },
        own_);
  }

  /// Calls body(files).
  template <class Body>
  decltype(auto) visit_files(Body&& body) const {
    return std::visit([&]<class Config>(const Config&) -> decltype(auto) { return body(detail::FilesOf<Config>()); },
                      own_);
  }

  /// Whether generation ends at this token.
  bool ends_text(std::int32_t token) const {
    return token == eos_token_id ||
           std::find(other_eos_token_ids.begin(), other_eos_token_ids.end(), token) != other_eos_token_ids.end();
  }
  std::int64_t padded_vocab_size() const {
    return (vocab_size + pad_vocab_size_multiple - 1) / pad_vocab_size_multiple * pad_vocab_size_multiple;
  }

 private:
  template <class From, class To>
  static void copy_common(const From& from, To& to) {
    to.d_model = from.d_model;
    to.n_layer = from.n_layer;
    to.vocab_size = from.vocab_size;
    to.pad_vocab_size_multiple = from.pad_vocab_size_multiple;
    to.conv_bias = from.conv_bias;
    to.bias = from.bias;
    to.tie_embeddings = from.tie_embeddings;
    to.norm_epsilon = from.norm_epsilon;
    to.bos_token_id = from.bos_token_id;
    to.eos_token_id = from.eos_token_id;
    to.pad_token_id = from.pad_token_id;
    to.other_eos_token_ids = from.other_eos_token_ids;
  }

  detail::KnownMixers::Configs own_ = MambaConfig();
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
