// selective_scan: ns/state is the time of one update of h (token x channel x state). Seven operations are counted for
// it: dt A, exp, its product with h, dt u B, their sum, the product with C and its sum. An exp is one of them and costs
// ten, so the fraction of the multiply-adds stays far from 1.
#include "minimamba/minimamba.hpp"

#include "support/operands.hpp"

using namespace minimamba_bench;

namespace {

template <class Backend>
void selective_scan(benchmark::State& state, const Backend& backend, std::size_t tokens) {
  using Scalar = typename Backend::Scalar;
  const std::size_t E = d_inner, N = d_state;
  Operand<Backend> u(backend, tokens, E), delta(backend, tokens, E), delta_bias(backend, 1, E, -7, -2);
  Operand<Backend> a(backend, E, N, -16, -1), b(backend, tokens, N), c(backend, tokens, N), d(backend, 1, E);
  Operand<Backend> z(backend, tokens, E), h(backend, E, N), y(backend, tokens, E);
  const double states = real(tokens * E * N);
  const Work work{.tokens = real(tokens),
                  .operations = 7 * states,
                  .bytes = real((3 * E * N + tokens * (4 * E + 2 * N) + 2 * E) * sizeof(Scalar)),
                  .states = states};
  const int threads = backend.threads();
  const Limit limit = tokens == 1 ? read_limit(static_cast<std::size_t>(work.bytes), threads)
                                  : arithmetic_limit(Arithmetic::f32_fma, threads);
  const std::vector<minimamba::Segment> segments = minimamba::uniform_segments(1, tokens);
  measure(state, work, {limit}, [&] {
    backend.selective_scan({.segments = segments,
                            .u = u.view(),
                            .delta = delta.view(),
                            .delta_bias = delta_bias.view(),
                            .a = a.view(),
                            .b = b.view(),
                            .c = c.view(),
                            .d = d.view(),
                            .z = z.view(),
                            .h = {h.view(), E},
                            .y = y.view()});
  });
}

template <class Backend>
void add_selective_scan() {
  add_kernel<Backend>("selective_scan", "", selective_scan<Backend>);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options&) {
    add_selective_scan<minimamba::NativeBackend<float>>();
    add_selective_scan<minimamba::EigenBackend<float>>();
    add_selective_scan<minimamba::ReferenceBackend<float>>();
  });
}
