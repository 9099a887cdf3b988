// Tokens a second on a card, and the time to load: cuda_bench [d_model n_layer]...; without arguments the shape of
// mamba-130m, and of mamba2-130m. Each figure is the median of several runs. Weights are random.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "minimamba/cuda.hpp"
#include "minimamba/generate/last_logits.hpp"
#include "minimamba/nn/ssd.hpp"

namespace {

using namespace minimamba;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

/// Tokens a second of calls of `length` tokens for each of `batch` sequences, with the first `downloaded` logits of the
/// last tokens copied to the host.
template <class Model>
double rate(const Model& model, std::size_t batch, std::size_t length, int runs, std::size_t downloaded) {
  auto cache = model.make_cache(static_cast<std::int64_t>(batch));
  std::vector<std::int32_t> tokens(batch * length);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 7919 % 50000);
  std::vector<float> logits(downloaded);
  const auto read = [&] { model.backend().download(model.forward_last(tokens, cache).data(), logits); };
  for (int i = 0; i < 3; ++i) read();
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const double start = seconds();
    read();
    times.push_back(seconds() - start);
  }
  return static_cast<double>(tokens.size()) / median(times);
}

/// The same of steps that choose the next token of each sequence: the most likely one.
template <class Model>
double greedy_rate(const Model& model, std::size_t batch, int runs) {
  auto cache = model.make_cache(static_cast<std::int64_t>(batch));
  std::vector<std::int32_t> tokens(batch, 1);
  Sampler sampler({}, model.config().vocab_size);
  detail::LastLogits<CudaBackend<float>> last;
  std::vector<double> times;
  for (int i = -3; i < runs; ++i) {
    const double start = seconds();
    last.take(model.backend(), model.forward_last(tokens, cache), sampler);
    for (std::size_t row = 0; row < batch; ++row) tokens[row] = last.choose(sampler, row);
    if (i >= 0) times.push_back(seconds() - start);
  }
  return static_cast<double>(batch) / median(times);
}

/// Memory on the card, and views of it.
template <class T = float>
struct Matrix {
  Matrix(const CudaBackend<float>& backend, std::size_t rows, std::size_t cols)
      : buffer(backend.allocate<T>(rows * cols)), view(buffer.data(), rows, cols) {}
  void fill(const CudaBackend<float>& backend) const {
    if constexpr (std::is_same_v<T, float>) {
      backend.fill(view, 0.1F);
    } else {
      const Matrix<float> values(backend, view.rows(), view.cols());
      backend.fill(values.view, 0.1F);
      backend.rms_norm(values.view, {}, 1, view);
    }
  }
  CudaBuffer<T> buffer;
  View<T> view;
};

/// Microseconds of one call of call(layer), the median of several runs through all layers, one kernel after the other.
template <class Call>
double microseconds(const CudaBackend<float>& backend, std::size_t layers, Call&& call) {
  std::vector<double> times;
  for (int run = 0; run < 7; ++run) {
    const auto begin = backend.device().mark();
    for (std::size_t layer = 0; layer < layers; ++layer) call(layer);
    times.push_back(backend.device().seconds_between(begin, backend.device().mark()));
  }
  return median(times) / static_cast<double>(layers) * 1e6;
}

/// What a card can do in a second, as its driver describes it. What fits into its cache comes faster than `bytes`.
struct Limits {
  double bytes, operations, exponentials;  // operations: in f32, outside the tensor cores

  explicit Limits(const gpu::Device& device)
      : bytes(device.memory_rate()),
        operations(clocks(device) * (device.capability() == 80 ? 128 : 256)),  // two for each of 64 or 128 cores
        exponentials(clocks(device) * 16) {}

 private:
  /// Of all multiprocessors.
  static double clocks(const gpu::Device& device) { return device.clock() * static_cast<double>(device.processors()); }
};

/// Of a kernel. The limit of tensor cores differs from card to card, so products on them are compared with the memory
/// alone.
struct Work {
  double bytes = 0, operations = 0, exponentials = 0;
  bool on_tensor_cores = false;
};

void print_kernel(const char* name, double microseconds, const Work& work, const Limits& limits) {
  const double operations = work.on_tensor_cores ? 0 : work.operations / limits.operations,
               shortest = std::max({work.bytes / limits.bytes, operations, work.exponentials / limits.exponentials});
  std::printf("    %-9s %9.2f us %8.2f TB/s %8.2f TFLOP/s %5.0f %% of the limit\n", name, microseconds,
              work.bytes / microseconds / 1e6, work.operations / microseconds / 1e6,
              100 * shortest * 1e6 / microseconds);
}

