// What the tests share: the kinds of model they are typed over, random numbers, and comparison in double.
#ifndef MINIMAMBA_TESTS_SUPPORT_HPP
#define MINIMAMBA_TESTS_SUPPORT_HPP

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/minimamba.hpp"
#ifdef MINIMAMBA_TEST_CUDA
#include "support/cuda.hpp"
#endif

namespace support {

template <class ScalarType, template <class> class BackendTemplate>
struct Kind {
  using Scalar = ScalarType;
  template <class T>
  using BackendOf = BackendTemplate<T>;
  using Backend = BackendTemplate<ScalarType>;
  using Norm = minimamba::RMSNorm<ScalarType, BackendTemplate>;
  using Mixer = minimamba::S6<ScalarType, BackendTemplate>;
  using Block = minimamba::MambaBlock<ScalarType, BackendTemplate>;
  using Model = minimamba::Mamba<ScalarType, BackendTemplate>;
  using Backbone = minimamba::MambaModel<ScalarType, BackendTemplate>;
  template <class Weight>
  using ModelOf = minimamba::Mamba<ScalarType, BackendTemplate, Weight>;
  /// Backends that promise the same bits however a sequence is split; the others promise a tolerance.
  static constexpr bool exact = minimamba::BackendTraits<Backend>::splits_exactly;
  static constexpr double step = 0;  // to which activations are rounded, in parts of the largest

  /// Whether this machine can run it.
  static bool available() {
    if constexpr (requires { Backend::present(); }) return Backend::present();
    if constexpr (requires { Backend::needed; }) return minimamba::available(Backend::needed);
    return true;
  }
  static std::string name() {
    if constexpr (requires { Backend::kind; }) return Backend::kind;
    if constexpr (requires { Backend::needed; }) return std::string(minimamba::name_of(Backend::needed));
    return Backend().name();
  }
};

/// A kind whose model has narrow weights.
template <class K, class Weight>
struct NarrowKind : K {
  using Model = typename K::template ModelOf<Weight>;
  /// Products of q8 and q4 round activations to whole steps of 1/127 of a block's largest, and those of bf16 to its 8
  /// bits, steps of at most 1/128 of the activation: one that lay on an edge may take the next step when its last bit
  /// differs.
  static constexpr double step = std::is_same_v<Weight, minimamba::q8> || std::is_same_v<Weight, minimamba::q4>
                                     ? 1.0 / 127
                                 : std::is_same_v<Weight, minimamba::bf16> ? 1.0 / 128
                                                                           : 0;
};

/// Calls check(weight) with a value of each quantised or 16-bit weight format; where few kinds are tested, the formats
/// are divided among the backends. Golden tests run all of them on every backend.
template <class K, class Check>
void for_each_reduced_format(Check&& check) {
#ifdef MINIMAMBA_TEST_FEW_KINDS
  constexpr bool reference = std::is_base_of_v<minimamba::ReferenceBackend<typename K::Scalar>, typename K::Backend>;
  constexpr bool native = std::is_base_of_v<minimamba::NativeBackend<typename K::Scalar>, typename K::Backend>;
#else
  constexpr bool reference = true, native = true;
#endif
  constexpr bool other = !reference || native;  // all where all are tested
  if constexpr (native) check(minimamba::bf16());
  if constexpr (other) check(minimamba::f16());
  if constexpr (reference) check(minimamba::q8());
  if constexpr (native) check(minimamba::q4());
}

/// The native backend with the kernels of one instruction set. Throws ArgumentError where this machine lacks it.
template <class Scalar, minimamba::InstructionSet set>
struct NativeWith : minimamba::NativeBackend<Scalar> {
  explicit NativeWith(minimamba::CpuOptions options = {})
      : minimamba::NativeBackend<Scalar>(
            {.threads = options.threads, .instruction_set = set, .activations = options.activations}) {}
  static constexpr minimamba::InstructionSet needed = set;
};
template <class Scalar>
struct Avx2Backend : NativeWith<Scalar, minimamba::InstructionSet::avx2> {
  using NativeWith<Scalar, minimamba::InstructionSet::avx2>::NativeWith;
};
template <class Scalar>
struct PortableBackend : NativeWith<Scalar, minimamba::InstructionSet::portable> {
  using NativeWith<Scalar, minimamba::InstructionSet::portable>::NativeWith;
};

/// The fixture of tests that are typed over KernelKinds: skips those of instructions that this machine lacks.
template <class K>
class KernelTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!K::available()) GTEST_SKIP() << "this machine has no " << (K::name() == "cuda" ? "NVIDIA card" : K::name());
  }
};

#ifdef MINIMAMBA_TEST_CUDA  // the same tests, on a card
using Kinds = testing::Types<Kind<float, TestedCuda>, Kind<double, TestedCuda>>;
using KernelKinds = Kinds;
#elif defined(MINIMAMBA_TEST_FEW_KINDS)  // for a second compiler, and for sanitizers and emulation, which take long
using Kinds = testing::Types<Kind<double, minimamba::ReferenceBackend>, Kind<float, minimamba::EigenBackend>,
                             Kind<float, minimamba::NativeBackend>>;
