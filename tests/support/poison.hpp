// A backend as that of another device would be: its memory faults when it is touched at the addresses that it hands
// out, and what it is asked for waits until something is downloaded. It computes what the reference backend does.
#ifndef MINIMAMBA_TESTS_POISON_HPP
#define MINIMAMBA_TESTS_POISON_HPP

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "minimamba/train.hpp"

namespace support {

using minimamba::Segment;
using minimamba::SlotView;
using minimamba::View;
using minimamba::WeightFormat;

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
  /// What is given back is never handed out again, but filled with what is no number in any type, once all is done
  /// that was asked for before.
  void release(std::byte* there, std::size_t bytes) {
    later([=] { std::fill_n(there + size, bytes, std::byte{0xFF}); });
  }

  /// An address of the device for memory of the host that a test keeps as the device's.
  const std::byte* alias(const void* memory, std::size_t bytes) {
    const auto* const real = static_cast<const std::byte*>(memory);
    for (const Alias& known : aliases_) {
      if (known.real == real && known.bytes == bytes) return known.begin;
    }
    aliases_.push_back({allocate(bytes), bytes, real});
    return aliases_.back().begin;
  }

  /// The address that stands for real memory of the device.
  template <class T>
  T* address_of(T* real) const {
    return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(real) - size);
  }

  /// What is asked for is done when something is downloaded, and not before.
  void later(std::function<void()> work) { queue_.push_back(std::move(work)); }
  void finish() {
    ++waits_;
    for (const auto& work : std::exchange(queue_, {})) work();
  }
  std::size_t waiting() const { return queue_.size(); }
  /// How often somebody has waited.
  std::size_t waits() const { return waits_; }

  bool holds(const void* pointer) const {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer), base = reinterpret_cast<std::uintptr_t>(base_);
    return address >= base && address - base < 2 * size;
  }
  /// Where the memory of an address of the device really lies.
  template <class T>
  T* real(T* there) const {
    if (there == nullptr) return nullptr;
    if (!holds(there)) throw std::logic_error("a kernel was given a pointer to the host's memory");
    for (const Alias& alias : aliases_) {
      const auto offset = reinterpret_cast<std::uintptr_t>(there) - reinterpret_cast<std::uintptr_t>(alias.begin);
      if (offset < alias.bytes) return reinterpret_cast<T*>(const_cast<std::byte*>(alias.real) + offset);
    }
    return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(there) + size);
  }

 private:
  static constexpr std::size_t size = std::size_t{1} << 30;

  Device() {
    void* const pages = mmap(nullptr, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::byte*>(pages);
    if (mprotect(base_ + size, size, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }

  struct Alias {
    const std::byte* begin;
    std::size_t bytes;
    const std::byte* real;
  };

  std::byte* base_ = nullptr;
  std::size_t used_ = 0, waits_ = 0;
  std::vector<std::function<void()>> queue_;
  std::vector<Alias> aliases_;
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
  OpaqueMatrix(OpaqueMatrix&&) noexcept = default;
  OpaqueMatrix& operator=(OpaqueMatrix&& other) noexcept {
    std::swap(hidden_, other.hidden_);
    return *this;
  }
  ~OpaqueMatrix() {
    if (hidden_) Device::get().later([kept = std::move(hidden_)] {});  // for what waits
  }
  std::size_t rows() const { return hidden_ ? hidden_->rows() : 0; }
  std::size_t cols() const { return hidden_ ? hidden_->cols() : 0; }

 private:
  template <class>
  friend class PoisonBackend;
  template <class>
  friend class PoisonTraining;
  explicit OpaqueMatrix(minimamba::HostMatrix<W> hidden)
      : hidden_(std::make_shared<minimamba::HostMatrix<W>>(std::move(hidden))) {}
  std::shared_ptr<minimamba::HostMatrix<W>> hidden_;
};

/// Memory of the host is copied when it is given, and pointers of the wrong side are refused at once.
template <class Number>
class PoisonBackend {
 public:
  using Scalar = Number;
  template <class T>
  using Buffer = DeviceBuffer<T>;
  template <WeightFormat W>
  using Matrix = OpaqueMatrix<W>;

  explicit PoisonBackend(minimamba::CpuOptions = {}) {}

  const char* name() const { return "poison"; }
  int threads() const { return 1; }

  template <class T>
  Buffer<T> allocate(std::size_t count) const {
    return Buffer<T>(count);
  }
  template <class T>
  void upload(std::type_identity_t<std::span<const T>> from, T* there) const {
    later([copy = copied(from), to = real(there)] { std::copy(copy.begin(), copy.end(), to); });
  }
  template <class T>
  void download(const T* there, std::type_identity_t<std::span<T>> to) const {
    host(to.data());
    const T* const from = real(there);
    Device::get().finish();
    std::copy_n(from, to.size(), to.begin());
  }
  void fill(View<Scalar> y, Scalar value) const {
    later([=, y = real(y)] { reference().fill(y, value); });
  }
  void copy(View<const Scalar> x, View<Scalar> y) const {
    later([x = real(x), y = real(y)] { reference().copy(x, y); });
  }
  void gather_rows(View<const Scalar> x, std::span<const std::size_t> rows, View<Scalar> y) const {
    later([x = real(x), rows = copied(rows), y = real(y)] { reference().gather_rows(x, rows, y); });
  }
  void reorder_rows(View<Scalar> y, std::span<const std::size_t> rows) const {
    later([rows = copied(rows), y = real(y)] { reference().reorder_rows(y, rows); });
  }

  template <WeightFormat W>
  Matrix<W> make_matrix(std::size_t rows, std::size_t cols) const {
    return Matrix<W>(reference().template make_matrix<W>(rows, cols));
  }
  template <WeightFormat W>
  void upload_rows(View<const Scalar> from, std::size_t first, OpaqueMatrix<W>& matrix) const {
    std::vector<Scalar> rows;
    for (std::size_t i = 0; i < from.rows(); ++i) {
      const std::vector<Scalar> row = copied(from.row(i));
      rows.insert(rows.end(), row.begin(), row.end());
    }
    later([rows = std::move(rows), count = from.rows(), cols = from.cols(), first, hidden = matrix.hidden_] {
      reference().upload_rows(View<const Scalar>(rows.data(), count, cols), first, *hidden);
    });
  }
  template <WeightFormat W>
  void download_rows(const OpaqueMatrix<W>& matrix, std::size_t first, View<Scalar> to) const {
    host(to.data());
    Device::get().finish();
    reference().download_rows(*matrix.hidden_, first, to);
  }

  template <WeightFormat W>
  void upload_blocks(View<const typename minimamba::Format<W>::Block> from, std::size_t first,
                     OpaqueMatrix<W>& matrix) const {
    using Block = typename minimamba::Format<W>::Block;
    host(from.data());
    std::vector<Block> rows(from.data(), from.data() + from.rows() * from.cols());
    later([rows = std::move(rows), count = from.rows(), cols = from.cols(), first, hidden = matrix.hidden_] {
      reference().upload_blocks(View<const Block>(rows.data(), count, cols), first, *hidden);
    });
  }
  template <WeightFormat W>
  void download_blocks(const OpaqueMatrix<W>& matrix, std::size_t first,
                       View<typename minimamba::Format<W>::Block> to) const {
    host(to.data());
    Device::get().finish();
    reference().download_blocks(*matrix.hidden_, first, to);
  }

  template <WeightFormat W>
  void embed(View<const std::int32_t> tokens, const OpaqueMatrix<W>& weight, View<Scalar> y) const {
    later([tokens = real(tokens), hidden = weight.hidden_, y = real(y)] { reference().embed(tokens, *hidden, y); });
  }
  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    later([x = real(x), weight = real(weight), epsilon, y = real(y)] { reference().rms_norm(x, weight, epsilon, y); });
  }
  template <WeightFormat W>
  void matmul(View<const Scalar> x, const OpaqueMatrix<W>& weight, View<Scalar> y) const {
    later([x = real(x), hidden = weight.hidden_, y = real(y)] { rounding().matmul(x, *hidden, y); });
  }
  void causal_conv1d(minimamba::Conv1dArguments<Scalar> p) const {
    make_real(p.x, p.weight, p.bias, p.window, p.y, p.kept.states);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().causal_conv1d(p);
    });
  }
  void selective_scan(minimamba::ScanArguments<Scalar> p) const {
    make_real(p.u, p.delta, p.delta_bias, p.a, p.b, p.c, p.d, p.z, p.h, p.y, p.kept.states);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().selective_scan(p);
    });
  }
  void top_k(minimamba::TopKArguments<Scalar> p) const {
    make_real(p.logits, p.largest);
    later([p] { reference().top_k(p); });
  }
  void ssd_scan(minimamba::SsdScanArguments<Scalar> p) const {
    make_real(p.x, p.delta, p.delta_bias, p.a, p.b, p.c, p.d, p.h, p.y, p.kept.states);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().ssd_scan(p);
    });
  }
  void gated_rms_norm(minimamba::GatedRmsNormArguments<Scalar> p) const {
    make_real(p.x, p.z, p.weight, p.y);
    later([p] { reference().gated_rms_norm(p); });
  }
  void add(View<const Scalar> x, View<Scalar> y) const {
    later([x = real(x), y = real(y)] { reference().add(x, y); });
  }
  void pool_rows(minimamba::PoolArguments<Scalar> p) const {
    make_real(p.x, p.y);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().pool_rows(p);
    });
  }
  void negative_exp(View<const Scalar> x, View<Scalar> y) const {
    later([x = real(x), y = real(y)] { reference().negative_exp(x, y); });
  }

 protected:
  static const minimamba::ReferenceTraining<Scalar>& reference() {
    static const minimamba::ReferenceTraining<Scalar> backend;
    return backend;
  }
  /// For products, whose activations a training backend does not round.
  static const minimamba::ReferenceBackend<Scalar>& rounding() {
    static const minimamba::ReferenceBackend<Scalar> backend;
    return backend;
  }
  template <class Work>
  static void later(Work&& work) {
    Device::get().later(std::forward<Work>(work));
  }
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
  template <class... Views>
  static void make_real(Views&... views) {
    ((views = real(views)), ...);
  }
  static void host(const void* pointer) {
    if (Device::get().holds(pointer)) throw std::logic_error("the host was given a pointer to the device");
  }
  template <class T>
  static std::vector<std::remove_const_t<T>> copied(std::span<T> from) {
    host(from.data());
    return {from.begin(), from.end()};
  }
};

