// Memory of a card: buffers, weight matrices, and the names of the kernels.
#ifndef MINIMAMBA_BACKEND_CUDA_MEMORY_HPP
#define MINIMAMBA_BACKEND_CUDA_MEMORY_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "minimamba/backend/cuda/device.hpp"
#include "minimamba/core/formats.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Kernels of Program::layers and layers_double, in the order of their names below. The first ones are also those of
/// layers_bf16. Those of the formats begin at place, fetch and embed, three for each format.
enum LayerKernel : std::size_t {
  add,
  rms_norm,
  rms_norm_of_rows,
  causal_conv1d,
  causal_conv1d_of_tokens,
  keep_windows,
  scan_one,
  scan_to_16,
  scan_many_to_16,
  scan_to_64,
  scan_to_256,
  scan_to_1024,
  fill,
  copy,
  write_words,
  send_to_host,
  gather_rows,
  move_rows,
  negative_exp,
  negative_log_likelihood,
  top_k,
  rms_norm_to_bf16,
  rms_norm_of_rows_to_bf16,
  causal_conv1d_to_both,
  first_of_formats
};
inline constexpr std::array layer_kernels = {"add",
                                             "rms_norm",
                                             "rms_norm_of_rows",
                                             "causal_conv1d",
                                             "causal_conv1d_of_tokens",
                                             "keep_windows",
                                             "scan_one",
                                             "scan_8x2",
                                             "scan_4x4",
                                             "scan_16x4",
                                             "scan_32x8",
                                             "scan_32x32",
                                             "fill",
                                             "copy",
                                             "write_words",
                                             "send_to_host",
                                             "gather_rows",
                                             "move_rows",
                                             "negative_exp",
                                             "negative_log_likelihood",
                                             "top_k",
                                             "rms_norm_to_bf16",
                                             "rms_norm_of_rows_to_bf16",
                                             "causal_conv1d_to_both",
                                             "place_f64",
                                             "fetch_f64",
                                             "embed_f64",
                                             "place_f32",
                                             "fetch_f32",
                                             "embed_f32",
                                             "place_f16",
                                             "fetch_f16",
                                             "embed_f16",
                                             "place_bf16",
                                             "fetch_bf16",
                                             "embed_bf16",
                                             "place_q8",
                                             "fetch_q8",
                                             "embed_q8",
                                             "place_q4",
                                             "fetch_q4",
                                             "embed_q4"};

static_assert(layer_kernels.size() == first_of_formats + 18);
/// Their parts: what a backend needs to be made, layers, scans of up to 16 states and of more, and the rest.
enum LayerPart : std::size_t { memory_part, mixer_part, scan_part, wide_scan_part, other_part };
inline constexpr std::array layer_parts = {PartBegin{add, mixer_part},
                                           PartBegin{scan_one, scan_part},
                                           PartBegin{scan_to_64, wide_scan_part},
                                           PartBegin{fill, memory_part},
                                           PartBegin{negative_exp, other_part},
                                           PartBegin{rms_norm_to_bf16, mixer_part},
                                           PartBegin{first_of_formats, other_part}};
/// Kernels of Program::layers_bf16: those before fill, and some of its own.
inline constexpr std::size_t rms_norm_of_activations = fill, causal_conv1d_of_pairs = fill + 1,
                             scan_many_of_activations = fill + 2;
inline constexpr auto bf16_layer_kernels = [] {
  std::array<const char*, scan_many_of_activations + 1> names{};
  std::copy_n(layer_kernels.begin(), fill, names.begin());
  names[rms_norm_of_activations] = "rms_norm_of_activations";
  names[causal_conv1d_of_pairs] = "causal_conv1d_of_pairs";
  names[scan_many_of_activations] = "scan_4x4_of_many";
  return names;
}();
/// The parts of layers but the first.
inline constexpr std::array bf16_layer_parts = {
    PartBegin{add, mixer_part - 1}, PartBegin{scan_one, scan_part - 1}, PartBegin{scan_to_64, wide_scan_part - 1},
    PartBegin{rms_norm_of_activations, mixer_part - 1}, PartBegin{scan_many_of_activations, scan_part - 1}};

/// Kernels of Program::ssd and ssd_double.
enum SsdKernel : std::size_t {
  ssd_scan_one_to_64,
  ssd_scan_one_to_128,
  ssd_scan_one_to_256,
  ssd_scan_to_64,
  ssd_scan_to_128,
  ssd_scan_to_256,
  ssd_scan_to_1024,
  gated_rms_norm
};
inline constexpr std::array ssd_kernels = {"ssd_scan_one_16x4", "ssd_scan_one_32x4", "ssd_scan_one_32x8",
                                           "ssd_scan_16x4",     "ssd_scan_32x4",     "ssd_scan_32x8",
                                           "ssd_scan_32x32",    "gated_rms_norm"};
