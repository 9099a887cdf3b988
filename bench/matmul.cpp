// matmul: one row streams the weights through once and is held against reading as many bytes; 512 rows are arithmetic,
// and held against fused multiply-adds and Eigen's own product.
#include "minimamba/minimamba.hpp"

#include "support/operands.hpp"

using namespace minimamba_bench;

namespace {

struct Shape {
  const char* name;
  std::size_t in, out;
  bool heavy = false;
};
const Shape shapes[] = {{"in_proj", d_model, 2 * d_inner},
                        {"x_proj", d_inner, dt_rank + 2 * d_state},
                        {"dt_proj", dt_rank, d_inner},
                        {"out_proj", d_inner, d_model},
                        {"lm_head", d_model, 50280, true}};

template <class W, class Backend>
void matmul(benchmark::State& state, const Backend& backend, std::size_t tokens, const Shape& shape) {
  using Scalar = typename Backend::Scalar;
  Operand<Backend> x(backend, tokens, shape.in), y(backend, tokens, shape.out);
  const auto weight = random_matrix<W>(backend, shape.out, shape.in);
  const Work work{
      .tokens = real(tokens),
      .operations = 2 * real(tokens * shape.in * shape.out),
      .bytes = bytes_of_matrix<W>(shape.out, shape.in) + real(tokens * (shape.in + shape.out) * sizeof(Scalar))};
  std::vector<Limit> limits;
  if (tokens == 1) {
    limits.push_back(read_limit(static_cast<std::size_t>(work.bytes), backend.threads()));
  } else {
    limits = product_limits<W>(backend.threads());
    limits.push_back(sgemm_limit(tokens, shape.in, shape.out, backend.threads()));
  }
  measure(state, work, std::move(limits), [&] { backend.matmul(x.view(), weight, y.view()); });
}

template <class Backend, class W>
void add_matmul(const Options& options) {
  for (const Shape& shape : shapes) {
    if (shape.heavy && !options.full) continue;
    add_kernel<Backend>("matmul", std::string("/").append(minimamba::Format<W>::name) + "/" + shape.name,
                        [&shape](benchmark::State& state, const Backend& backend, std::size_t tokens) {
                          matmul<W>(state, backend, tokens, shape);
                        });
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options& options) {
    add_matmul<minimamba::NativeBackend<float>, float>(options);
    add_matmul<minimamba::NativeBackend<float>, minimamba::bf16>(options);
    add_matmul<minimamba::NativeBackend<float>, minimamba::f16>(options);
    add_matmul<minimamba::NativeBackend<float>, minimamba::q8>(options);
    add_matmul<minimamba::NativeBackend<float>, minimamba::q4>(options);
    add_matmul<minimamba::EigenBackend<float>, float>(options);
    add_matmul<minimamba::EigenBackend<float>, minimamba::bf16>(options);
    if (options.full) add_matmul<minimamba::ReferenceBackend<float>, float>(options);
  });
}
