// Random operands in a backend's own memory, and the sizes that the kernels are measured at.
#ifndef MINIMAMBA_BENCH_OPERANDS_HPP
#define MINIMAMBA_BENCH_OPERANDS_HPP

#include <cstddef>
#include <string>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/core/random.hpp"

#include "measure.hpp"

namespace minimamba_bench {

/// Those of mamba-130m.
inline constexpr std::size_t d_model = 768, d_inner = 1536, d_state = 16, d_conv = 4, dt_rank = 48;

inline double real(std::size_t value) { return static_cast<double>(value); }

template <class Scalar>
std::vector<Scalar> random_numbers(std::size_t count, double low, double high) {
  minimamba::Random random(0);
  std::vector<Scalar> values(count);
  for (Scalar& value : values) value = static_cast<Scalar>(random.uniform(low, high));
  return values;
}

/// A [rows, cols] operand.
template <class Backend>
class Operand {
 public:
  using Scalar = typename Backend::Scalar;

  Operand(const Backend& backend, std::size_t rows, std::size_t cols, double low = -1, double high = 1)
      : buffer_(backend.template allocate<Scalar>(rows * cols)), rows_(rows), cols_(cols) {
    backend.upload(random_numbers<Scalar>(rows * cols, low, high), buffer_.data());
  }
  minimamba::View<Scalar> view() { return {buffer_.data(), rows_, cols_}; }

 private:
  typename Backend::template Buffer<Scalar> buffer_;
  std::size_t rows_, cols_;
};

/// A [rows, cols] matrix of weights in format W.
template <class W, class Backend>
auto random_matrix(const Backend& backend, std::size_t rows, std::size_t cols) {
  using Scalar = typename Backend::Scalar;
  auto matrix = backend.template make_matrix<W>(rows, cols);
  const std::vector<Scalar> row = random_numbers<Scalar>(cols, -1, 1);
  for (std::size_t i = 0; i < rows; ++i) {
    backend.upload_rows(minimamba::View<const Scalar>(row.data(), 1, cols), i, matrix);
  }
  return matrix;
}

template <class W>
double bytes_of_matrix(std::size_t rows, std::size_t cols) {
  return real(rows * minimamba::blocks_in<W>(cols) * sizeof(typename minimamba::Format<W>::Block));
}

/// Registers body(state, backend, tokens) for 1 and 512 tokens, and for one and all threads unless the backend has but
/// one, as name/<backend><suffix>/tokens:T/threads:N.
template <class Backend, class Body>
void add_kernel(const std::string& name, const std::string& suffix, Body body) {
  for (const std::size_t tokens : {std::size_t{1}, std::size_t{512}}) {
    for (const int threads : thread_counts()) {
      const Backend backend({.threads = threads});
      if (backend.threads() != threads) continue;
      add(name + "/" + backend.name() + suffix + numbered("tokens", tokens) +
              numbered("threads", static_cast<std::size_t>(threads)),
          [=](benchmark::State& state) { body(state, backend, tokens); });
    }
  }
}

}  // namespace minimamba_bench

#endif
