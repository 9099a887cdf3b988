// Models that lack something are refused in words: compiled with -DCASE=<number> each of the uses below is one that the
// library must say something about; with -DCASE=0 nothing is wrong.
#if CASE == 0 || CASE == 3 || CASE == 4
#include <minimamba/io.hpp>
#endif
#include <minimamba/nn/ssd.hpp>
#include <minimamba/train.hpp>

#include <utility>
#include <vector>

using namespace minimamba;

/// A mixer that looks ahead.
template <class Scalar, template <class> class Backend, class Weight>
struct LooksAhead : S6<Scalar, Backend, Weight> {
  using S6<Scalar, Backend, Weight>::S6;
  static constexpr bool causal = CASE != 1;
};

struct WithoutShapes {
  Linear<float, ReferenceTraining> layer;
  ReferenceTraining<float> own_backend;
  const auto& backend() const { return own_backend; }
#if CASE != 2
  WithoutShapes shapes() const { return {}; }
#endif
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("layer", self.layer...);
  }
};

/// A backend that multiplies by matrices of one format only.
template <class Number>
struct OneFormat : ReferenceBackend<Number> {
#if CASE == 11
  void matmul(View<const Number> x, const HostMatrix<Number>& weight, View<Number> y) const {
    ReferenceBackend<Number>::matmul(x, weight, y);
  }
#endif
};

/// Backends without a kernel of SSD, which is private here.
template <class Number>
class WithoutScan : public ReferenceBackend<Number> {
  using ReferenceBackend<Number>::ssd_scan;
};
template <class Number>
class WithoutScanBackward : public ReferenceTraining<Number> {
  using ReferenceTraining<Number>::ssd_scan_backward;
};

/// A backend that rounds operands for products that cannot read them.
template <class Number>
struct WithoutOperands : ReferenceTraining<Number> {
  bool rounds_operand(View<const Number>) const { return true; }
};

void train() {
  const std::vector<std::int32_t> tokens(100);
#if CASE == 12
  const Mamba<float, WithoutScan, float, SSD> scans({.d_model = 64, .n_layer = 1, .vocab_size = 32});
  auto cache_of_scans = scans.make_cache();
  scans.forward(1, cache_of_scans);
#elif CASE == 13
  Mamba<float, WithoutScanBackward, float, SSD> scans({.d_model = 64, .n_layer = 1, .vocab_size = 32});
  Trainer trainer(std::move(scans), tokens, {.batch = 2, .length = 16});
  trainer.step();
#elif CASE == 14
  const S6<float, WithoutOperands> mixer(MambaConfig{.d_model = 64, .n_layer = 1, .vocab_size = 32});
#endif
#if CASE == 6
  const Mamba<bf16> model({.d_model = 16, .n_layer = 1, .vocab_size = 32});
  auto cache = model.make_cache();
  model.forward(tokens, cache);
#elif CASE >= 7 && CASE <= 10
  Mamba<float> model({.d_model = 16, .n_layer = 1, .vocab_size = 32});
#endif
#if CASE == 7
  auto cache = model.make_cache();
  Tape<Mamba<float>> tape(model);
  tape.forward(model, tokens, cache);
  tape.loss(model, tokens);
#elif CASE == 8
  Trainer trainer(std::move(model), tokens, {.batch = 2, .length = 16});
  trainer.step();
#elif CASE == 9
  auto gradients = zeros_like(model);
  gradients.set_zero();
#elif CASE == 10
  AdamW<Mamba<float>> optimizer(model);
#endif
  const Mamba<float, OneFormat, bf16> other({.d_model = 16, .n_layer = 1, .vocab_size = 32});
  auto cache_of_other = other.make_cache();
  other.forward(1, cache_of_other);
}

int main() {
  const Mamba<float, NativeBackend, float, LooksAhead> model({.d_model = 16, .n_layer = 1, .vocab_size = 32});
  auto gradients = zeros_like(WithoutShapes());
  MambaModel<float> backbone({.d_model = 16, .n_layer = 1});
#if CASE == 3
  save(backbone, "folder");
#elif CASE == 4
  save_gguf(backbone, "file.gguf");
#elif CASE == 5
  auto cache = backbone.make_cache();
  const std::vector<std::int32_t> prompt{1};
  for (const auto token : generate(backbone, cache, prompt, {})) return token;
#endif
  return static_cast<int>(gradients.memory().cols() + model.parameter_count());
}