/// Each kernel of a forward alone, with the weights of all layers in turn, for `batch` sequences of `length` tokens.
template <class W>
void measure_kernels(const Mamba<float, CudaBackend, W>& model, std::size_t batch, std::size_t length) {
  const auto& backend = model.backend();
  const Limits limits(backend.device());
  constexpr bool on_tensor_cores = rounds_activations<W>;
  const auto& config = model.config();
  const auto size = [](auto value) { return static_cast<std::size_t>(value); };
  const std::size_t D = size(config.d_model), E = size(config.d_inner()), N = size(config.d_state),
                    R = size(config.dt_rank), M = batch * length, layers = model.layers.size();
  using T = ActivationOf<CudaBackend<float>, W>;
  Matrix<T> normed(backend, M, D), uz(backend, M, 2 * E), u(backend, M, E), dt_b_c(backend, M, R + 2 * N),
      delta(backend, M, E), y(backend, M, E);
  Matrix<> x(backend, M, D), out(backend, M, D), window(backend, batch * E, size(config.d_conv) - 1),
      state(backend, batch * E, N);
  x.fill(backend);
  for (const Matrix<T>* matrix : {&normed, &uz, &u, &dt_b_c, &delta, &y}) matrix->fill(backend);
  constexpr double bytes = sizeof(T);
  const auto segments = uniform_segments(batch, length);
  const auto weights = [&](const auto& linear) { return static_cast<double>(linear.weight.memory_bytes()); };
  const double m = static_cast<double>(M), d = static_cast<double>(D), e = static_cast<double>(E),
               n = static_cast<double>(N), r = static_cast<double>(R);
  std::printf("  each kernel, %zu x %zu\n", batch, length);
  const auto& first = model.layers.front();
  print_kernel(
      "rms_norm",
      microseconds(backend, layers, [&](std::size_t i) { model.layers[i].norm.forward(backend, x.view, normed.view); }),
      {.bytes = (4 + bytes) * m * d}, limits);
  print_kernel("in_proj",
               microseconds(backend, layers,
                            [&](std::size_t i) {
                              backend.matmul(View<const T>(normed.view), model.layers[i].mixer.in_proj.weight.packed(),
                                             uz.view);
                            }),
               {weights(first.mixer.in_proj) + bytes * m * (d + 2 * e), 4 * m * d * e, 0, on_tensor_cores}, limits);
  print_kernel("conv1d",
               microseconds(backend, layers,
                            [&](std::size_t i) {
                              model.layers[i].mixer.conv1d.forward(backend,
                                                                   Conv1dForward<float, T>{.segments = segments,
                                                                                           .x = uz.view.columns(0, E),
                                                                                           .window = {window.view, E},
                                                                                           .y = u.view});
                            }),
               {.bytes = 2 * bytes * m * e}, limits);
  print_kernel(
      "x_proj",
      microseconds(backend, layers,
                   [&](std::size_t i) {
                     backend.matmul(View<const T>(u.view), model.layers[i].mixer.x_proj.weight.packed(), dt_b_c.view);
                   }),
      {weights(first.mixer.x_proj) + bytes * m * (e + r + 2 * n), 2 * m * e * (r + 2 * n), 0, on_tensor_cores}, limits);
  print_kernel("dt_proj",
               microseconds(backend, layers,
                            [&](std::size_t i) {
                              backend.matmul(View<const T>(dt_b_c.view.columns(0, R)),
                                             model.layers[i].mixer.dt_proj.weight.packed(), delta.view);
                            }),
               {weights(first.mixer.dt_proj) + bytes * m * (r + e), 2 * m * e * r, 0, on_tensor_cores}, limits);
  print_kernel("scan",
               microseconds(backend, layers,
                            [&](std::size_t i) {
                              const auto& mixer = model.layers[i].mixer;
                              backend.selective_scan(ScanArguments<float, T>{.segments = segments,
                                                                             .u = u.view,
                                                                             .delta = delta.view,
                                                                             .delta_bias = mixer.dt_proj.bias.view(),
                                                                             .a = mixer.A.view(),
                                                                             .b = dt_b_c.view.columns(R, N),
                                                                             .c = dt_b_c.view.columns(R + N, N),
                                                                             .d = mixer.D.view(),
                                                                             .z = uz.view.columns(E, E),
                                                                             .h = {state.view, E},
                                                                             .y = y.view});
                            }),
               {bytes * m * (4 * e + 2 * n) + 8 * static_cast<double>(batch) * e * n, 6 * m * e * n, m * e * n},
               limits);
  print_kernel("out_proj+",
               microseconds(backend, layers,
                            [&](std::size_t i) {
                              backend.matmul(View<const T>(y.view), model.layers[i].mixer.out_proj.weight.packed(),
                                             out.view);
                              backend.add(out.view, x.view);
                            }),
               {weights(first.mixer.out_proj) + m * (bytes * e + 12 * d), 2 * m * d * e, 0, on_tensor_cores}, limits);
  if (M > 256) return;
  Matrix<> logits(backend, M, model.embedding.weight.rows());
  print_kernel("head",
               microseconds(backend, 4,
                            [&](std::size_t) {
                              backend.matmul(View<const T>(normed.view), model.head().packed(), logits.view);
                            }),
               {static_cast<double>(model.embedding.weight.memory_bytes()) +
                    m * (bytes * d + 4 * static_cast<double>(logits.view.cols())),
                2 * m * d * static_cast<double>(logits.view.cols()), 0, on_tensor_cores},
               limits);
}