static_assert(ssd_kernels.size() == gated_rms_norm + 1);

/// Kernels of Program::products_tf32: these kinds for f32 and for f16.
enum Tf32Kernel : std::size_t {
  tf32_row,
  tf32_row_deep,
  tf32_few,
  tf32_some_16x8,
  tf32_some_16x16,
  tf32_some_32x16,
  tf32_some_32x32,
  tf32_many_64,
  tf32_many_128,
  tf32_normed
};
inline constexpr std::size_t tf32_kinds = 10;
inline constexpr std::array tf32_kernels = {
    "multiply_f32_row",        "multiply_f32_row_deep",   "multiply_f32_few",        "multiply_f32_some_16x8",
    "multiply_f32_some_16x16", "multiply_f32_some_32x16", "multiply_f32_some_32x32", "multiply_f32_many_64",
    "multiply_f32_many_128",   "multiply_f32_normed",     "multiply_f16_row",        "multiply_f16_row_deep",
    "multiply_f16_few",        "multiply_f16_some_16x8",  "multiply_f16_some_16x16", "multiply_f16_some_32x16",
    "multiply_f16_some_32x32", "multiply_f16_many_64",    "multiply_f16_many_128",   "multiply_f16_normed"};
static_assert(tf32_kernels.size() == 2 * tf32_kinds);
/// Three parts for each format.
inline constexpr std::array tf32_parts = {
    PartBegin{tf32_row, 0},
    PartBegin{tf32_some_16x8, 1},
    PartBegin{tf32_many_128, 2},
    PartBegin{tf32_normed, 0},
    PartBegin{tf32_kinds, 3},
    PartBegin{tf32_kinds + tf32_some_16x8, 4},
    PartBegin{tf32_kinds + tf32_many_128, 5},
    PartBegin{tf32_kinds + tf32_normed, 3},
};
/// Bytes of dynamic shared memory: the four stages of multiply_many.
constexpr unsigned tf32_shared_memory(std::size_t kernel) {
  const std::size_t kind = kernel % tf32_kinds, rows = kind == tf32_many_64 ? 64 : 128;
  const std::size_t weight = kernel < tf32_kinds ? 4 : 2;
  return kind == tf32_many_64 || kind == tf32_many_128
             ? static_cast<unsigned>(std::size_t{4} * 16 * (rows * 4 + 128 * weight))
             : 0;
}

/// Kernels of Program::products_fma.
inline constexpr std::array fma_kernels = {"multiply_bf16_any", "multiply_q8_any", "multiply_q4_any"};

/// Kernels of Program::products_mma, products_q8 and products_q4, a program for each format: these kinds, and then
/// those that round activations.
enum MmaKernel : std::size_t { mma_few_8, mma_few_16, mma_few_32, mma_few_64, mma_many_64, mma_many_128 };
inline constexpr std::size_t mma_kinds = 6, quantise = mma_kinds, bf16_normed = mma_kinds,
                             round_to_bf16 = bf16_normed + 1;
inline constexpr std::array mma_kernels = {"multiply_bf16_few_8",  "multiply_bf16_few_16",  "multiply_bf16_few_32",
                                           "multiply_bf16_few_64", "multiply_bf16_many_64", "multiply_bf16_many_128",
                                           "multiply_bf16_normed", "round_to_bf16"};
inline constexpr std::array q8_kernels = {"multiply_q8_few_8",
                                          "multiply_q8_few_16",
                                          "multiply_q8_few_32",
                                          "multiply_q8_few_64",
                                          "multiply_q8_many_64",
                                          "multiply_q8_many_128",
                                          "quantise"};
inline constexpr std::array q4_kernels = {"multiply_q4_few_8",
                                          "multiply_q4_few_16",
                                          "multiply_q4_few_32",
                                          "multiply_q4_few_64",
                                          "multiply_q4_many_64",
                                          "multiply_q4_many_128",
                                          "quantise"};
static_assert(mma_kernels.size() == round_to_bf16 + 1 && q8_kernels.size() == quantise + 1);
inline constexpr std::array mma_parts = {PartBegin{mma_few_8, 0}, PartBegin{mma_few_64, 1}, PartBegin{mma_many_128, 2},
                                         PartBegin{mma_kinds, 0}};
