// The source of the native kernels for all instruction sets: each region includes it after its own vector type. An
// output is computed by the same operations in the same order however many rows, tokens or threads there are, so that
// splitting a sequence changes no bit. Products that are added are written as fmadd, so that compilers have no choice
// whether to fuse them.

#include "minimamba/backend/native/matmul.inl"
#include "minimamba/backend/native/scan.inl"

/// Calls body(first, count) for each register of [0, size): count is `lanes`, or fewer for the last.
template <class Body>
inline void each_register(std::size_t size, Body body) {
  std::size_t j = 0;
  for (; j + lanes <= size; j += lanes) body(j, lanes);
  if (j < size) body(j, size - j);
}

#include "minimamba/backend/native/ssd.inl"

/// Not std::isfinite, because library functions are not inlined into the functions of a region.
inline bool is_finite(Scalar x) { return x - x == 0; }

/// x times elements [first, first + count) of a weight, which may be null: 1.
inline Vector weighted(Vector x, const Scalar* weight, std::size_t first, std::size_t count) {
  return weight == nullptr ? x : x * load_channels(weight + first, count);
}

inline bool rms_norm(const native::NormTask<Scalar>& task) {
  Vector squares[4] = {splat(0), splat(0), splat(0), splat(0)};
  std::size_t j = 0;
  for (; j + 4 * lanes <= task.cols; j += 4 * lanes) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < 4; ++r) {
      const Vector x = load(task.x + j + r * lanes);
      squares[r] = fmadd(x, x, squares[r]);
    }
  }
  each_register(task.cols - j, [&](std::size_t first, std::size_t count) {
    const Vector x = load_channels(task.x + j + first, count);
    squares[0] = fmadd(x, x, squares[0]);
  });
  const Scalar total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  if (!is_finite(total)) return false;
  const Vector factor = splat(1 / std::sqrt(total / static_cast<Scalar>(task.cols) + task.epsilon));
  each_register(task.cols, [&](std::size_t first, std::size_t count) {
    const Vector y = load_channels(task.x + first, count) * factor;
    store_channels(task.y + first, weighted(y, task.weight, first, count), count);
  });
  return true;
}

inline void add(const Scalar* x, Scalar* y, std::size_t size) {
  each_register(size, [&](std::size_t first, std::size_t count) {
    store_channels(y + first, load_channels(y + first, count) + load_channels(x + first, count), count);
  });
}

template <class Function>
inline void map(const Scalar* x, Scalar* y, std::size_t size, Function function) {
  each_register(size, [&](std::size_t first, std::size_t count) {
    store_channels(y + first, function(load_channels(x + first, count)), count);
  });
}
inline void map_exp(const Scalar* x, Scalar* y, std::size_t size) {
  map(x, y, size, [](Vector v) { return exp(v); });
}
inline void map_softplus(const Scalar* x, Scalar* y, std::size_t size) {
  map(x, y, size, [](Vector v) { return softplus(v); });
}
inline void map_silu(const Scalar* x, Scalar* y, std::size_t size) {
  map(x, y, size, [](Vector v) { return silu(v); });
}

inline constexpr native::Kernels<Scalar> kernels{&matmul, &causal_conv1d, &selective_scan, &rms_norm, &add};
inline constexpr native::SsdKernels<Scalar> ssd_kernels{&ssd_scan, &gate};
inline constexpr native::Functions<Scalar> functions{&map_exp, &map_softplus, &map_silu};
