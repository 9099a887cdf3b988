// The random values a model starts its training from.
#ifndef MINIMAMBA_NN_INITIALIZE_HPP
#define MINIMAMBA_NN_INITIALIZE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "minimamba/core/config.hpp"
#include "minimamba/core/random.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The settings of a configuration that the distributions depend on; those that it lacks have the defaults of
/// MambaConfig.
struct InitialSettings {
  std::int64_t n_layer = 1, d_conv = MambaConfig().d_conv;
  double dt_scale = MambaConfig().dt_scale, dt_min = MambaConfig().dt_min, dt_max = MambaConfig().dt_max,
         dt_init_floor = MambaConfig().dt_init_floor;

  template <ModelConfig Config>
  explicit InitialSettings(const Config& config) : n_layer(config.n_layer) {
    if constexpr (requires { config.d_conv; }) d_conv = config.d_conv;
    if constexpr (requires { config.dt_scale; }) dt_scale = config.dt_scale;
    if constexpr (requires { config.dt_min + config.dt_max + config.dt_init_floor; }) {
      dt_min = config.dt_min;
      dt_max = config.dt_max;
      dt_init_floor = config.dt_init_floor;
    }
  }
};

/// Draws the element in column `col` of a parameter of `cols` columns.
inline double initial_value(Role role, const InitialSettings& settings, std::size_t cols, std::size_t col,
                            Random& random) {
  const auto uniform = [&](double bound) { return random.uniform(-bound, bound); };
  const auto inverse_root = [](auto number) { return 1 / std::sqrt(static_cast<double>(number)); };
  switch (role) {
    case Role::linear:
      return uniform(inverse_root(cols));  // kaiming uniform with a = sqrt(5)
    case Role::residual_linear:            // each block adds to the residual stream: keeps the sum from growing
      return uniform(inverse_root(cols) * inverse_root(settings.n_layer));
    case Role::embedding:
      return 0.02 * random.normal();
    case Role::convolution:
      return uniform(inverse_root(settings.d_conv));
    case Role::time_step:
      return uniform(settings.dt_scale * inverse_root(cols));
    case Role::time_step_bias: {
      const double dt = std::exp(random.uniform(std::log(settings.dt_min), std::log(settings.dt_max)));
      const double floored = std::max(dt, settings.dt_init_floor);
      return floored + std::log(-std::expm1(-floored));  // the inverse of softplus
    }
    case Role::bias:
      return 0;
    case Role::a_log:
      return std::log(static_cast<double>(col + 1));
    case Role::scale:
      return 1;
  }
  return 0;
}

}  // namespace detail

/// Fills every (allocated) parameter of a module:
///   embedding N(0, 0.02); linear U(+-1/sqrt(in)), biases 0; conv1d U(+-1/sqrt(K)), its bias too; out_proj divided by
///   sqrt(n_layer); dt_proj.weight U(+-dt_scale/sqrt(R)); dt_proj.bias the inverse softplus of a log-uniform value in
///   [dt_min, dt_max], at least dt_init_floor; A_log = log(1..N); D and norms 1.
/// Values are rounded to float, so that models of all scalars start from the same weights; each tensor has its own
/// random stream. Source: the paper, section 3.6 and appendix E, and the official code.
template <class Module, ModelConfig Config, class Backend>
void initialize_parameters(Module& module, const Config& config, const Backend& backend, std::uint64_t seed) {
  const detail::InitialSettings settings(config);
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        using Scalar = typename Backend::Scalar;
        Random random(seed, name);
        const std::size_t cols = parameter.cols();
        detail::in_pieces<Scalar>(parameter.rows(), cols, [&](std::size_t first, View<Scalar> piece) {
          for (std::size_t i = 0; i < piece.rows() * cols; ++i) {
            const double value = detail::initial_value(parameter.role(), settings, cols, i % cols, random);
            piece.data()[i] = static_cast<Scalar>(static_cast<float>(value));
          }
          parameter.upload(backend, first, piece);
        });
      },
      module);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