/// The kernels that models with SSD have in place of the scan.
template <class W>
void measure_kernels(const Mamba<float, CudaBackend, W, SSD>& model, std::size_t batch, std::size_t length) {
  const auto& backend = model.backend();
  const Limits limits(backend.device());
  const auto& config = model.config();
  const auto size = [](auto value) { return static_cast<std::size_t>(value); };
  const std::size_t E = size(config.d_inner()), N = size(config.d_state), GN = size(config.n_groups) * N,
                    H = size(config.n_heads()), M = batch * length, layers = model.layers.size();
  Matrix<> xbc(backend, M, E + 2 * GN), z(backend, M, E), dt(backend, M, H), y(backend, M, E), normed(backend, M, E),
      state(backend, batch * E, N);
  for (const Matrix<>* matrix : {&xbc, &z, &dt}) matrix->fill(backend);
  const auto segments = uniform_segments(batch, length);
  const double m = static_cast<double>(M), e = static_cast<double>(E), n = static_cast<double>(N);
  std::printf("  each kernel of SSD, %zu x %zu\n", batch, length);
  print_kernel("ssd_scan",
               microseconds(backend, layers,
                            [&](std::size_t i) {
                              const auto& mixer = model.layers[i].mixer;
                              backend.ssd_scan({.segments = segments,
                                                .x = xbc.view.columns(0, E),
                                                .delta = dt.view,
                                                .delta_bias = mixer.dt_bias.view(),
                                                .dt_max = mixer.dt_limit[1],
                                                .a = mixer.A.view(),
                                                .b = xbc.view.columns(E, GN),
                                                .c = xbc.view.columns(E + GN, GN),
                                                .d = mixer.D.view(),
                                                .h = {state.view, E},
                                                .y = y.view});
                            }),
               {.bytes = 4 * m * (2 * e + 2 * static_cast<double>(GN)) + 8 * static_cast<double>(batch) * e * n,
                .operations = 5 * m * e * n},
               limits);
  print_kernel("gated norm",
               microseconds(backend, layers,
                            [&](std::size_t i) {
                              const auto& norm = model.layers[i].mixer.norm;
                              backend.gated_rms_norm({.x = y.view,
                                                      .z = z.view,
                                                      .weight = norm.weight.view(),
                                                      .groups = norm.groups,
                                                      .epsilon = norm.epsilon,
                                                      .y = normed.view});
                            }),
               {.bytes = 12 * m * e}, limits);
}

/// The scan alone, with its gate: B 8, E 2048, L 2048, N 16.
template <class T>
void measure_scan(const CudaBackend<float>& backend) {
  constexpr std::size_t B = 8, E = 2048, L = 2048, N = 16;
  const Matrix<T> u(backend, B * L, E), delta(backend, B * L, E), b(backend, B * L, N), c(backend, B * L, N),
      z(backend, B * L, E), y(backend, B * L, E);
  const Matrix<> bias(backend, 1, E), a(backend, E, N), d(backend, 1, E), state(backend, B * E, N);
  for (const Matrix<T>* matrix : {&u, &delta, &b, &c, &z}) matrix->fill(backend);
  for (const Matrix<>* matrix : {&bias, &a, &d}) matrix->fill(backend);
  const auto segments = uniform_segments(B, L);
  const double time = microseconds(backend, 3, [&](std::size_t) {
    backend.selective_scan(ScanArguments<float, T>{.segments = segments,
                                                   .u = u.view,
                                                   .delta = delta.view,
                                                   .delta_bias = bias.view,
                                                   .a = a.view,
                                                   .b = b.view,
                                                   .c = c.view,
                                                   .d = d.view,
                                                   .z = z.view,
                                                   .h = {state.view, E},
                                                   .y = y.view});
  });
  std::printf("scan of 8 x 2048, E 2048, N 16, %zu bytes a value: %.3f ms\n", sizeof(T), time / 1e3);
}

