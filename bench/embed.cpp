// embed, and add, which is as short: bytes are what is read and written, against reading as many.
#include <cstdint>

#include "minimamba/minimamba.hpp"

#include "support/operands.hpp"

using namespace minimamba_bench;

namespace {

constexpr std::size_t vocabulary = 10000;

template <class W, class Backend>
void embed(benchmark::State& state, const Backend& backend, std::size_t tokens) {
  const auto weight = random_matrix<W>(backend, vocabulary, d_model);
  Operand<Backend> y(backend, tokens, d_model);
  minimamba::Random random(0);
  std::vector<std::int32_t> ids(tokens);
  for (auto& id : ids) id = static_cast<std::int32_t>(random.bits() % vocabulary);
  const Work work{
      .tokens = real(tokens),
      .bytes = bytes_of_matrix<W>(tokens, d_model) + real(tokens * d_model * sizeof(typename Backend::Scalar))};
  measure(state, work, {read_limit(static_cast<std::size_t>(work.bytes), backend.threads())}, [&] {
    backend.embed({ids.data(), 1, ids.size()}, weight, y.view());
  });
}

template <class Backend>
void add_rows(benchmark::State& state, const Backend& backend, std::size_t tokens) {
  Operand<Backend> x(backend, tokens, d_model, -1e-6, 1e-6), y(backend, tokens, d_model);
  const Work work{.tokens = real(tokens),
                  .operations = real(tokens * d_model),
                  .bytes = real(3 * tokens * d_model * sizeof(typename Backend::Scalar))};
  measure(state, work, {read_limit(static_cast<std::size_t>(work.bytes), backend.threads())},
          [&] { backend.add(x.view(), y.view()); });
}

template <class Backend, class W>
void add_embed() {
  add_kernel<Backend>("embed", std::string("/").append(minimamba::Format<W>::name), embed<W, Backend>);
}
template <class Backend>
void add_add() {
  add_kernel<Backend>("add", "", add_rows<Backend>);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options&) {
    add_embed<minimamba::NativeBackend<float>, float>();
    add_embed<minimamba::EigenBackend<float>, float>();
    add_embed<minimamba::EigenBackend<float>, minimamba::bf16>();
    add_embed<minimamba::ReferenceBackend<float>, float>();
    add_add<minimamba::NativeBackend<float>>();
    add_add<minimamba::EigenBackend<float>>();
    add_add<minimamba::ReferenceBackend<float>>();
  });
}
