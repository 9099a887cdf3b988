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

/// Draws element (row, col) of the parameter called `name`, which has `cols` columns.
inline double initial_value(std::string_view name, const MambaConfig& config, std::size_t cols, std::size_t col,
                            Random& random) {
  const auto uniform = [&](double bound) { return random.uniform(-bound, bound); };
  if (name.ends_with("A_log")) return std::log(static_cast<double>(col + 1));
  if (name.ends_with("D") || name.ends_with("norm.weight") || name.ends_with("norm_f.weight")) return 1;
  if (name.ends_with("embedding.weight")) return 0.02 * random.normal();
  if (name.ends_with("conv1d.weight") || name.ends_with("conv1d.bias")) {
    return uniform(1 / std::sqrt(static_cast<double>(config.d_conv)));
  }
  if (name.ends_with("dt_proj.weight")) return uniform(config.dt_scale / std::sqrt(static_cast<double>(cols)));
  if (name.ends_with("dt_proj.bias")) {
    const double dt = std::exp(random.uniform(std::log(config.dt_min), std::log(config.dt_max)));
    const double floored = std::max(dt, config.dt_init_floor);
    return floored + std::log(-std::expm1(-floored));  // the inverse of softplus
  }
  if (name.ends_with("bias")) return 0;
  const double bound = 1 / std::sqrt(static_cast<double>(cols));  // kaiming uniform with a = sqrt(5)
  const bool residual = name.ends_with("out_proj.weight");  // each block adds to the stream: keep the sum in scale
  return uniform(residual ? bound / std::sqrt(static_cast<double>(config.n_layer)) : bound);
}

}  // namespace detail

/// Fills every (allocated) parameter of a module:
///   embedding N(0, 0.02); linear U(+-1/sqrt(in)), biases 0; conv1d U(+-1/sqrt(K)), its bias alike; out_proj divided by
///   sqrt(n_layer); dt_proj.weight U(+-dt_scale/sqrt(R)); dt_proj.bias the inverse softplus of a log-uniform number in
///   [dt_min, dt_max], at least dt_init_floor; A_log = log(1..N); D and norms 1.
/// Values are rounded to float, so that models of all scalars start alike; each tensor has its own random stream.
/// Source: the paper, section 3.6 and appendix E, and the official code.
template <class Module, class Backend>
void initialize_parameters(Module& module, const MambaConfig& config, const Backend& backend, std::uint64_t seed) {
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        using Scalar = typename Backend::Scalar;
        Random random(seed, name);
        const std::size_t cols = parameter.cols();
        detail::in_pieces<Scalar>(parameter.rows(), cols, [&](std::size_t first, View<Scalar> piece) {
          for (std::size_t i = 0; i < piece.rows() * cols; ++i) {
            const double value = detail::initial_value(name, config, cols, i % cols, random);
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
