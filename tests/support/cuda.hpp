// The card under the tests that other backends pass: support.hpp includes this where MINIMAMBA_TEST_CUDA is defined.
#ifndef MINIMAMBA_TESTS_CUDA_HPP
#define MINIMAMBA_TESTS_CUDA_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/cuda.hpp"

namespace support {

using minimamba::SlotView;
using minimamba::View;
using minimamba::WeightFormat;

/// Whether an address is one of a card's memory.
inline bool on_card(const void* pointer) {
  using minimamba::gpu::Address;
  int (*attribute)(void*, int, Address) = nullptr;
  static const minimamba::gpu::Library library("libcuda.so.1");
  if (!library || !library.find("cuPointerGetAttribute", attribute)) return false;
  constexpr int memory_type = 2;
  constexpr unsigned device = 2;
  unsigned type = 0;
  return attribute(&type, memory_type, reinterpret_cast<std::uintptr_t>(pointer)) == 0 && type == device;
}

/// A backend of cards, CudaBackend or CudaTraining, with the options of the others, whose kernels also take memory of
/// the host: it is copied to the card, and back when the kernel is done.
template <class Base>
class WithMemoryOfTheHost : public Base {
 public:
  using Scalar = typename Base::Scalar;
  template <WeightFormat W>
  using Matrix = minimamba::CudaMatrix<W>;
  static constexpr const char* kind = "cuda";
  static bool present() { return Base::devices() > 0; }

  explicit WithMemoryOfTheHost(minimamba::CpuOptions options = {}) : Base({.activations = options.activations}) {
    minimamba::detail::check_threads(options.threads);
  }

  // Those of activations in bf16, which are in the card's memory.
  using Base::add;
  using Base::causal_conv1d;
  using Base::matmul;
  using Base::rms_norm;
  using Base::selective_scan;

  void fill(View<Scalar> y, Scalar value) const {
    Mirror mirror(*this);
    Base::fill(mirror.of(y), value);
  }
  void copy(View<const Scalar> x, View<Scalar> y) const {
    Mirror mirror(*this);
    Base::copy(mirror.of(x), mirror.of(y));
  }
  template <WeightFormat W>
  void embed(View<const std::int32_t> tokens, const Matrix<W>& weight, View<Scalar> y) const {
    Mirror mirror(*this);
    Base::embed(mirror.of(tokens), weight, mirror.of(y));
  }
  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    Mirror mirror(*this);
    Base::rms_norm(mirror.of(x), mirror.of(weight), epsilon, mirror.of(y));
  }
  template <WeightFormat W>
  void matmul(View<const Scalar> x, const Matrix<W>& weight, View<Scalar> y) const {
    Mirror mirror(*this);
    Base::matmul(mirror.of(x), weight, mirror.of(y));
  }
  void causal_conv1d(minimamba::Conv1dArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.x = mirror.of(p.x), p.weight = mirror.of(p.weight), p.bias = mirror.of(p.bias), p.y = mirror.of(p.y);
    p.window = mirror.of(p.window), p.kept.states = mirror.of(p.kept.states);
    Base::causal_conv1d(p);
  }
  void selective_scan(minimamba::ScanArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.u = mirror.of(p.u), p.delta = mirror.of(p.delta), p.delta_bias = mirror.of(p.delta_bias), p.a = mirror.of(p.a);
    p.b = mirror.of(p.b), p.c = mirror.of(p.c), p.d = mirror.of(p.d), p.z = mirror.of(p.z), p.y = mirror.of(p.y);
    p.h = mirror.of(p.h), p.kept.states = mirror.of(p.kept.states);
    Base::selective_scan(p);
  }
  void ssd_scan(minimamba::SsdScanArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.x = mirror.of(p.x), p.delta = mirror.of(p.delta), p.delta_bias = mirror.of(p.delta_bias), p.a = mirror.of(p.a);
    p.b = mirror.of(p.b), p.c = mirror.of(p.c), p.d = mirror.of(p.d), p.y = mirror.of(p.y);
    p.h = mirror.of(p.h), p.kept.states = mirror.of(p.kept.states);
    Base::ssd_scan(p);
  }
  void gated_rms_norm(minimamba::GatedRmsNormArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.x = mirror.of(p.x), p.z = mirror.of(p.z), p.weight = mirror.of(p.weight), p.y = mirror.of(p.y);
    Base::gated_rms_norm(p);
  }
  void add(View<const Scalar> x, View<Scalar> y) const {
    Mirror mirror(*this);
    Base::add(mirror.of(x), mirror.of(y));
  }
  void negative_exp(View<const Scalar> x, View<Scalar> y) const {
    Mirror mirror(*this);
    Base::negative_exp(mirror.of(x), mirror.of(y));
  }
  void top_k(minimamba::TopKArguments<Scalar> p) const {
    Mirror mirror(*this);
    p.logits = mirror.of(p.logits), p.largest = mirror.of(p.largest);
    Base::top_k(p);
  }

 protected:
  class Mirror {
   public:
    explicit Mirror(const Base& backend) : backend_(backend) {}
    Mirror(const Mirror&) = delete;
    Mirror& operator=(const Mirror&) = delete;
    ~Mirror() noexcept(false) {
      for (const auto& finish : at_end_) finish();
    }
    template <class T>
    View<T> of(View<T> view) {
      if (view.empty() || on_card(view.data())) return view;
      const std::size_t size = (view.rows() - 1) * view.stride() + view.cols();
      return {mirrored(view.data(), size), view.rows(), view.cols(), view.stride()};
    }
    template <class T>
    SlotView<T> of(SlotView<T> slots) {
      const View<T> first = slots.first();
      if (first.empty() || slots.slots() == 0 || on_card(first.data())) return slots;
      const std::size_t size = (slots.slots() - 1) * slots.stride() + first.rows() * first.cols();
      T* const there = mirrored(first.data(), size);
      return {View<T>(there, first.rows(), first.cols()), slots.slots(), slots.stride()};
    }

   private:
    template <class T>
    T* mirrored(T* host, std::size_t size) {
      using Value = std::remove_const_t<T>;
      auto buffer = std::make_shared<minimamba::CudaBuffer<Value>>(backend_.template allocate<Value>(size));
      backend_.upload({host, size}, buffer->data());
      if constexpr (std::is_const_v<T>) {
        at_end_.push_back([buffer] {});  // lives as long
      } else {
        at_end_.push_back([this, host, size, buffer] { backend_.download(buffer->data(), {host, size}); });
      }
      return buffer->data();
    }
    const Base& backend_;
    std::vector<std::function<void()>> at_end_;
  };
};

template <class Number>
class TestedCuda : public WithMemoryOfTheHost<minimamba::CudaBackend<Number>> {
 public:
  using Scalar = Number;
  using WithMemoryOfTheHost<minimamba::CudaBackend<Number>>::WithMemoryOfTheHost;
};

}  // namespace support

#endif
