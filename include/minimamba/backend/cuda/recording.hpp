// Kernels that are to be started, with their arguments.
#ifndef MINIMAMBA_BACKEND_CUDA_RECORDING_HPP
#define MINIMAMBA_BACKEND_CUDA_RECORDING_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

struct Grid {
  std::size_t x = 1, y = 1, z = 1;
};

/// A kernel to start. Lists are compared byte by byte, so there is no padding.
struct Launch {
  Handle function = nullptr;
  std::uint32_t x = 1, y = 1, z = 1, threads = 1, shared = 0;  // shared: bytes of dynamic shared memory
  std::uint32_t first = 0, count = 0;                          // of its arguments
  std::uint16_t follows = 0;                                   // 1: must not begin before the kernel before has ended
  std::uint16_t output = 0;                                    // of a product: 1 + the number of its Output argument
  std::uint16_t program = 0, kernel = 0;                       // which it is
  std::uint32_t unused = 0;
};
static_assert(std::has_unique_object_representations_v<Launch>);

/// The kernels' structs of these names.
struct Weights {
  Address data = 0;
  std::uint32_t rows = 0, cols = 0;
};
struct Inputs {
  Address values, fragments, scales;
  std::uint64_t stride;
  std::uint32_t rows, narrow = 0;  // narrow: values are of bf16

  std::size_t value_bytes() const { return narrow != 0 ? 2 : 4; }
};
/// Where a product goes: y = product, and sum = from + product unless sum is null. `narrow`: y is of bf16. The kernels'
/// struct of this name.
struct Output {
  Address y = 0, sum = 0, from = 0;
  std::uint64_t y_stride = 0, sum_stride = 0, from_stride = 0, narrow = 0;
};

/// A matrix of which kernels copy boxes at once: see Device::tensor_map.
struct alignas(64) TensorMap {
  std::uint64_t words[16] = {};
};

/// Kernels with their arguments, in order.
class LaunchList {
 public:
  template <class... Arguments>
  void add(Launch launch, const Arguments&... arguments) {
    static_assert(((std::has_unique_object_representations_v<Arguments> || std::is_floating_point_v<Arguments>)&&...));
    constexpr auto places = places_of<Arguments...>();  // all arguments are placed at once, as this is the host's work
    launch.first = static_cast<std::uint32_t>(offsets_.size());
    launch.count = sizeof...(Arguments);
    const std::size_t begin = (bytes_.size() + places.alignment - 1) / places.alignment * places.alignment;
    bytes_.resize(begin + places.bytes);
    offsets_.resize(offsets_.size() + sizeof...(Arguments));
    std::size_t i = 0;
    const auto place = [&](const void* argument, std::size_t size) {
      std::memcpy(bytes_.data() + begin + places.offsets[i], argument, size);
      offsets_[launch.first + i] = static_cast<std::uint32_t>(begin + places.offsets[i]);
      ++i;
    };
    (place(&arguments, sizeof(Arguments)), ...);
    launches_.push_back(launch);
  }
  void remove_last() {
    const Launch& last = launches_.back();
    bytes_.resize(offsets_[last.first]);
    offsets_.resize(last.first);
    launches_.pop_back();
  }
  /// Whether the first kernels of another list are these.
  bool begins(const LaunchList& other) const {
    return launches_.size() <= other.launches_.size() && bytes_.size() <= other.bytes_.size() &&
           std::memcmp(launches_.data(), other.launches_.data(), launches_.size() * sizeof(Launch)) == 0 &&
           std::memcmp(bytes_.data(), other.bytes_.data(), bytes_.size()) == 0;
  }
  void clear() {
    launches_.clear();
    offsets_.clear();
    bytes_.clear();
  }
  std::size_t size() const { return launches_.size(); }
  const std::vector<Launch>& launches() const { return launches_; }
  Launch& last() { return launches_.back(); }
  /// Where argument i of a launch is.
  void* argument(const Launch& launch, std::size_t i) const {
    return const_cast<std::byte*>(bytes_.data() + offsets_[launch.first + i]);
  }
  template <class T>
  T get(const Launch& launch, std::size_t i) const {
    T value;
    std::memcpy(&value, argument(launch, i), sizeof(T));
    return value;
  }
  template <class T>
  void set(const Launch& launch, std::size_t i, const T& value) {
    std::memcpy(argument(launch, i), &value, sizeof(T));
  }

  bool operator==(const LaunchList& other) const {
    // memcmp: == of vectors of std::byte goes byte by byte, which takes longer than starting the kernels
    return bytes_.size() == other.bytes_.size() && launches_.size() == other.launches_.size() && begins(other);
  }
  std::uint64_t hash() const {
    std::uint64_t hash = launches_.size();
    const auto mix = [&](const void* data, std::size_t bytes) {
      for (std::size_t i = 0; i + 8 <= bytes; i += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, static_cast<const std::byte*>(data) + i, 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15U;
        hash ^= hash >> 32;
      }
    };
    mix(launches_.data(), launches_.size() * sizeof(Launch));
    mix(bytes_.data(), bytes_.size());
    return hash;
  }

