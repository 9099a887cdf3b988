// Descriptions of matrices, by which a card's own unit copies boxes of them into shared memory.
#ifndef MINIMAMBA_BACKEND_CUDA_TENSOR_MAPS_HPP
#define MINIMAMBA_BACKEND_CUDA_TENSOR_MAPS_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/recording.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA::gpu {

/// Maps that were made before are kept: a step of many rows needs some for each layer, and making one takes as long as
/// recording a kernel.
class TensorMaps {
 public:
  /// A matrix of `rows` rows of `cols` values of 2 or 8 bytes, of which boxes are copied at once, of `box_rows` rows
  /// of 256 values, or of 64 or 32 if they have 2 bytes. Those have their pieces of 16 bytes exchanged as wgmma
  /// expects it.
  struct Boxes {
    Address data = 0;
    std::size_t value_bytes = 0, rows = 0, cols = 0, stride_bytes = 0, box_rows = 0, box_cols = 64;

    bool operator==(const Boxes&) const = default;
  };

  /// make(map) describes the boxes, if no such map is known.
  template <class Make>
  TensorMap get(const Boxes& boxes, Make&& make) {
    const std::lock_guard lock(mutex_);
    Known& known = known_[hash(boxes) % known_.size()];
    if (known.boxes == boxes) return known.map;
    known.boxes = {};
    make(known.map);
    known.boxes = boxes;
    return known.map;
  }

 private:
  struct Known {
    Boxes boxes;
    TensorMap map;
  };

  static std::uint64_t hash(const Boxes& b) {
    std::uint64_t hash = 0;
    for (const std::uint64_t word :
         std::array<std::uint64_t, 7>{b.data, b.value_bytes, b.rows, b.cols, b.stride_bytes, b.box_rows, b.box_cols}) {
      hash = (hash ^ word) * 0x9E3779B97F4A7C15U;
      hash ^= hash >> 32;
    }
    return hash;
  }

  std::mutex mutex_;
  std::vector<Known> known_ = std::vector<Known>(1024);
};

/// Needs a driver that has make_tensor_map. Throws CudaError.
inline void make_tensor_map(const Driver& driver, const TensorMaps::Boxes& boxes, TensorMap& map) {
  constexpr int of_2_bytes = 1, of_8_bytes = 4, read_256_bytes = 3;
  const int exchanged_in_row = boxes.box_cols == 64 ? 3 : 2;  // of 128 or 64 bytes
  const bool exchanged = boxes.value_bytes == 2;
  const std::uint64_t sizes[] = {boxes.cols, boxes.rows}, strides[] = {boxes.stride_bytes};
  const std::uint32_t box[] = {exchanged ? static_cast<std::uint32_t>(boxes.box_cols) : 256U,
                               static_cast<std::uint32_t>(boxes.box_rows)},
                      steps[] = {1, 1};
  driver.check(driver.make_tensor_map(map.words, exchanged ? of_2_bytes : of_8_bytes, 2, boxes.data, sizes, strides,
                                      box, steps, 0, exchanged ? exchanged_in_row : 0, read_256_bytes, 0),
               "describing a matrix");
}

}  // namespace minimamba::inline MINIMAMBA_ISA::gpu

#undef MINIMAMBA_ISA
#endif