/// Those of a format, counted from bf16, and its program.
constexpr std::span<const char* const> mma_names(std::size_t format) {
  if (format == 0) return mma_kernels;
  return format == 1 ? q8_kernels : q4_kernels;
}
constexpr Program mma_program(std::size_t format) {
  return static_cast<Program>(static_cast<std::size_t>(Program::products_mma) + format);
}
/// Bytes of dynamic shared memory: the stages of multiply_many.
constexpr unsigned mma_shared_memory(std::size_t format, std::size_t kind) {
  if (kind != mma_many_64 && kind != mma_many_128) return 0;
  const unsigned groups = kind == mma_many_64 ? 8 : 16, stages = format == 1 ? 2 : 3;
  return stages * (8 * 4 * (format == 2 ? 256 : 512) + groups * 1024 + (format == 0 ? 0 : (8 + groups) * 128));
}

/// Kernels of Program::products_wide: tiles of so many outputs and rows, with up to so many stages. `slice` and `end`
/// are about how many clocks a slice of a tile takes, and what comes after.
struct WideTile {
  std::size_t outputs, rows;
  unsigned threads, stages, slice, end;

  constexpr unsigned shared(std::size_t in_flight) const {
    const std::size_t results = std::max(rows * 144, std::min<std::size_t>(rows, 128) * 272);
    return static_cast<unsigned>(1024 + in_flight * (outputs + rows) * 128 + outputs / 64 * results);
  }
  /// For a product of so many slices: with many of them it is worth that no other block finds room beside this one.
  constexpr std::size_t stages_for(std::size_t slices) const {
    return slices >= 32 ? stages : std::min<std::size_t>(stages, 8);
  }
};
inline constexpr std::array wide_kernels = {
    "multiply_bf16_wide_256", "multiply_bf16_wide_128", "multiply_bf16_wide_128x64", "multiply_bf16_wide_64",
    "multiply_bf16_wide_32",  "multiply_bf16_some_8",   "multiply_bf16_some_16",     "multiply_bf16_some_32",
    "multiply_bf16_conv_64",  "multiply_bf16_conv_32"};
inline constexpr std::array wide_parts = {PartBegin{0, 0}, PartBegin{1, 1}, PartBegin{2, 2}, PartBegin{4, 3},
                                          PartBegin{8, 4}};
/// Whether parts are all of a program.
constexpr bool are_all(std::span<const PartBegin> parts, Program program) {
  std::size_t count = 0;
  for (const PartBegin& begin : parts) count = std::max(count, begin.part + 1);
  return count == parts_of(program);
}
static_assert(are_all(layer_parts, Program::layers) && are_all(bf16_layer_parts, Program::layers_bf16) &&
              are_all(tf32_parts, Program::products_tf32) && are_all(mma_parts, Program::products_mma) &&
              are_all(wide_parts, Program::products_wide));
inline constexpr std::array<WideTile, 5> wide_tiles = {{{128, 256, 384, 3, 1600, 3000},
                                                        {128, 128, 384, 4, 920, 1500},
                                                        {128, 64, 384, 7, 560, 900},
                                                        {64, 64, 160, 8, 370, 900},
                                                        {64, 32, 160, 16, 250, 600}}};
/// And others for few rows: blocks of 16 outputs and so many rows, whose warps copy so many stages ahead. The result is
/// [2 turns][warps][16 outputs][pitch].
struct SomeTile {
  std::size_t rows;
  unsigned stages, warps;

  constexpr unsigned shared() const {
    const std::size_t pitch = rows == 8 ? 8 : rows + 8;
    return static_cast<unsigned>(warps * (stages * (2048 + rows * 128) + 2 * 16 * pitch * 4));
  }
};
inline constexpr std::array<SomeTile, 3> some_tiles = {{{8, 4, 16}, {16, 4, 8}, {32, 3, 8}}};
/// And the last of wide_tiles, from the first_convolved on, once more: with a convolution of what they give.
inline constexpr std::size_t first_convolved = 3, first_conv = wide_tiles.size() + some_tiles.size();
static_assert(wide_kernels.size() == first_conv + wide_tiles.size() - first_convolved);
constexpr unsigned wide_shared_memory(std::size_t kernel) {
  if (kernel >= first_conv) return wide_shared_memory(kernel - first_conv + first_convolved);
  return kernel < wide_tiles.size() ? wide_tiles[kernel].shared(wide_tiles[kernel].stages)
                                    : some_tiles[kernel - wide_tiles.size()].shared();
}

/// Kernels of Program::products_double: one for each format, and the rounding of activations.
inline constexpr std::array double_kernels = {"multiply_f64", "multiply_f32", "multiply_f16", "multiply_bf16",
                                              "multiply_q8",  "multiply_q4",  "round_bf16",   "round_blocks"};