template <class Model>
void measure(const typename Model::Config& config) {
  using W = typename Model::WeightType;
  const double start = seconds();
  const Model model(config);
  std::printf("%-5s %zu MB, made in %.1f s\n", std::string(Format<W>::name).c_str(), model.memory_bytes() >> 20,
              seconds() - start);
  model.backend().device().kernels().wait();
  for (const std::size_t batch : {1U, 8U, 64U, 256U}) {
    std::printf("  generation, batch %3zu: %9.0f tokens/s; with the choice: %9.0f; with all logits downloaded: %9.0f\n",
                batch, rate(model, batch, 1, 100, 1), greedy_rate(model, batch, 100),
                rate(model, batch, 1, 100, batch * model.embedding.weight.rows()));
  }
  std::printf("  prompt 1 x 4096:       %9.0f tokens/s\n", rate(model, 1, 4096, 7, 1));
  std::printf("  prompts 8 x 2048:      %9.0f tokens/s\n", rate(model, 8, 2048, 7, 1));
  if constexpr (std::is_same_v<W, float> || std::is_same_v<W, bf16>) {
    measure_kernels(model, 1, 1);
    measure_kernels(model, 64, 1);
    measure_kernels(model, 1, 4096);
    measure_kernels(model, 8, 512);
  }
  std::printf("  %zu lists of kernels were replayed\n", model.backend().device().replayed());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (CudaBackend<float>::devices() == 0) {
      std::printf("no NVIDIA card: nothing was measured\n");
      return 0;
    }
    CudaOptions options;
    options.kernels.on_compile = [](const std::string& what) { std::printf("%s\n", what.c_str()); };
    const double start = seconds();
    const CudaBackend<float> backend(options);
    std::printf("%s, %.1f GB; opened in %.2f s\n", backend.device_name().c_str(),
                static_cast<double>(backend.total_memory()) / 1e9, seconds() - start);
    std::printf("kernels overlap: %s\n", backend.device().overlaps() ? "yes" : "no");
    const Limits limits(backend.device());
    std::printf("limits: %.2f TB/s of memory, %.1f TFLOP/s in f32\n", limits.bytes / 1e12, limits.operations / 1e12);
    Matrix<> from(backend, 1U << 14, 1U << 13), to(backend, 1U << 14, 1U << 13);
    const double copied = 2.0 * 4 * (1U << 27);
    std::printf("copy of 512 MB: %.2f TB/s; a small kernel after another: %.2f us\n",
                copied / microseconds(backend, 4, [&](std::size_t) { backend.copy(from.view, to.view); }) / 1e6,
                microseconds(backend, 200, [&](std::size_t) {
                  backend.copy(from.view.rows_from(0, 1).columns(0, 768), to.view.rows_from(0, 1).columns(0, 768));
                }));
    measure_scan<float>(backend);
    measure_scan<bf16>(backend);
    std::vector<std::pair<int, int>> shapes{{768, 24}};
    const int given = argc > 2 && argv[1][0] != '-' ? argc : 0;  // not the flags of the other benchmarks
    if (given > 0) shapes.clear();
    for (int i = 1; i + 1 < given; i += 2) shapes.emplace_back(std::atoi(argv[i]), std::atoi(argv[i + 1]));
    for (const auto& [d_model, n_layer] : shapes) {
      const MambaConfig config{.d_model = d_model, .n_layer = n_layer, .vocab_size = 50280};
      std::printf("d_model %d, n_layer %d\n", d_model, n_layer);
      measure<Mamba<float, CudaBackend, float>>(config);
      measure<Mamba<float, CudaBackend, bf16>>(config);
      measure<Mamba<float, CudaBackend, q8>>(config);
      measure<Mamba<float, CudaBackend, q4>>(config);
      const Mamba2Config second{.d_model = d_model, .n_layer = n_layer, .vocab_size = 50280};
      std::printf("Mamba-2\n");
      measure<Mamba<float, CudaBackend, float, SSD>>(second);
      measure<Mamba<float, CudaBackend, bf16, SSD>>(second);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
