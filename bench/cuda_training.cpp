// Training on a card: tokens a second of whole steps, with the memory that they take, and the kernels of backward
// alone. cuda_training [d_model n_layer] [f32 | bf16]; without sizes the shape of mamba-130m, and with a name of
// products only its whole steps with these. Each figure is the median of several runs. Weights are random.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "minimamba/backend/cuda_training.hpp"
#include "minimamba/nn/ssd.hpp"
#include "minimamba/train.hpp"

namespace {

using namespace minimamba;
using Backend = CudaTraining<float>;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

const char* name_of(Products products) { return products == Products::bf16 ? "bf16" : "f32"; }
const char* name_of(const TapeOptions& options) {
  if (options.recompute) return ", all recomputed";
  return options.recompute_some == false ? ", all kept" : "";
}

/// Whole steps: forward, backward and AdamW. As those of a Trainer, each waits once, for its loss and the norm.
template <class Model>
void bench_steps(const typename Model::Config& config, std::size_t batch, std::size_t length, int runs,
                 Products products = Products::f32, TapeOptions of_tape = {}) {
  Model model(config, Backend({.products = products}));
  auto gradients = zeros_like(model);
  AdamW<Model> optimizer(model);
  Tape<Model> tape(model, of_tape);
  auto cache = model.make_cache(static_cast<std::int64_t>(batch));
  std::vector<std::int32_t> tokens(batch * length);
  Random random(0);
  for (auto& token : tokens) {
    token = static_cast<std::int32_t>(random.bits() % static_cast<std::uint64_t>(config.vocab_size));
  }
  const auto targets = next_token_targets(tokens, static_cast<std::int64_t>(batch));
  std::vector<double> forward, backward, whole;
  double loss = 0;
  for (int i = -3; i < runs; ++i) {
    const auto start = model.backend().device().mark();
    cache.reset();
    tape.forward(model, tokens, cache);
    const auto middle = model.backend().device().mark(), again = model.backend().device().mark();
    const double forward_time = model.backend().device().seconds_between(start, middle);
    loss = tape.backward(model, targets, gradients).mean();
    const double backward_time = model.backend().device().seconds_between(again, model.backend().device().mark());
    optimizer.step(model, gradients, 1e-4);
    if (i < 0) continue;
    forward.push_back(forward_time);
    backward.push_back(backward_time);
  }
  std::vector<double> sums(1 + detail::parameters_in(gradients));
  Activation<Backend, double> there;
  there.reserve(model.backend(), 1, sums.size());
  for (int i = -3; i < runs; ++i) {
    const double begin = seconds();
    cache.reset();
    sums.assign(sums.size(), 0);
    const View<double> sum = there.upload(model.backend(), sums);
    tape.forward(model, tokens, cache);
    tape.backward(model, targets, gradients, {}, sum.columns(0, 1));
    optimizer.queue_squares(gradients, sum.columns(1, sums.size() - 1));
    model.backend().template download<double>(sum.data(), sums);
    const double norm = optimizer.norm_of(gradients, std::span(sums).subspan(1));
    optimizer.apply(model, gradients, 1e-4, norm);
    if (i >= 0) whole.push_back(seconds() - begin);
  }
  const double step = median(whole), count = static_cast<double>(tokens.size());
  const auto& device = model.backend().device();
  std::printf(
      "%s products%s, chunk %d, d_model %d x %d, V %d, %zu x %zu: %.0f tokens/s, a step %.3f ms (forward %.3f, "
      "backward %.3f), "
      "%.2f GB in "
      "use, loss %.4f\n",
      name_of(products), name_of(of_tape), static_cast<int>(of_tape.chunk), static_cast<int>(config.d_model),
      static_cast<int>(config.n_layer), static_cast<int>(config.vocab_size), batch, length, count / step, step * 1e3,
      median(forward) * 1e3, median(backward) * 1e3,
      static_cast<double>(device.total_memory() - device.free_memory()) / 1e9, loss);
  std::fflush(stdout);
}

struct Matrix {
  Matrix(const Backend& backend, std::size_t rows, std::size_t cols, float value = 0.1F)
      : buffer(backend.allocate<float>(rows * cols)), view(buffer.data(), rows, cols) {
    backend.fill(view, value);
  }
  CudaBuffer<float> buffer;
  View<float> view;
};

/// Milliseconds of call(), the median of several runs.
template <class Call>
double milliseconds(const Backend& backend, Call&& call) {
  std::vector<double> times;
  for (int run = 0; run < 9; ++run) {
    const auto begin = backend.device().mark();
    call();
    times.push_back(backend.device().seconds_between(begin, backend.device().mark()));
  }
  return median({times.begin() + 2, times.end()}) * 1e3;
}

void bench_scan(const Backend& backend, std::size_t batch, std::size_t length, std::size_t E, std::size_t N) {
  const std::size_t M = batch * length;
  const Matrix u(backend, M, E), delta(backend, M, E), z(backend, M, E), b(backend, M, N), c(backend, M, N);
  const Matrix a(backend, E, N, -0.5F), bias(backend, 1, E), d(backend, 1, E), y(backend, M, E);
  const Matrix h(backend, batch * E, N), d_h(backend, batch * E, N), kept(backend, batch * (length / 32) * E, N);
  const Matrix d_u(backend, M, E), d_delta(backend, M, E), d_z(backend, M, E), d_b(backend, M, N), d_c(backend, M, N);
  const Matrix d_a(backend, E, N), d_d(backend, 1, E), d_bias(backend, 1, E);
  const auto segments = uniform_segments(batch, length);
  const auto forward = [&] {
    backend.selective_scan<>({.segments = segments,
                              .u = u.view,
                              .delta = delta.view,
                              .delta_bias = bias.view,
                              .a = a.view,
                              .b = b.view,
                              .c = c.view,
                              .d = d.view,
                              .z = z.view,
                              .h = {h.view, E},
                              .y = y.view,
                              .kept = {32, {kept.view, E}}});
  };
  const auto backward = [&] {
    backend.selective_scan_backward({.segments = segments,
                                     .u = u.view,
                                     .delta = delta.view,
                                     .delta_bias = bias.view,
                                     .a = a.view,
                                     .b = b.view,
                                     .c = c.view,
                                     .d = d.view,
                                     .z = z.view,
                                     .kept = {32, SlotView<float>(kept.view, E)},
                                     .d_y = y.view,
                                     .d_u = d_u.view,
                                     .d_delta = d_delta.view,
                                     .d_b = d_b.view,
                                     .d_c = d_c.view,
                                     .d_z = d_z.view,
                                     .d_delta_bias = d_bias.view,
                                     .d_a = d_a.view,
                                     .d_d = d_d.view,
                                     .d_h = {d_h.view, E}});
  };
  const double first = milliseconds(backend, forward), second = milliseconds(backend, backward);
  std::printf("scan %zu x %zu, E %zu, N %zu: forward %.3f ms, backward %.3f ms, both %.3f ms\n", batch, length, E, N,
              first, second, first + second);
}

/// The products of a layer, its convolution and norm, and the head's loss, for M tokens.
void bench_layer(const Backend& backend, std::size_t M, const MambaConfig& config) {
  const auto D = static_cast<std::size_t>(config.d_model), E = static_cast<std::size_t>(config.d_inner());
  const auto R = static_cast<std::size_t>(config.resolved().dt_rank), N = static_cast<std::size_t>(config.d_state);
  struct Product {
    const char* name;
    std::size_t out, in;
  };
  for (const auto& [name, out, in] :
       {Product{"in_proj", 2 * E, D}, {"x_proj", R + 2 * N, E}, {"dt_proj", E, R}, {"out_proj", D, E}}) {
    const Matrix d_y(backend, M, out), x(backend, M, in);
    const auto weight = backend.make_matrix<float>(out, in);
    auto d_weight = backend.make_matrix<float>(out, in);
    const double work = 2e-9 * static_cast<double>(M) * static_cast<double>(out) * static_cast<double>(in);
    const double forward = milliseconds(backend, [&] { backend.matmul(View<const float>(x.view), weight, d_y.view); });
    const double input = milliseconds(backend, [&] { backend.matmul_backward_input(d_y.view, weight, x.view); });
    const double of_weight = milliseconds(backend, [&] { backend.matmul_backward_weight(d_y.view, x.view, d_weight); });
    std::printf("%-8s forward %.3f ms (%.1f TFLOP/s), of inputs %.3f ms (%.1f), of weights %.3f ms (%.1f)\n", name,
                forward, work / forward, input, work / input, of_weight, work / of_weight);
  }
  const std::size_t K = static_cast<std::size_t>(config.d_conv), batch = std::max<std::size_t>(M / 2048, 1);
  const auto segments = uniform_segments(batch, M / batch);
  const Matrix x(backend, M, E), d_y(backend, M, E), d_x(backend, M, E), weight(backend, E, K), bias(backend, 1, E);
  const Matrix d_weight(backend, E, K), d_bias(backend, 1, E), windows(backend, batch * E, K - 1),
      narrow(backend, M, D);
  const Matrix d_narrow(backend, M, D), out(backend, M, D), scale(backend, 1, D), d_scale(backend, 1, D);
  const double convolution = milliseconds(backend, [&] {
    backend.causal_conv1d_backward({.segments = segments,
                                    .x = x.view,
                                    .weight = weight.view,
                                    .bias = bias.view,
                                    .kept = {M, SlotView<float>(windows.view, E)},
                                    .d_y = d_y.view,
                                    .d_x = d_x.view,
                                    .d_weight = d_weight.view,
                                    .d_bias = d_bias.view,
                                    .d_window = {windows.view, E}});
  });
  const double norm = milliseconds(backend, [&] {
    backend.rms_norm_backward({narrow.view, scale.view, 1e-5, d_narrow.view, out.view, d_scale.view});
  });
  const auto V = static_cast<std::size_t>(config.padded_vocab_size()), rows = std::min(M, Backend::logits_at_once / V);
  const Matrix logits(backend, rows, V);
  auto sum = backend.allocate<double>(1);
  auto targets = backend.allocate<std::int32_t>(rows);
  const double loss = milliseconds(backend, [&] {
    backend.cross_entropy({logits.view, {targets.data(), 1, rows}, 1e-4, logits.view, {sum.data(), 1, 1}});
  });
  auto gradient = backend.make_matrix<float>(V, D);
  auto tokens = backend.allocate<std::int32_t>(M);
  const double embedding = milliseconds(backend, [&] {
    backend.embed_backward({tokens.data(), 1, M}, narrow.view, gradient);
  });
  std::printf(
      "conv1d backward %.3f ms, rms_norm backward %.3f ms, cross entropy of %zu rows %.3f ms, embedding of equal "
      "tokens %.3f ms\n",
      convolution, norm, rows, loss, embedding);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (CudaBackend<float>::devices() == 0) {
      std::printf("no NVIDIA card: nothing was measured\n");
      return 0;
    }
    MambaConfig config{.d_model = 768, .n_layer = 24, .vocab_size = 50280};
    std::vector<Products> wanted{Products::f32, Products::bf16};
    const std::string last = argc > 1 ? argv[argc - 1] : "";
    const bool steps_alone = last == "f32" || last == "bf16";
    if (steps_alone) wanted = {last == "f32" ? Products::f32 : Products::bf16};
    if (argc - (steps_alone ? 1 : 0) > 2) config.d_model = std::atoi(argv[1]), config.n_layer = std::atoi(argv[2]);
    using Mamba1 = Mamba<float, CudaTraining>;
    if (!steps_alone) {
      const Backend backend;
      std::printf("%s\n", backend.device_name().c_str());
      bench_scan(backend, 8, 2048, 2048, 16);
      for (const Products products : wanted) {
        std::printf("products in %s\n", name_of(products));
        bench_layer(Backend({.products = products}), 8 * 2048, config);
      }
      bench_steps<Mamba1>({.d_model = 128, .n_layer = 3, .vocab_size = 256}, 1, 32, 50);
      bench_steps<Mamba1>({.d_model = 256, .n_layer = 4, .vocab_size = 256}, 8, 256, 20);
      bench_steps<Mamba1>({.d_model = 256, .n_layer = 4, .vocab_size = 256}, 8, 256, 20, Products::bf16);
    }
    for (const Products products : wanted) {
      for (const TapeOptions& kept : {TapeOptions{},
                                      {.chunk = 64},
                                      {.recompute_some = false},
                                      {.chunk = 16, .recompute_some = false},
                                      {.recompute = true}}) {
        if (steps_alone && (kept.chunk == 16 || kept.recompute)) continue;
        bench_steps<Mamba1>(config, 8, 2048, 5, products, kept);
      }
      if (steps_alone) continue;
      bench_steps<Mamba<float, CudaTraining, float, SSD>>(
          {.d_model = config.d_model, .n_layer = config.n_layer, .vocab_size = config.vocab_size}, 8, 2048, 3,
          products);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_training: %s\n", error.what());
    return 1;
  }
}
