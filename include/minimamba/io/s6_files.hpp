// The files of models with S6: see io/known_mixers.hpp. Their settings are in config_json.hpp and gguf_config.hpp.
#ifndef MINIMAMBA_IO_S6_FILES_HPP
#define MINIMAMBA_IO_S6_FILES_HPP

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/io/config_json.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/s6.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr ParameterEntry s6_parameters[] = {
    {.name = "mixer.in_proj.weight", .gguf = "ssm_in.weight", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.in_proj.bias",
     .gguf = "ssm_in.bias",
     .presence = setting::bias,
     .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.conv1d.weight",
     .gguf = "ssm_conv1d.weight",
     .shape = setting::d_model | setting::d_inner | setting::d_conv},
    {.name = "mixer.conv1d.bias",
     .gguf = "ssm_conv1d.bias",
     .presence = setting::conv_bias,
     .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.x_proj.weight",
     .gguf = "ssm_x.weight",
     .shape = setting::d_model | setting::d_inner | setting::d_state | setting::dt_rank},
    {.name = "mixer.dt_proj.weight",
     .gguf = "ssm_dt.weight",
     .shape = setting::d_model | setting::d_inner | setting::dt_rank},
    {.name = "mixer.dt_proj.bias", .gguf = "ssm_dt.bias", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.A_log",
     .gguf = "ssm_a",
     .shape = setting::d_model | setting::d_inner | setting::d_state,
     .in_gguf = StoredAs::minus_exp},
    {.name = "mixer.D", .gguf = "ssm_d", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.out_proj.weight", .gguf = "ssm_out.weight", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.out_proj.bias",
     .gguf = "ssm_out.bias",
     .presence = setting::bias,
     .shape = setting::d_model | setting::d_inner},
};

struct S6Files {
  using Config = MambaConfig;
  template <class Scalar, template <class> class Backend, class Weight = Scalar>
  using Model = Mamba<Scalar, Backend, Weight, S6>;

  static constexpr const char *kind = "Mamba", *mixer = "S6", *header = "minimamba/nn/s6.hpp";
  static constexpr const char* architecture = "mamba";  // in GGUF
  static constexpr const ConfigKeys* keys_of_gguf = &gguf_keys;
  static MixerTable parameters() { return s6_parameters; }

  /// Every file that no other mixer recognises, so that the error messages are about a Mamba.
  static bool describes(const ConfigReader&) { return true; }
  template <class Count>
  static ConfigFile<Config> read(ConfigReader& reader, const std::string& file, Count&& count_tokens) {
    return read_mamba_config(reader, file, count_tokens);
  }
  static Config read_gguf(const GgufMetadata& metadata, const TensorSet& tensors, const std::string& file,
                          std::vector<std::string>& notes) {
    return gguf_config(metadata, tensors, file, notes);
  }
  /// Calls add(setting, key, value) for each setting of the mixer that decides a shape.
  template <class Add>
  static void shape_settings(const Config& config, const ConfigKeys& keys, bool gguf, Add&& add) {
    const bool own_size = config.inner_size != 0;
    add(setting::d_inner, own_size && !gguf ? "d_inner" : keys.expand,
        gguf || own_size ? config.d_inner() : config.expand);
    add(setting::d_state, keys.d_state, config.d_state);
    add(setting::d_conv, keys.d_conv, config.d_conv);
    add(setting::dt_rank, keys.dt_rank, config.dt_rank);
  }
  /// The shape that GGUF has for a parameter of this shape.
  static Shape gguf_shape(const Config&, std::string_view, Shape shape) { return without_middle_one(std::move(shape)); }
  template <class Add>
  static void add_gguf_settings(const Config& config, GgufMetadata& metadata, Add&& add) {
    add(gguf_keys.dt_rank, config.dt_rank);
    metadata[gguf_dt_b_c_rms] = config.dt_b_c_rms;
    if (has_other_mixer_rms_eps(config)) metadata[gguf_mixer_rms_eps] = config.mixer_rms_eps;
  }
  /// Calls note(text) for each setting in the file that llama.cpp ignores.
  template <class Note>
  static void note_own_keys(const Config& config, Note&& note) {
    if (!has_other_mixer_rms_eps(config)) return;
    note("mixer_rms_eps " + number_text(config.mixer_rms_eps) +
         " is in a key of our own; llama.cpp uses the epsilon of the other norms, " + number_text(config.norm_epsilon));
  }

 private:
  /// Whether the norms of dt, B and C have another epsilon than the others.
  static bool has_other_mixer_rms_eps(const Config& config) {
    return config.dt_b_c_rms && config.mixer_rms_eps != config.norm_epsilon;
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
