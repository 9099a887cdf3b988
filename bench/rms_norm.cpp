// rms_norm: bytes are x, y and the weight, against reading as many.
#include "minimamba/minimamba.hpp"

#include "support/operands.hpp"

using namespace minimamba_bench;

namespace {

template <class Backend>
void rms_norm(benchmark::State& state, const Backend& backend, std::size_t tokens) {
  Operand<Backend> x(backend, tokens, d_model), weight(backend, 1, d_model), y(backend, tokens, d_model);
  const Work work{.tokens = real(tokens),
                  .operations = 4 * real(tokens * d_model),
                  .bytes = real((2 * tokens + 1) * d_model * sizeof(typename Backend::Scalar))};
  measure(state, work, {read_limit(static_cast<std::size_t>(work.bytes), backend.threads())},
          [&] { backend.rms_norm(x.view(), weight.view(), 1e-5, y.view()); });
}

template <class Backend>
void add_rms_norm() {
  add_kernel<Backend>("rms_norm", "", rms_norm<Backend>);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options&) {
    add_rms_norm<minimamba::NativeBackend<float>>();
    add_rms_norm<minimamba::EigenBackend<float>>();
    add_rms_norm<minimamba::ReferenceBackend<float>>();
  });
}