 private:
  /// Where the arguments of a kernel lie, each padded to words of 8 bytes, counted from the first.
  template <std::size_t count>
  struct Places {
    std::array<std::size_t, count> offsets = {};
    std::size_t bytes = 0, alignment = 8;
  };
  template <class... Arguments>
  static constexpr Places<sizeof...(Arguments)> places_of() {
    Places<sizeof...(Arguments)> places;
    std::size_t i = 0;
    const auto place = [&](std::size_t size, std::size_t alignment) {
      places.alignment = std::max(places.alignment, alignment);
      places.offsets[i++] = (places.bytes + alignment - 1) / alignment * alignment;
      places.bytes = (places.offsets[i - 1] + size + 7) / 8 * 8;
    };
    (place(sizeof(Arguments), alignof(Arguments)), ...);
    return places;
  }

  std::vector<Launch> launches_;
  std::vector<std::uint32_t> offsets_;
  std::vector<std::byte> bytes_;
};

/// How a kernel is started.
struct Block {
  unsigned threads = 256, shared = 0;  // shared: bytes of dynamic shared memory
  std::uint16_t output = 0;            // of a product: 1 + the number of its Output argument
  std::size_t rows = 0, cols = 0;      // of a product
  Address input = 0, input_end = 0;    // what a product reads, in one place
  Address other = 0, other_end = 0;    // ... and in another
  bool only_sums = false;              // a product that can leave out its own result, and add to another matrix
  bool is_norm = false;                // an rms_norm of one row
  bool is_narrow = false;              // ... to bf16
  bool is_copy = false;                // of rows
  bool writes_weights = false;         // the kernel writes what products read before they wait for other kernels
  bool is_alone = false;               // the kernel does not begin before the one before has ended
};

/// What an rms_norm of one row computes.
struct NormOfRow {
  Address x = 0, weight = 0, y = 0;
  double epsilon = 0;
  bool is_narrow = false;  // y is of bf16
};

/// A product that reads a row of floats or bf16.
struct ProductOfRow {
  Address x = 0, y = 0, y_end = 0;
  std::size_t cols = 0;    // of x
  bool is_narrow = false;  // x is of bf16
};

struct CopyOfRows {
  Address x = 0, y = 0;
  std::uint64_t x_stride = 0, y_stride = 0;
  std::size_t rows = 0, cols = 0;
};

/// What an add of rows computes: sum += rows, or sum = from + rows. `last`: nothing else reads the rows.
struct SumOfRows {
  Address rows_at = 0, sum = 0;
  std::uint64_t stride = 0, sum_stride = 0;
  std::size_t rows = 0, cols = 0;
  Address from = 0;
  std::uint64_t from_stride = 0;
  bool last = false;
};

/// The kernels' struct of this name.
struct Convolution {
  Address weight = 0, bias = 0, windows = 0, y = 0, segments = 0;
  std::uint64_t slot_stride = 0, y_stride = 0, channels = 0;
};
/// A convolution of the first columns of `rows` rows of bf16, each a token of a sequence of its own.
struct ConvolutionOfRows {
  Address x = 0;
  std::uint64_t x_stride = 0;
  std::size_t rows = 0;
  Convolution convolution;
};

/// A kernel that is loaded, and the numbers of its program and of itself in that.
struct Kernel {
  Handle function = nullptr;
  std::size_t program = 0, number = 0;
};

/// A list that grows by one kernel after the other. Some kernels need not be added, as the one before them, or the one
/// after them, can do their work too.
class Recording {
 public:
  LaunchList& list() { return list_; }