#if defined(__aarch64__) || defined(__FMA__)  // where compilers fuse products and sums unless they are told not to
using KernelKinds = testing::Types<Kind<double, minimamba::ReferenceBackend>, Kind<float, minimamba::EigenBackend>,
                                   Kind<float, minimamba::NativeBackend>, Kind<float, PortableBackend>>;
#else
using KernelKinds = Kinds;
#endif
#else
using Kinds = testing::Types<Kind<float, minimamba::ReferenceBackend>, Kind<double, minimamba::ReferenceBackend>,
                             Kind<float, minimamba::EigenBackend>, Kind<double, minimamba::EigenBackend>,
                             Kind<float, minimamba::NativeBackend>, Kind<double, minimamba::NativeBackend>>;

/// For tests of kernels and of whole models: the native kernels that this machine would not pick by itself, too.
using KernelKinds = testing::Types<Kind<float, minimamba::ReferenceBackend>, Kind<double, minimamba::ReferenceBackend>,
                                   Kind<float, minimamba::EigenBackend>, Kind<double, minimamba::EigenBackend>,
                                   Kind<float, minimamba::NativeBackend>, Kind<double, minimamba::NativeBackend>,
                                   Kind<float, Avx2Backend>, Kind<float, PortableBackend>>;
#endif

struct KindNames {
  template <class K>
  static std::string GetName(int) {
    return std::string(K::name()) + (sizeof(typename K::Scalar) == 4 ? "_float" : "_double");
  }
};

/// Rounding error to allow for a sum of `terms` products of numbers near 1: one rounding a term, in the worst case.
template <class Scalar>
double tolerance(std::size_t terms) {
  return static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * static_cast<double>(terms + 8);
}

using Sizes = std::initializer_list<std::size_t>;

/// A matrix on the host, all that the tests compute with.
template <class Scalar>
struct HostMatrix {
  std::size_t rows, cols;
  std::vector<Scalar> values;

  HostMatrix(std::size_t r, std::size_t c) : rows(r), cols(c), values(r * c) {}
  minimamba::View<Scalar> view() { return {values.data(), rows, cols}; }
  minimamba::View<const Scalar> view() const { return {values.data(), rows, cols}; }
  Scalar operator()(std::size_t i, std::size_t j) const { return values[i * cols + j]; }
};

/// Normal numbers, rounded to float so that they are the same in every Scalar.
template <class Scalar>
HostMatrix<Scalar> random_matrix(std::size_t rows, std::size_t cols, std::uint64_t seed, double scale = 1) {
  minimamba::Random random(seed);
  HostMatrix<Scalar> matrix(rows, cols);
  for (Scalar& value : matrix.values) value = static_cast<Scalar>(static_cast<float>(scale * random.normal()));
  return matrix;
}

/// Whether a long double has the squares of all Scalars. By MSVC, and under valgrind, it is no wider than a double.
template <class Scalar>
bool long_double_has_squares() {
  volatile long double largest = std::numeric_limits<Scalar>::max();
  const long double square = largest * largest;
  return square / largest < 2 * largest;  // std::isfinite() compares with a number that valgrind takes for infinite
}

/// Rows of `cols` finite numbers, most of which have squares that are no Scalar, and what they are called.
template <class Scalar>
std::vector<std::pair<std::string, HostMatrix<Scalar>>> extreme_rows(std::size_t cols) {
  using Limits = std::numeric_limits<Scalar>;
  std::vector<std::pair<std::string, HostMatrix<Scalar>>> rows;
  const std::vector<Scalar> huge = {Scalar(0.9) * std::sqrt(Limits::max()), Scalar(1e6) * std::sqrt(Limits::max()),
                                    Scalar(0.999) * Limits::max()};
  for (const Scalar size : huge) {
    const std::string name = std::to_string(std::log10(size));
    auto all = random_matrix<Scalar>(1, cols, 5), mixed = all, one = all;
    for (Scalar& value : all.values) value = std::clamp(value, Scalar(-1), Scalar(1)) * size;
    for (std::size_t j = 0; j < cols; j += 3) mixed.values[j] = all.values[j];
    one.values[cols / 2] = size;
    rows.emplace_back("all of 10^" + name, all);
    rows.emplace_back("every third of 10^" + name, mixed);
    rows.emplace_back("one of 10^" + name, one);
  }
  auto tiny = random_matrix<Scalar>(1, cols, 5);
  for (Scalar& value : tiny.values) value *= 4 * Limits::denorm_min();
  rows.emplace_back("denormal", tiny);
  return rows;
}

inline std::vector<std::int32_t> random_tokens(std::size_t count, std::int64_t vocab_size, std::uint64_t seed = 1) {
  minimamba::Random random(seed);
  std::vector<std::int32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<std::int32_t>(random.uniform(0, static_cast<double>(vocab_size)));
  return tokens;
}

