// The backward of the kernels of SSD: against finite differences of their forward, in double; and of each kind of
// number and set of instructions against the reference in double.
#include <functional>
#include <string>
#include <vector>

#include "minimamba/backend/eigen_training.hpp"
#include "minimamba/backend/native_training.hpp"
#include "minimamba/backend/reference_training.hpp"
#include "support/ssd_scan.hpp"
#ifdef MINIMAMBA_TEST_CUDA
#include "support/cuda_training.hpp"
#endif

namespace ssd_training_test {

using namespace minimamba;
using support::HostMatrix;
using support::random_matrix;
using support::ScanShape;

/// The native backend with the kernels of one instruction set.
template <class Scalar, InstructionSet set>
struct TrainingWith : NativeTraining<Scalar> {
  explicit TrainingWith(CpuOptions options = {})
      : NativeTraining<Scalar>({.threads = options.threads, .instruction_set = set}) {}
  static constexpr InstructionSet needed = set;
};
template <class Backend>
bool is_available() {
  if constexpr (requires { Backend::present(); }) return Backend::present();
  if constexpr (requires { Backend::needed; }) return available(Backend::needed);
  return true;
}

struct BackendNames {
  template <class Backend>
  static std::string GetName(int) {
    std::string name;
    if constexpr (requires { Backend::kind; }) {
      name = Backend::kind;
    } else {
      name = Backend().name();
    }
    if constexpr (requires { Backend::needed; }) name += "_" + std::string(name_of(Backend::needed));
    return name + (sizeof(typename Backend::Scalar) == 4 ? "_float" : "_double");
  }
};

template <class Scalar>
struct ScanGradients {
  HostMatrix<Scalar> x, delta, b, c, delta_bias, a, d, h;
};

/// Segments of unequal lengths whose slots are not in order; one has no tokens.
std::vector<Segment> ragged() { return {{0, 11, 2}, {11, 0, 1}, {11, 5, 0}}; }
constexpr std::size_t rows = 16, slots = 3, chunk = 4, chunks = 3 + 2;

template <class Backend, class Scalar = typename Backend::Scalar>
ScanGradients<Scalar> gradients_of(const Backend& backend, support::Scan<Scalar> scan, std::uint64_t seed = 10) {
  const ScanShape& shape = scan.shape;
  const std::size_t E = shape.channels(), GN = shape.groups * shape.states;
  HostMatrix<Scalar> states(chunks * E, shape.states);
  scan.run(backend, ragged(), {chunk, {states.view(), E}});
  const auto d_y = random_matrix<Scalar>(rows, E, seed);
  ScanGradients<Scalar> g{{rows, E},        {rows, shape.heads},
                          {rows, GN},       {rows, GN},
                          {1, shape.heads}, {1, shape.heads},
                          {1, shape.heads}, random_matrix<Scalar>(slots * E, shape.states, seed + 1)};
  backend.ssd_scan_backward({.segments = ragged(),
                             .x = scan.x(),
                             .delta = scan.delta(),
                             .delta_bias = scan.delta_bias.view(),
                             .dt_min = shape.dt_min,
                             .dt_max = shape.dt_max,
                             .a = scan.a.view(),
                             .b = scan.b(),
                             .c = scan.c(),
                             .d = scan.d.view(),
                             .kept = {chunk, {std::as_const(states).view(), E}},
                             .d_y = d_y.view(),
                             .d_x = g.x.view(),
                             .d_delta = g.delta.view(),
                             .d_b = g.b.view(),
                             .d_c = g.c.view(),
                             .d_delta_bias = g.delta_bias.view(),
                             .d_a = g.a.view(),
                             .d_d = g.d.view(),
                             .d_h = {g.h.view(), E}});
  return g;
}

template <class Body, class A, class B>
void each_gradient(Body&& body, const A& a, const B& b) {
  body("x", a.x, b.x), body("delta", a.delta, b.delta), body("b", a.b, b.b), body("c", a.c, b.c);
  body("delta_bias", a.delta_bias, b.delta_bias), body("a", a.a, b.a), body("d", a.d, b.d), body("h", a.h, b.h);
}

#ifdef MINIMAMBA_TEST_CUDA  // the same tests, on a card
using Doubles = testing::Types<support::TestedCudaTraining<double>>;
using Kinds = testing::Types<support::TestedCudaTraining<float>>;
#else
using Doubles = testing::Types<ReferenceTraining<double>, EigenTraining<double>, NativeTraining<double>>;
using Kinds = testing::Types<ReferenceTraining<float>, EigenTraining<float>, NativeTraining<float>,
                             TrainingWith<float, InstructionSet::avx2>, TrainingWith<float, InstructionSet::portable>>;
#endif
/// Skips the tests of what this machine lacks.
template <class Backend>
class SsdTraining : public testing::Test {
  void SetUp() override {
    if (!is_available<Backend>()) GTEST_SKIP() << "this machine lacks the instructions, or an NVIDIA card";
  }
};
TYPED_TEST_SUITE(SsdTraining, Doubles, BackendNames);

/// Compares some of the gradients of loss(), spread over x, with finite differences.
void expect_slopes(const char* name, const std::function<double()>& loss, const std::function<double&(std::size_t)>& x,
                   const HostMatrix<double>& gradient) {
  constexpr double step = 1e-5;
  const double allowed = 1e-6 * support::largest_magnitude(gradient);
  EXPECT_GT(allowed, 0) << name;
  for (std::size_t i = 0; i < gradient.values.size(); i += 1 + gradient.values.size() / 40) {
    const double value = x(i);
    x(i) = value + step;
    const double above = loss();
    x(i) = value - step;
    const double below = loss();
    x(i) = value;
    EXPECT_NEAR((above - below) / (2 * step), gradient.values[i], allowed) << name << " " << i;
  }
}

double dot(const HostMatrix<double>& a, const HostMatrix<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
  return sum;
}

TYPED_TEST(SsdTraining, DifferentiatesScansFromTheStatesBeforeChunks) {
  const TypeParam backend({.threads = 2});
  for (const ScanShape& shape : {ScanShape{4, 3, 2, 5}, ScanShape{2, 18, 1, 19}, ScanShape{3, 5, 1, 4, 0.3, 1.1}}) {
    support::Scan<double> scan(shape, rows, slots);
    const std::size_t E = shape.channels(), GN = shape.groups * shape.states;
    const auto d_y = random_matrix<double>(rows, E, 10), d_final = random_matrix<double>(slots * E, shape.states, 11);
    const auto loss = [&] {
      support::Scan<double> copy = scan;
      const auto y = copy.run(backend, ragged());
      return dot(y, d_y) + dot(copy.h, d_final);
    };
    const auto g = gradients_of(backend, scan);
    const auto of = [](HostMatrix<double>& matrix) {
      return [&](std::size_t i) -> double& { return matrix.values[i]; };
    };
    const auto part = [&](std::size_t first, std::size_t cols) {  // of the matrix that holds x, b, c and delta
      return [&, first, cols](std::size_t i) -> double& { return scan.zxbcdt.view()(i / cols, 3 + first + i % cols); };
    };
    expect_slopes("x", loss, part(0, E), g.x);
    expect_slopes("b", loss, part(E, GN), g.b);
    expect_slopes("c", loss, part(E + GN, GN), g.c);
    expect_slopes("delta", loss, part(E + 2 * GN, shape.heads), g.delta);
    expect_slopes("delta_bias", loss, of(scan.delta_bias), g.delta_bias);
    expect_slopes("a", loss, of(scan.a), g.a);
    expect_slopes("d", loss, of(scan.d), g.d);
    expect_slopes("h", loss, of(scan.h), g.h);
  }
}

TYPED_TEST(SsdTraining, DifferentiatesNormsOfGatedGroups) {
  const TypeParam backend({.threads = 2});
  for (const std::size_t groups : support::Sizes{1, 3}) {
    constexpr std::size_t M = 4, E = 21;
    HostMatrix<double> x = random_matrix<double>(M, E, 1), z = random_matrix<double>(M, E, 2);
    HostMatrix<double> weight = random_matrix<double>(1, E, 3);
    const auto d_y = random_matrix<double>(M, E, 4);
    const auto loss = [&] {
      HostMatrix<double> y(M, E);
      backend.gated_rms_norm({x.view(), z.view(), weight.view(), groups, 1e-2, y.view()});
      return dot(y, d_y);
    };
    HostMatrix<double> d_x(M, E), d_z(M, E), d_weight(1, E);
    const auto run = [&] {
      backend.gated_rms_norm_backward({.x = x.view(),
                                       .z = z.view(),
                                       .weight = weight.view(),
                                       .groups = groups,
                                       .epsilon = 1e-2,
                                       .d_y = d_y.view(),
                                       .d_x = d_x.view(),
                                       .d_z = d_z.view(),
                                       .d_weight = d_weight.view()});
    };
    run();
    const auto of = [](HostMatrix<double>& matrix) {
      return [&](std::size_t i) -> double& { return matrix.values[i]; };
    };
    expect_slopes("x", loss, of(x), d_x);
    expect_slopes("z", loss, of(z), d_z);
    expect_slopes("weight", loss, of(weight), d_weight);
    const auto once = d_weight;  // gradients of parameters accumulate
    run();
    EXPECT_NEAR(d_weight(0, 5), 2 * once(0, 5), 1e-12 * std::abs(once(0, 5)));
  }
}

template <class Backend>
class SsdTrainingInFloat : public SsdTraining<Backend> {};
TYPED_TEST_SUITE(SsdTrainingInFloat, Kinds, BackendNames);

TYPED_TEST(SsdTrainingInFloat, IsTheReferenceButForItsRounding) {
  const ReferenceTraining<double> reference;
  for (const ScanShape& shape : support::scan_shapes()) {
    const auto expected = gradients_of(reference, support::Scan<double>(shape, rows, slots));
    const auto found = gradients_of(TypeParam({.threads = 2}), support::Scan<float>(shape, rows, slots));
    each_gradient(
        [&](const char* name, const auto& a, const auto& b) {
          EXPECT_LE(support::largest_difference(a, b),
                    support::tolerance<float>(shape.states + rows) * (1 + support::largest_magnitude(b)))
              << name << " of " << shape.heads << " heads of " << shape.head_dim;
        },
        found, expected);
  }
}

TYPED_TEST(SsdTrainingInFloat, GivesTheSameBitsForAnyNumberOfThreads) {
  for (const ScanShape& shape : support::scan_shapes()) {
    const support::Scan<float> scan(shape, rows, slots);
    const auto alone = gradients_of(TypeParam({.threads = 1}), scan);
    for (const int threads : {2, 5}) {
      each_gradient([&](const char* name, const auto& a,
                        const auto& b) { EXPECT_TRUE(support::identical(a, b)) << name << ", " << threads; },
                    gradients_of(TypeParam({.threads = threads}), scan), alone);
    }
  }
}

}  // namespace ssd_training_test