  template <class... Arguments>
  void add(const Kernel& kernel, const Grid& grid, const Block& block, const Arguments&... arguments) {
    list_.add({.function = kernel.function,
               .x = static_cast<std::uint32_t>(grid.x),
               .y = static_cast<std::uint32_t>(grid.y),
               .z = static_cast<std::uint32_t>(grid.z),
               .threads = block.threads,
               .shared = block.shared,
               .follows = static_cast<std::uint16_t>(last_.writes_weights || block.is_alone),
               .output = block.output,
               .program = static_cast<std::uint16_t>(kernel.program),
               .kernel = static_cast<std::uint16_t>(kernel.number)},
              arguments...);
    last_ = block;
  }
  /// Lets the last product also add its result to a sum, if that result is what is to be added. Returns whether it is.
  bool add_to_last_product(const SumOfRows& add) {
    if (list_.size() == 0) return false;
    const Launch& last = list_.last();
    if (last.output == 0 || last_.rows != add.rows || last_.cols != add.cols) return false;
    if (add.from != 0 && !last_.only_sums) return false;
    const Address sum_end = add.sum + add.rows * add.sum_stride * sizeof(float);
    if (add.sum < last_.input_end && last_.input < sum_end) return false;
    if (add.sum < last_.other_end && last_.other < sum_end) return false;
    auto output = list_.get<Output>(last, last.output - 1U);
    if (output.y != add.rows_at || output.y_stride != add.stride || output.sum != 0 || output.narrow != 0) {
      return false;
    }
    output.sum = add.sum;
    output.sum_stride = add.sum_stride;
    output.from = add.from != 0 ? add.from : add.sum;
    output.from_stride = add.from != 0 ? add.from_stride : add.sum_stride;
    if (add.last && last_.only_sums) output.y = 0;
    list_.set(last, last.output - 1U, output);
    return true;
  }
  /// The number of the product that was added last, if it is of this program and gives what is to be convolved.
  std::optional<std::size_t> product_before(const ConvolutionOfRows& rows, std::size_t program) const {
    if (list_.size() == 0) return std::nullopt;
    const Launch& last = list_.launches().back();
    if (last.output == 0 || last.program != program || last_.rows != rows.rows) return std::nullopt;
    const auto output = list_.get<Output>(last, last.output - 1U);
    const Convolution& c = rows.convolution;
    const Address y_end = c.y + rows.rows * c.y_stride * 2, product_end = rows.x + rows.rows * rows.x_stride * 2;
    const auto apart = [&](Address begin, Address end) { return y_end <= begin || end <= c.y; };
    // A block convolves while others still read the product's inputs, or have to store what is not convolved.
    const bool free = apart(last_.input, last_.input_end) && apart(rows.x, product_end);
    const bool same = output.y == rows.x && output.y_stride == rows.x_stride && output.narrow != 0;
    return free && same && c.channels <= last_.cols ? std::optional<std::size_t>(last.kernel) : std::nullopt;
  }
  /// Puts a kernel in its place that also convolves, and takes the same arguments before the convolution.
  void convolve_after_last(const Kernel& kernel, const Convolution& convolution) {
    Launch launch = list_.launches().back();
    const auto x = list_.get<TensorMap>(launch, 0), weights_map = list_.get<TensorMap>(launch, 1);
    const auto rows = list_.get<std::uint32_t>(launch, 2);
    const auto weights = list_.get<Weights>(launch, 3);
    const auto output = list_.get<Output>(launch, 4);
    list_.remove_last();
    launch.function = kernel.function;
    launch.kernel = static_cast<std::uint16_t>(kernel.number);
    list_.add(launch, x, weights_map, rows, weights, output, convolution);
  }
  /// Lets the copy that was added last also copy the rows that follow, if these are such. Returns whether they are.
  bool extend_last_copy(const CopyOfRows& copy, std::size_t value_bytes) {
    if (list_.size() == 0 || !last_.is_copy) return false;
    Launch& last = list_.last();
    const auto x = list_.get<Address>(last, 0), y = list_.get<Address>(last, 2);
    const auto x_stride = list_.get<std::uint64_t>(last, 1), y_stride = list_.get<std::uint64_t>(last, 3);
    const auto rows = list_.get<std::uint32_t>(last, 4), cols = list_.get<std::uint32_t>(last, 5);
    const std::uint64_t all = std::uint64_t{rows} + copy.rows;
    const bool follows = copy.x == x + rows * x_stride * value_bytes && copy.y == y + rows * y_stride * value_bytes &&
                         copy.x_stride == x_stride && copy.y_stride == y_stride && copy.cols == cols;
    const bool apart = x + all * x_stride * value_bytes <= y || y + all * y_stride * value_bytes <= x;
    if (!follows || !apart || all > 0xFFFFFFFF) return false;
    list_.set(last, 4, static_cast<std::uint32_t>(all));
    last.y = static_cast<std::uint32_t>(std::min<std::uint64_t>(all, 65535));
    return true;
  }
  /// Takes back the kernel that was added last if it is the rms_norm of a row that a product reads, for the product to
  /// compute it too. Every block of the product then reads what was normalised, so nothing may be written there.
  std::optional<NormOfRow> take_norm(const ProductOfRow& product) {
    if (list_.size() == 0 || !last_.is_norm) return std::nullopt;
    const Launch last = list_.launches().back();
    const NormOfRow norm{.x = list_.get<Address>(last, 0),
                         .weight = list_.get<Address>(last, 2),
                         .y = list_.get<Address>(last, 4),
                         .epsilon = list_.get<double>(last, 3),
                         .is_narrow = last_.is_narrow};
    const auto cols = list_.get<std::uint32_t>(last, 6);
    const Address x_end = norm.x + cols * sizeof(float);
    const auto apart = [&](Address begin, Address end) { return end <= norm.x || x_end <= begin; };
    const std::size_t value_bytes = norm.is_narrow ? 2 : sizeof(float);
    if (norm.y != product.x || cols != product.cols || norm.is_narrow != product.is_narrow ||
        !apart(norm.y, norm.y + cols * value_bytes) || !apart(product.y, product.y_end)) {
      return std::nullopt;
    }
    list_.remove_last();
    last_ = {.writes_weights = last.follows != 0};
    return norm;
  }

 private:
  LaunchList list_;
  Block last_ = {.writes_weights = true};  // the kernel that was added last; what was before is unknown
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