/// Copies numbers that may lie on a card.
template <class Scalar>
void copy_numbers(const Scalar* from, std::size_t count, Scalar* to) {
#ifdef MINIMAMBA_TEST_CUDA
  if (on_card(from)) return minimamba::CudaBackend<Scalar>().download(from, {to, count});
#endif
  std::copy_n(from, count, to);
}
template <class Scalar>
HostMatrix<Scalar> copy_of(minimamba::View<const Scalar> view);
template <class Scalar>
HostMatrix<Scalar> copy_of(minimamba::View<Scalar> view) {
  return copy_of(minimamba::View<const Scalar>(view));
}
template <class Scalar>
HostMatrix<Scalar> copy_of(minimamba::View<const Scalar> view) {
  HostMatrix<Scalar> copy(view.rows(), view.cols());
  for (std::size_t i = 0; i < view.rows(); ++i) {
    copy_numbers(view.data() + i * view.stride(), view.cols(), copy.values.data() + i * view.cols());
  }
  return copy;
}

template <class A, class B>
double largest_difference(const A& a, const B& b) {
  double largest = a.rows == b.rows && a.cols == b.cols ? 0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < std::min(a.values.size(), b.values.size()); ++i) {
    const double difference = std::abs(static_cast<double>(a.values[i]) - static_cast<double>(b.values[i]));
    largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(largest, difference);
  }
  return largest;
}

template <class A>
double largest_magnitude(const A& a) {
  double largest = 0;
  for (const auto value : a.values) largest = std::max(largest, std::abs(static_cast<double>(value)));
  return largest;
}

/// Same shape and the same bits.
template <class Scalar>
bool identical(const HostMatrix<Scalar>& a, const HostMatrix<Scalar>& b) {
  return a.rows == b.rows && a.cols == b.cols &&
         (a.values.empty() || std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(Scalar)) == 0);
}

/// Expects equality to the bit of exact kinds, and to a part of the largest magnitude of the others.
template <class K, class Scalar>
void expect_same(const HostMatrix<Scalar>& a, const HostMatrix<Scalar>& b, const std::string& what) {
  if constexpr (K::exact) {
    EXPECT_TRUE(identical(a, b)) << what << " differ by " << largest_difference(a, b);
  } else {
    const double part = std::max(100 * tolerance<Scalar>(8), K::step);
    EXPECT_LE(largest_difference(a, b), part * (1 + largest_magnitude(a))) << what;
  }
}

/// The whole value of a cache: the states of all layers and rows.
template <class Cache>
auto states(const Cache& cache) {
  using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(cache.ssm(0, 0).data())>>;
  std::vector<HostMatrix<Scalar>> all;
  for (std::size_t layer = 0; layer < cache.layout().layers(); ++layer) {
    for (std::size_t row = 0; row < cache.batch(); ++row) {
      all.push_back(copy_of(cache.conv(layer, row)));
      all.push_back(copy_of(cache.ssm(layer, row)));
    }
  }
  return all;
}

/// A model whose every tensor differs from its initial value, as training would leave it.
template <class Model>
Model trained_looking_model(const typename Model::Config& config, std::uint64_t seed = 3) {
  Model model(config);
  minimamba::for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        using Scalar = typename Model::ScalarType;
        HostMatrix<Scalar> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        minimamba::Random random(seed, name);
        const double scale = name.ends_with("embedding.weight") ? 0.1 : 0.2;
        for (Scalar& value : values.values) value += static_cast<Scalar>(static_cast<float>(scale * random.normal()));
        parameter.upload(model.backend(), 0, values.view());
      },
      model);
  model.refresh();
  return model;
}

/// Token ids as a kernel of this processor takes them.
inline minimamba::View<const std::int32_t> ids(const std::vector<std::int32_t>& tokens) {
  return {tokens.data(), 1, tokens.size()};
}

/// What a layer needs to be run alone, for calls of `rows` rows.
template <class Layer, class Backend>
class Alone {
 public:
  template <class Config>
  Alone(const Config& config, std::size_t rows) : rows_(rows) {
    buffer_.reserve(Backend(), Layer::activation_widths(config), rows);
  }
  auto activations() { return buffer_(rows_); }

 private:
  minimamba::ActivationBuffer<Backend> buffer_;
  std::size_t rows_;
};

/// A cache for `batch` sequences of layers that a test runs by hand.
template <template <class> class Backend, class Scalar>
minimamba::InferenceCache<Scalar, Backend> cache_alone(const minimamba::MambaConfig& config,
                                                       const Backend<Scalar>& backend, std::int64_t batch) {
  return {minimamba::state_layout<minimamba::S6<Scalar, Backend>>(config.resolved()), backend, batch};
}

inline minimamba::MambaConfig small_config() {
  return {.d_model = 24, .n_layer = 2, .vocab_size = 50, .d_state = 5, .d_conv = 4, .dt_rank = 3};
}

}  // namespace support

#ifndef MINIMAMBA_TEST_CUDA
#include "support/models.hpp"
#endif

#endif
