// Layers never follow a pointer: a whole model runs on a backend whose memory cannot be touched at the addresses it
// hands out, as that of another device could not, and gives the bits of the reference backend.
#if __has_include(<sys/mman.h>)
#include <sys/mman.h>

#include <filesystem>
#include <fstream>
#include <new>
#include <optional>
#include <stdexcept>

#include "minimamba/io.hpp"
#include "support/support.hpp"

namespace {

using namespace minimamba;
using support::random_tokens;

/// Addresses that fault, and as far beyond each of them the memory that is meant, which only the backend knows.
class Device {
 public:
  static Device& get() {
    static Device device;
    return device;
  }

  std::byte* allocate(std::size_t bytes) {
    const std::size_t begin = used_, rounded = (bytes + 63) / 64 * 64;
    if (rounded > size - used_) throw std::bad_alloc();
    used_ += rounded;
    return base_ + begin;
  }
  /// What is given back is never handed out again, but filled with what is no number in any type.
  void release(std::byte* there, std::size_t bytes) { std::fill_n(there + size, bytes, std::byte{0xFF}); }

  bool holds(const void* pointer) const {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer), base = reinterpret_cast<std::uintptr_t>(base_);
    return address >= base && address - base < 2 * size;
  }
  /// Where the memory of an address of the device really lies.
  template <class T>
  T* real(T* there) const {
    if (there == nullptr) return nullptr;
    if (!holds(there)) throw std::logic_error("a kernel was given a pointer to the host's memory");
    return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(there) + size);
  }

 private:
  static constexpr std::size_t size = std::size_t{1} << 28;

  Device() {
    void* const pages = mmap(nullptr, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::byte*>(pages);
    if (mprotect(base_ + size, size, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }

  std::byte* base_ = nullptr;
  std::size_t used_ = 0;
};

template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t size)
      : data_(size == 0 ? nullptr : reinterpret_cast<T*>(Device::get().allocate(size * sizeof(T)))), size_(size) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBuffer() {
    if (size_ != 0) Device::get().release(reinterpret_cast<std::byte*>(data_), size_ * sizeof(T));
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

template <class Number>
class PoisonBackend;

/// Weights in a layout of the backend's own: nothing but their extents can be asked of them.
template <WeightFormat W>
class OpaqueMatrix {
 public:
  OpaqueMatrix() = default;
  std::size_t rows() const { return hidden_.rows(); }
  std::size_t cols() const { return hidden_.cols(); }

 private:
  template <class>
  friend class PoisonBackend;
  explicit OpaqueMatrix(minimamba::HostMatrix<W> hidden) : hidden_(std::move(hidden)) {}
  minimamba::HostMatrix<W> hidden_;
};

/// The kernels of the reference backend on the memory behind the addresses it is given. To upload or download with a
/// pointer of the wrong side is refused.
template <class Number>
class PoisonBackend {
 public:
  using Scalar = Number;
  template <class T>
  using Buffer = DeviceBuffer<T>;
  template <WeightFormat W>
  using Matrix = OpaqueMatrix<W>;

  explicit PoisonBackend(CpuOptions = {}) {}

  const char* name() const { return "poison"; }
  int threads() const { return 1; }

  template <class T>
  Buffer<T> allocate(std::size_t count) const {
    return Buffer<T>(count);
  }
  void upload(std::span<const Scalar> from, Scalar* there) const { reference_.upload(host(from), real(there)); }
  void download(const Scalar* there, std::span<Scalar> to) const { reference_.download(real(there), host(to)); }
  void fill(View<Scalar> y, Scalar value) const { reference_.fill(real(y), value); }
  void copy(View<const Scalar> x, View<Scalar> y) const { reference_.copy(real(x), real(y)); }
  void gather_rows(View<const Scalar> x, std::span<const std::size_t> rows, View<Scalar> y) const {
    reference_.gather_rows(real(x), rows, real(y));
  }
  void reorder_rows(View<Scalar> y, std::span<const std::size_t> rows) const { reference_.reorder_rows(real(y), rows); }

  template <WeightFormat W>
  Matrix<W> make_matrix(std::size_t rows, std::size_t cols) const {
    return Matrix<W>(reference_.template make_matrix<W>(rows, cols));
  }
  template <WeightFormat W>
  void upload_rows(View<const Scalar> from, std::size_t first, OpaqueMatrix<W>& matrix) const {
    reference_.upload_rows(host(from), first, matrix.hidden_);
  }
  template <WeightFormat W>
  void download_rows(const OpaqueMatrix<W>& matrix, std::size_t first, View<Scalar> to) const {
    reference_.download_rows(matrix.hidden_, first, host(to));
  }

  template <WeightFormat W>
  void embed(std::span<const std::int32_t> tokens, const OpaqueMatrix<W>& weight, View<Scalar> y) const {
    reference_.embed(tokens, weight.hidden_, real(y));
  }
  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    reference_.rms_norm(real(x), real(weight), epsilon, real(y));
  }
  template <WeightFormat W>
  void matmul(View<const Scalar> x, const OpaqueMatrix<W>& weight, View<Scalar> y) const {
    reference_.matmul(real(x), weight.hidden_, real(y));
  }
  void causal_conv1d(const Conv1dArguments<Scalar>& p) const {
    reference_.causal_conv1d({.segments = p.segments,
                              .x = real(p.x),
                              .weight = real(p.weight),
                              .bias = real(p.bias),
                              .window = real(p.window),
                              .y = real(p.y)});
  }
  void selective_scan(const ScanArguments<Scalar>& p) const {
    reference_.selective_scan({.segments = p.segments,
                               .u = real(p.u),
                               .delta = real(p.delta),
                               .delta_bias = real(p.delta_bias),
                               .a = real(p.a),
                               .b = real(p.b),
                               .c = real(p.c),
                               .d = real(p.d),
                               .z = real(p.z),
                               .h = real(p.h),
                               .y = real(p.y)});
  }
  void add(View<const Scalar> x, View<Scalar> y) const { reference_.add(real(x), real(y)); }
  void negative_exp(View<const Scalar> x, View<Scalar> y) const { reference_.negative_exp(real(x), real(y)); }

 private:
  template <class T>
  static T* real(T* there) {
    return Device::get().real(there);
  }
  template <class T>
  static View<T> real(const View<T>& there) {
    return {real(there.data()), there.rows(), there.cols(), there.stride()};
  }
  template <class T>
  static SlotView<T> real(const SlotView<T>& there) {
    return {real(there.first()), there.slots(), there.stride()};
  }
  template <class Memory>
  static const Memory& host(const Memory& memory) {
    if (Device::get().holds(memory.data())) throw std::logic_error("the host was given a pointer to the device");
    return memory;
  }

  ReferenceBackend<Scalar> reference_;
};

static_assert(InferenceBackend<PoisonBackend<float>>);

template <class ScalarType, class WeightType>
struct Stored {
  using Scalar = ScalarType;
  using Weight = WeightType;
};
struct StoredNames {
  template <class S>
  static std::string GetName(int) {
    return std::string(Format<typename S::Scalar>::name) + "_" + std::string(Format<typename S::Weight>::name);
  }
};

/// A folder that is gone when the test ends.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "minimamba-poison-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  std::filesystem::path operator/(const char* name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <class S>
class Layers : public testing::Test {
 public:
  using Scalar = typename S::Scalar;
  using Plain = Mamba<Scalar, ReferenceBackend, typename S::Weight>;
  using Poisoned = Mamba<Scalar, PoisonBackend, typename S::Weight>;
  using Numbers = support::HostMatrix<Scalar>;

  /// A copy on the host, through the backend.
  static Numbers copy_of(View<const Scalar> view) {
    const bool on_device = Device::get().holds(view.data());
    Numbers copy(view.rows(), view.cols());
    for (std::size_t i = 0; i < view.rows(); ++i) {
      const auto row = copy.view().row(i);
      if (on_device) {
        PoisonBackend<Scalar>().download(view.rows_from(i, 1).data(), row);
      } else {
        ReferenceBackend<Scalar>().download(view.rows_from(i, 1).data(), row);
      }
    }
    return copy;
  }

  template <class Cache>
  static std::vector<Numbers> states(const Cache& cache) {
    std::vector<Numbers> all;
    for (std::size_t layer = 0; layer < static_cast<std::size_t>(cache.config().n_layer); ++layer) {
      for (std::size_t row = 0; row < cache.batch(); ++row) {
        all.push_back(copy_of(cache.conv(layer, row)));
        all.push_back(copy_of(cache.ssm(layer, row)));
      }
    }
    return all;
  }

  template <class Model>
  static std::vector<Numbers> parameters(const Model& model) {
    std::vector<Numbers> all;
    for_each_parameter(
        [&](std::string_view, const auto& parameter) {
          all.emplace_back(parameter.rows(), parameter.cols());
          parameter.download(model.backend(), 0, all.back().view());
        },
        model);
    return all;
  }

  static void expect_identical(const std::vector<Numbers>& a, const std::vector<Numbers>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(identical(a[i], b[i])) << i;
  }

  static MambaConfig config() {
    MambaConfig c = support::small_config();
    c.bias = true;
    c.tie_embeddings = false;
    return c;
  }

  /// What a model answers, and what is left in its cache, by every way of reading that there is.
  template <class Model>
  static std::vector<Numbers> read(const Model& model) {
    constexpr std::size_t batch = 3, length = 100;  // together more than one chunk
    std::vector<Numbers> all;
    const auto keep = [&](View<const Scalar> logits) { all.push_back(copy_of(logits)); };
    const auto keep_states = [&](const auto& cache) {
      for (Numbers& state : states(cache)) all.push_back(std::move(state));
    };
    auto one = model.make_cache();
    keep(model.forward(random_tokens(300, 50), one));
    for (const std::int32_t token : {4, 9, 30}) keep(model.forward(std::vector<std::int32_t>{token}, one));
    keep(model.forward({}, one));
    keep(model.forward_last(random_tokens(20, 50), one));
    keep_states(one);

    auto many = model.make_cache(batch);
    keep(model.forward(random_tokens(batch * length, 50), many));
    keep(model.forward_last(random_tokens(batch * length, 50, 2), many));
    const auto clone = many.clone();
    auto gathered = clone.gather({2, 0, 0, 1});
    keep(model.forward(random_tokens(4, 50), gathered));
    gathered.reorder(std::vector<std::size_t>{1, 2, 0, 2});
    const auto few = random_tokens(5, 50, 3), more = random_tokens(270, 50, 4);
    keep(model.forward(std::vector<minimamba::Run>{{3, few}, {0, more}, {1, {}}}, gathered));
    auto work = typename Model::WorkspaceType();
    keep(model.forward_last(std::vector<minimamba::Run>{{3, more}, {2, few}}, gathered, work));
    keep_states(gathered);
    many.reset();
    keep_states(many);
    keep(model.forward(random_tokens(batch, 50), many));
    keep_states(clone);
    return all;
  }

  template <class Model>
  static std::vector<std::int32_t> continuation(const Model& model, const GenerateOptions& options) {
    auto cache = model.make_cache();
    std::vector<std::int32_t> tokens;
    for (const auto token : generate(model, cache, random_tokens(10, 50), options)) tokens.push_back(token);
    return tokens;
  }
};
using StoredKinds = testing::Types<Stored<float, float>, Stored<double, bf16>>;
TYPED_TEST_SUITE(Layers, StoredKinds, StoredNames);

TYPED_TEST(Layers, InitialiseWithoutTouchingATensor) {
  const typename TestFixture::Plain plain(this->config());
  const typename TestFixture::Poisoned poisoned(this->config());
  this->expect_identical(this->parameters(plain), this->parameters(poisoned));
}

TYPED_TEST(Layers, RunWithoutTouchingATensor) {
  for (const std::int64_t d_conv : {1, 4}) {
    auto config = this->config();
    config.d_conv = d_conv;
    config.conv_bias = config.bias = d_conv == 4;
    config.tie_embeddings = d_conv == 1;
    const auto plain = support::trained_looking_model<typename TestFixture::Plain>(config);
    const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(config);
    this->expect_identical(this->read(plain), this->read(poisoned));
  }
}

TYPED_TEST(Layers, GenerateWithoutTouchingATensor) {
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  for (const double temperature : {0.0, 1.0}) {
    const GenerateOptions options{.max_new_tokens = 20, .temperature = temperature, .top_p = 0.95};
    EXPECT_EQ(this->continuation(plain, options), this->continuation(poisoned, options));
  }
}

TYPED_TEST(Layers, AreCopiedWithoutTouchingATensor) {
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  auto poisoned = TestFixture::Poisoned::shapes_only(this->config());
  allocate_parameters(poisoned, poisoned.backend());
  copy_parameters(plain, plain.backend(), poisoned, poisoned.backend());
  poisoned.refresh();
  auto moved_from = std::make_optional(poisoned.clone());
  const auto moved = std::move(*moved_from);
  moved_from.reset();
  typename TestFixture::Plain back(this->config());
  copy_parameters(moved, moved.backend(), back, back.backend());
  back.refresh();
  this->expect_identical(this->parameters(plain), this->parameters(back));
  const auto expected = this->read(plain);
  this->expect_identical(expected, this->read(moved));
  this->expect_identical(expected, this->read(back));
}

TYPED_TEST(Layers, AreSavedAndLoadedWithoutTouchingATensor) {
  const Folder folder;
  const auto plain = support::trained_looking_model<typename TestFixture::Plain>(this->config());
  const auto poisoned = support::trained_looking_model<typename TestFixture::Poisoned>(this->config());
  save(plain, folder / "plain");
  save(poisoned, folder / "poisoned");
  for (const char* const file : {"model.safetensors", "config.json"}) {
    EXPECT_EQ(text_of(folder / "plain" / file), text_of(folder / "poisoned" / file)) << file;
  }
  const auto loaded = load<typename TestFixture::Poisoned>(folder / "poisoned");
  this->expect_identical(this->parameters(plain), this->parameters(loaded));
  this->expect_identical(this->read(plain), this->read(loaded));
}

TEST(PoisonBackend, FaultsWhereItsMemoryIsTouched) {
  auto buffer = PoisonBackend<float>().allocate<float>(8);
  EXPECT_DEATH(std::printf("%f", static_cast<double>(*buffer.data())), "");
  std::vector<float> host(8);
  EXPECT_THROW(PoisonBackend<float>().upload(host, host.data()), std::logic_error);
  EXPECT_THROW(PoisonBackend<float>().upload({buffer.data(), 8}, buffer.data()), std::logic_error);
}

}  // namespace
#endif
