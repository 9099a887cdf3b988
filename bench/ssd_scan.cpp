// ssd_scan at the shape of mamba2-130m: ns/state is the time of one update of h (token x channel x state). Five
// operations are counted for it, in three instructions: its product with the decay, dt x B and their sum, and the
// product with C and its sum. So at most 5/6 of the multiply-adds can be reached.
#include <limits>

#include "minimamba/minimamba.hpp"

#include "support/operands.hpp"

using namespace minimamba_bench;

namespace {

template <class Backend>
void ssd_scan(benchmark::State& state, const Backend& backend, std::size_t tokens) {
  using Scalar = typename Backend::Scalar;
  const std::size_t E = d_inner, N = 128, H = E / 64;
  Operand<Backend> x(backend, tokens, E), delta(backend, tokens, H), delta_bias(backend, 1, H, -7, -2);
  Operand<Backend> a(backend, 1, H, -16, -1), b(backend, tokens, N), c(backend, tokens, N), d(backend, 1, H);
  Operand<Backend> h(backend, E, N), y(backend, tokens, E);
  const double states = real(tokens * E * N);
  const Work work{.tokens = real(tokens),
                  .operations = 5 * states,
                  .bytes = real((2 * E * N + tokens * (2 * E + 2 * N + H) + 3 * H) * sizeof(Scalar)),
                  .states = states};
  const int threads = backend.threads();
  const Limit limit = tokens == 1 ? read_limit(static_cast<std::size_t>(work.bytes), threads)
                                  : arithmetic_limit(Arithmetic::f32_fma, threads);
  const std::vector<minimamba::Segment> segments = minimamba::uniform_segments(1, tokens);
  measure(state, work, {limit}, [&] {
    backend.ssd_scan({.segments = segments,
                      .x = x.view(),
                      .delta = delta.view(),
                      .delta_bias = delta_bias.view(),
                      .dt_max = std::numeric_limits<double>::infinity(),
                      .a = a.view(),
                      .b = b.view(),
                      .c = c.view(),
                      .d = d.view(),
                      .h = {h.view(), E},
                      .y = y.view()});
  });
}

template <class Backend>
void add_ssd_scan() {
  add_kernel<Backend>("ssd_scan", "", ssd_scan<Backend>);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options&) {
    add_ssd_scan<minimamba::NativeBackend<float>>();
    add_ssd_scan<minimamba::EigenBackend<float>>();
    add_ssd_scan<minimamba::ReferenceBackend<float>>();
  });
}
