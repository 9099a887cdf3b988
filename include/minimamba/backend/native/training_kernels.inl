// The source of the native kernels of training for all instruction sets: see kernels.inl.

#include "minimamba/backend/native/training_products.inl"
#include "minimamba/backend/native/training_scan.inl"
#include "minimamba/backend/native/ssd_training.inl"

inline Scalar rms_norm_backward(const native::NormBackwardTask<Scalar>& task) {
  const Scalar* const weight = task.weight;  // a copy, or compilers would read it again after each store
  Vector squares = splat(0), dots = splat(0);
  each_register(task.cols, [&](std::size_t j, std::size_t count) {
    const Vector x = load_channels(task.x + j, count);
    squares = fmadd(x, x, squares);
    dots = fmadd(weighted(load_channels(task.d_y + j, count), weight, j, count), x, dots);
  });
  const Scalar square = sum(squares), dot = sum(dots);
  if (!is_finite(square) || !is_finite(dot)) return 0;
  const Scalar cols = static_cast<Scalar>(task.cols), mean = square / cols + task.epsilon;
  const Scalar scale = 1 / std::sqrt(mean);
  const Vector factor = splat(scale), along = splat(dot / cols / mean);
  each_register(task.cols, [&](std::size_t j, std::size_t count) {
    const Vector d = weighted(load_channels(task.d_y + j, count), weight, j, count);
    store_channels(task.d_x + j, fnmadd(load_channels(task.x + j, count), along, d) * factor, count);
  });
  return scale;
}

inline void norm_weight_gradient(const native::NormWeightTask<Scalar>& task) {
  each_register(task.last - task.first, [&](std::size_t from, std::size_t count) {
    const std::size_t j = task.first + from;
    Vector total = splat(0);
    for (std::size_t i = 0; i < task.rows; ++i) {
      if (task.scales[i] == 0) continue;
      const Vector x = load_channels(task.x + i * task.x_stride + j, count);
      total = fmadd(load_channels(task.d_y + i * task.d_y_stride + j, count) * x, splat(task.scales[i]), total);
    }
    store_channels(task.d_weight + j, load_channels(task.d_weight + j, count) + total, count);
  });
}

inline double cross_entropy(const native::CrossEntropyTask<Scalar>& task) {
  const Scalar target = task.logits[task.target];
  Vector maxima = splat(target);
  each_register(task.cols, [&](std::size_t j, std::size_t count) {
    const Vector x = load_channels(task.logits + j, count);
    if (count == lanes) {
      maxima = max(maxima, x);
    } else {  // the other lanes hold no logits
      for (std::size_t i = 0; i < count; ++i) maxima = max(maxima, splat(task.logits[j + i]));
    }
  });
  Scalar values[lanes], largest = target;
  store(values, maxima);
  for (std::size_t i = 0; i < lanes; ++i) largest = values[i] > largest ? values[i] : largest;
  Vector sums = splat(0);
  each_register(task.cols, [&](std::size_t j, std::size_t count) {
    const Vector power = exp(load_channels(task.logits + j, count) - splat(largest));
    store_channels(task.d_logits + j, power, count);
    sums = sums + load_channels(task.d_logits + j, count);
  });
  const Scalar total = sum(sums);
  const Vector factor = splat(task.scale / total);
  each_register(task.cols, [&](std::size_t j, std::size_t count) {
    store_channels(task.d_logits + j, load_channels(task.d_logits + j, count) * factor, count);
  });
  task.d_logits[task.target] -= task.scale;
  return std::log(static_cast<double>(total)) + static_cast<double>(largest) - static_cast<double>(target);
}

inline void adamw(const native::AdamWTask<Scalar>& task) {
  const Vector one_less_beta1 = splat(1 - task.beta1), one_less_beta2 = splat(1 - task.beta2);
  each_register(task.count, [&](std::size_t j, std::size_t count) {
    const Vector g = load_channels(task.gradient + j, count) * splat(task.gradient_scale);
    const Vector mean = fmadd(splat(task.beta1), load_channels(task.mean + j, count), one_less_beta1 * g);
    const Vector variance = fmadd(splat(task.beta2), load_channels(task.variance + j, count), one_less_beta2 * g * g);
    const Vector root = square_root(variance * splat(task.variance_scale)) + splat(task.epsilon);
    const Vector kept = load_channels(task.weight + j, count) * splat(task.keep);
    store_channels(task.weight + j, fnmadd(splat(task.step), mean / root, kept), count);
    store_channels(task.mean + j, mean, count);
    store_channels(task.variance + j, variance, count);
    store_channels(task.gradient + j, splat(0), count);
  });
}

inline double sum_of_squares(const Scalar* x, std::size_t size) {
  Vector squares = splat(0);
  each_register(size, [&](std::size_t j, std::size_t count) {
    const Vector value = load_channels(x + j, count);
    squares = fmadd(value, value, squares);
  });
  return static_cast<double>(sum(squares));
}

inline constexpr native::TrainingKernels<Scalar> training_kernels{tile_rows,
                                                                  &pack_columns,
                                                                  &weight_gradient,
                                                                  &pack_rows,
                                                                  &input_gradient,
                                                                  &causal_conv1d_backward,
                                                                  &selective_scan_backward,
                                                                  &rms_norm_backward,
                                                                  &norm_weight_gradient,
                                                                  &cross_entropy,
                                                                  &adamw,
                                                                  &sum_of_squares};
inline constexpr native::SsdTrainingKernels<Scalar> ssd_training_kernels{&ssd_scan_backward, &gate_backward};