inline constexpr std::size_t round_bf16 = 6, round_blocks = 7;
static_assert(double_kernels.size() == round_blocks + 1);

/// How weights of a format lie in the card's memory: see formats.cuh.
template <class W>
struct Layout;

template <class Number, std::size_t number>
struct PanelLayout {
  static constexpr std::size_t index = number;  // among the kernels of all formats
  static std::size_t bytes(std::size_t rows, std::size_t cols) {
    return (rows + 7) / 8 * 8 * ((cols + 15) / 16 * 16) * sizeof(Number);
  }
};
template <>
struct Layout<double> : PanelLayout<double, 0> {};
template <>
struct Layout<float> : PanelLayout<float, 1> {};
template <>
struct Layout<f16> : PanelLayout<f16, 2> {};
template <>
struct Layout<bf16> {
  static constexpr std::size_t index = 3;
  static std::size_t bytes(std::size_t rows, std::size_t cols) { return (rows + 15) / 16 * ((cols + 15) / 16) * 512; }
};
template <>
struct Layout<q8> {
  static constexpr std::size_t index = 4;
  static std::size_t bytes(std::size_t rows, std::size_t cols) {
    return (rows + 15) / 16 * ((cols + 31) / 32) * (512 + 32);
  }
};
template <>
struct Layout<q4> {
  static constexpr std::size_t index = 5;
  static std::size_t bytes(std::size_t rows, std::size_t cols) {
    return (rows + 15) / 16 * ((cols + 31) / 32) * (256 + 32);
  }
};

}  // namespace gpu

/// Owns `size` elements of a card's memory, initialised to zero. Movable; copies are made by a backend. Only kernels
/// may use what data() points to.
template <class T>
class CudaBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  CudaBuffer() = default;
  CudaBuffer(std::shared_ptr<gpu::Device> device, std::size_t size) : device_(std::move(device)), size_(size) {
    if (size == 0) return;
    if (size > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_array_new_length();
    address_ = device_->allocate(size * sizeof(T));
  }
  /// Memory that it does not own.
  CudaBuffer(T* memory, std::size_t size) : address_(gpu::address(memory)), size_(size) {}
  CudaBuffer(CudaBuffer&& other) noexcept
      : device_(std::move(other.device_)),
        address_(std::exchange(other.address_, 0)),
        size_(std::exchange(other.size_, 0)) {}
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    if (this != &other) {
      free();
      device_ = std::move(other.device_);
      address_ = std::exchange(other.address_, 0);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  ~CudaBuffer() { free(); }

  T* data() { return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address_)); }
  const T* data() const { return reinterpret_cast<const T*>(static_cast<std::uintptr_t>(address_)); }
  std::size_t size() const { return size_; }

 private:
  void free() noexcept {
    if (device_) device_->release(address_);
    device_.reset();
  }

  std::shared_ptr<gpu::Device> device_;
  gpu::Address address_ = 0;
  std::size_t size_ = 0;
};

/// A weight matrix in a card's memory, in the layout that its products read.
template <WeightFormat W>
class CudaMatrix {
 public:
  CudaMatrix() = default;
  CudaMatrix(std::shared_ptr<gpu::Device> device, std::size_t rows, std::size_t cols)
      : rows_(rows), cols_(cols), memory_(std::move(device), rows == 0 ? 0 : gpu::Layout<W>::bytes(rows, cols)) {}
  /// In memory that it does not own, of Layout<W>::bytes.
  CudaMatrix(std::size_t rows, std::size_t cols, std::byte* memory)
      : rows_(rows), cols_(cols), memory_(memory, gpu::Layout<W>::bytes(rows, cols)) {}
  CudaMatrix(CudaMatrix&& other) noexcept
      : rows_(std::exchange(other.rows_, 0)), cols_(std::exchange(other.cols_, 0)), memory_(std::move(other.memory_)) {}
  CudaMatrix& operator=(CudaMatrix&& other) noexcept {
    rows_ = std::exchange(other.rows_, 0);
    cols_ = std::exchange(other.cols_, 0);
    memory_ = std::move(other.memory_);
    return *this;
  }

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t bytes() const { return memory_.size(); }
  gpu::Weights weights() const {
    return {reinterpret_cast<std::uintptr_t>(memory_.data()), static_cast<std::uint32_t>(rows_),
            static_cast<std::uint32_t>(cols_)};
  }

 private:
  std::size_t rows_ = 0, cols_ = 0;
  CudaBuffer<std::byte> memory_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