template <class Number>
class PoisonTraining : public PoisonBackend<Number> {
  using Base = PoisonBackend<Number>;
  using Base::copied;
  using Base::later;
  using Base::make_real;
  using Base::real;
  using Base::reference;

 public:
  using Scalar = Number;
  using Weights = OpaqueMatrix<Scalar>;
  using Base::Base;

  static View<Scalar> elements(Weights& matrix) {
    const View<Scalar> all = reference().elements(*matrix.hidden_);
    if (Device::get().holds(all.data())) return {Device::get().address_of(all.data()), 1, all.cols()};
    const std::byte* const there = Device::get().alias(all.data(), all.cols() * sizeof(Scalar));
    return {reinterpret_cast<Scalar*>(const_cast<std::byte*>(there)), 1, all.cols()};
  }
  static View<const Scalar> elements(const Weights& matrix) { return elements(const_cast<Weights&>(matrix)); }

  static std::size_t matrix_size(std::size_t rows, std::size_t cols) { return reference().matrix_size(rows, cols); }
  static Weights matrix_over(std::size_t rows, std::size_t cols, Scalar* memory) {
    return Weights(reference().matrix_over(rows, cols, real(memory)));
  }

  void matmul_backward_input(View<const Scalar> d_y, const Weights& weight, View<Scalar> d_x) const {
    later([d_y = real(d_y), hidden = weight.hidden_, d_x = real(d_x)] {
      reference().matmul_backward_input(d_y, *hidden, d_x);
    });
  }
  void matmul_backward_weight(View<const Scalar> d_y, View<const Scalar> x, Weights& d_weight) const {
    later([d_y = real(d_y), x = real(x), hidden = d_weight.hidden_] {
      reference().matmul_backward_weight(d_y, x, *hidden);
    });
  }
  void embed_backward(View<const std::int32_t> tokens, View<const Scalar> d_y, Weights& d_weight) const {
    later([tokens = real(tokens), d_y = real(d_y), hidden = d_weight.hidden_] {
      reference().embed_backward(tokens, d_y, *hidden);
    });
  }
  void add_backward(View<const Scalar> d_y, View<Scalar> d_x) const {
    later([d_y = real(d_y), d_x = real(d_x)] { reference().add_backward(d_y, d_x); });
  }
  void negative_exp_backward(View<const Scalar> y, View<const Scalar> d_y, View<Scalar> d_x) const {
    later([y = real(y), d_y = real(d_y), d_x = real(d_x)] { reference().negative_exp_backward(y, d_y, d_x); });
  }
  void rms_norm_backward(minimamba::RmsNormBackwardArguments<Scalar> p) const {
    make_real(p.x, p.weight, p.d_y, p.d_x, p.d_weight);
    later([p] { reference().rms_norm_backward(p); });
  }
  void causal_conv1d_backward(minimamba::Conv1dBackwardArguments<Scalar> p) const {
    make_real(p.x, p.weight, p.bias, p.kept.states, p.d_y, p.d_x, p.d_weight, p.d_bias, p.d_window);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().causal_conv1d_backward(p);
    });
  }
  void selective_scan_backward(minimamba::ScanBackwardArguments<Scalar> p) const {
    make_real(p.u, p.delta, p.delta_bias, p.a, p.b, p.c, p.d, p.z, p.kept.states, p.d_y);
    make_real(p.d_u, p.d_delta, p.d_b, p.d_c, p.d_z, p.d_delta_bias, p.d_a, p.d_d, p.d_h);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().selective_scan_backward(p);
    });
  }
  void ssd_scan_backward(minimamba::SsdScanBackwardArguments<Scalar> p) const {
    make_real(p.x, p.delta, p.delta_bias, p.a, p.b, p.c, p.d, p.kept.states, p.d_y);
    make_real(p.d_x, p.d_delta, p.d_b, p.d_c, p.d_delta_bias, p.d_a, p.d_d, p.d_h);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().ssd_scan_backward(p);
    });
  }
  void gated_rms_norm_backward(minimamba::GatedRmsNormBackwardArguments<Scalar> p) const {
    make_real(p.x, p.z, p.weight, p.d_y, p.d_x, p.d_z, p.d_weight);
    later([p] { reference().gated_rms_norm_backward(p); });
  }
  void pool_rows_backward(minimamba::PoolBackwardArguments<Scalar> p) const {
    make_real(p.x, p.d_y, p.d_x);
    later([p, segments = copied(p.segments)]() mutable {
      p.segments = segments;
      reference().pool_rows_backward(p);
    });
  }
  void cross_entropy(minimamba::CrossEntropyArguments<Scalar> p) const {
    make_real(p.logits, p.targets, p.d_logits, p.loss);
    later([p] { reference().cross_entropy(p); });
  }
  void dropout(View<Scalar> x, const minimamba::Dropout& dropout) const {
    later([x = real(x), dropout] { reference().dropout(x, dropout); });
  }
  void sum_of_squares(View<const Scalar> x, View<double> sum) const {
    later([x = real(x), sum = real(sum)] { reference().sum_of_squares(x, sum); });
  }
  void lerp(View<Scalar> y, View<const Scalar> x, double rate) const {
    later([y = real(y), x = real(x), rate] { reference().lerp(y, x, rate); });
  }
  void adamw(minimamba::AdamWArguments<Scalar> p) const {
    make_real(p.weight, p.gradient, p.mean, p.variance);
    later([p] { reference().adamw(p); });
  }
};

}  // namespace support

#endif
