// causal_conv1d: bytes are x, y, the weights, and the window read and written, against reading as many.
#include "minimamba/minimamba.hpp"

#include "support/operands.hpp"

using namespace minimamba_bench;

namespace {

template <class Backend>
void causal_conv1d(benchmark::State& state, const Backend& backend, std::size_t tokens) {
  using Scalar = typename Backend::Scalar;
  const std::size_t E = d_inner, K = d_conv;
  Operand<Backend> x(backend, tokens, E), weight(backend, E, K), bias(backend, 1, E);
  Operand<Backend> window(backend, E, K - 1), y(backend, tokens, E);
  const Work work{.tokens = real(tokens),
                  .operations = 2 * real(tokens * E * K),
                  .bytes = real((2 * tokens * E + E * (K + 1) + 2 * E * (K - 1)) * sizeof(Scalar))};
  const std::vector<minimamba::Segment> segments = minimamba::uniform_segments(1, tokens);
  measure(state, work, {read_limit(static_cast<std::size_t>(work.bytes), backend.threads())}, [&] {
    backend.causal_conv1d({.segments = segments,
                           .x = x.view(),
                           .weight = weight.view(),
                           .bias = bias.view(),
                           .window = {window.view(), E},
                           .y = y.view()});
  });
}

template <class Backend>
void add_causal_conv1d() {
  add_kernel<Backend>("causal_conv1d", "", causal_conv1d<Backend>);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options&) {
    add_causal_conv1d<minimamba::NativeBackend<float>>();
    add_causal_conv1d<minimamba::EigenBackend<float>>();
    add_causal_conv1d<minimamba::ReferenceBackend<float>>();
  });
}
