// NativeBackend: the fast backend for this processor. Weights are packed once into panels; kernels are picked at run
// time for the best vector instructions there are (AVX-512, AVX2 with FMA, NEON, or a portable twin), so a program
// compiled with plain -O2 runs at full speed. On one instruction set the results are the same to the bit however a
// sequence is split, batched, or divided among threads.
#ifndef MINIMAMBA_BACKEND_NATIVE_HPP
#define MINIMAMBA_BACKEND_NATIVE_HPP

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/native/arena.hpp"
#include "minimamba/backend/native/targets.hpp"
#include "minimamba/core/parallel.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct NativeOptions {
  int threads = 0;                                        // 0: as many as the process may use
  InstructionSet instruction_set = InstructionSet::best;  // for tests and comparisons; others are slower
};

/// Weights in panels of 32 outputs, [ceil(out / 32)][in][32]: one column of a panel is what a step of the product
/// needs. Missing outputs of the last panel are zero.
template <class Scalar>
class PanelMatrix {
 public:
  PanelMatrix() = default;
  PanelMatrix(std::size_t rows, std::size_t cols, native::Arena& arena)
      : rows_(rows), cols_(cols), values_(arena.zeros<Scalar>(panels() * native::panel * cols)) {}

  PanelMatrix(PanelMatrix&& other) noexcept = default;
  PanelMatrix& operator=(PanelMatrix&& other) noexcept = default;

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t bytes() const { return panels() * native::panel * cols_ * sizeof(Scalar); }
  std::size_t panels() const { return (rows_ + native::panel - 1) / native::panel; }
  const Scalar* data() const { return values_.get(); }

  /// Element (i, 0); the next of the row are `panel` apart.
  Scalar* row(std::size_t i) { return values_.get() + offset(i); }
  const Scalar* row(std::size_t i) const { return values_.get() + offset(i); }

 private:
  std::size_t offset(std::size_t i) const { return i / native::panel * native::panel * cols_ + i % native::panel; }

  std::size_t rows_ = 0, cols_ = 0;
  std::shared_ptr<Scalar> values_;  // not shared in fact: the pointer keeps the arena's block alive
};

template <class Number>
class NativeBackend : public detail::HostMemory<Number> {
 public:
  using Scalar = Number;
  /// Weights in the computing type lie in panels; narrow ones stay packed as they are and are unpacked on the way.
  template <WeightFormat W>
  using Matrix = std::conditional_t<std::is_same_v<W, Scalar>, PanelMatrix<Scalar>, HostMatrix<W>>;

  /// Throws ArgumentError for a bad number of threads, or instructions that this machine lacks.
  explicit NativeBackend(NativeOptions options = {})
      : pool_(std::make_shared<ThreadPool>(options.threads)),
        arena_(std::make_shared<native::Arena>()),
        set_(chosen(options.instruction_set)) {}

  const char* name() const { return "native"; }
  int threads() const { return pool_->threads(); }
  InstructionSet instruction_set() const { return set_; }
  const native::Kernels<Scalar>& kernels() const { return native::kernels_for<Scalar>(set_); }

  template <WeightFormat W>
  Matrix<W> make_matrix(std::size_t rows, std::size_t cols) const {
    if constexpr (std::is_same_v<W, Scalar>) {
      return Matrix<W>(rows, cols, *arena_);
    } else {
      return Matrix<W>(rows, cols);
    }
  }
  using detail::HostMemory<Number>::upload_rows;
  using detail::HostMemory<Number>::download_rows;
  void upload_rows(View<const Scalar> host, std::size_t first, PanelMatrix<Scalar>& matrix) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    constexpr std::size_t some = 16;  // columns at a time: what they become stays in the first cache until it is full
    for (std::size_t begin = 0; begin < host.cols(); begin += some) {
      const std::size_t end = std::min(begin + some, host.cols());
      for (std::size_t i = 0; i < host.rows(); ++i) {
        Scalar* row = matrix.row(first + i);
        for (std::size_t k = begin; k < end; ++k) row[k * native::panel] = host(i, k);
      }
    }
  }
  void download_rows(const PanelMatrix<Scalar>& matrix, std::size_t first, View<Scalar> host) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    for (std::size_t i = 0; i < host.rows(); ++i) {
      const Scalar* row = matrix.row(first + i);
      for (std::size_t k = 0; k < host.cols(); ++k) host(i, k) = row[k * native::panel];
    }
  }

  template <class M>
  void embed(std::span<const std::int32_t> tokens, const M& weight, View<Scalar> y) const {
    assert(tokens.size() == y.rows() && weight.cols() == y.cols());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      this->download_rows(weight, static_cast<std::size_t>(tokens[i]), y.rows_from(i, 1));
    }
  }

  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols() && weight.cols() == x.cols());
    parallel_for(*pool_, x.rows(), grain(x.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        kernels().rms_norm({x.row(i).data(), weight.data(), y.row(i).data(), x.cols(), static_cast<Scalar>(epsilon)});
      }
    });
  }

  void matmul(View<const Scalar> x, const PanelMatrix<Scalar>& weight, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    if (y.empty()) return;
    const native::MatmulTask<Scalar> whole = task_of(x, weight.data(), y);
    const std::size_t per_row = x.cols() * weight.rows(), threads = static_cast<std::size_t>(pool_->threads());
    const std::size_t room = x.rows() == 1 ? 0 : native::packed_rows(x.cols()) * x.cols();
    Scalar* const packed = scratch(room * threads);
    if (x.rows() >= 32 * threads) {  // each thread some rows: they pack no row twice
      parallel_for(*pool_, (x.rows() + 11) / 12, grain(12 * per_row),
                   [&](std::size_t begin, std::size_t end, std::size_t part) {
                     native::MatmulTask<Scalar> task = whole;
                     task.first_row = begin * 12;
                     task.last_row = std::min(end * 12, x.rows());
                     task.scratch = packed + part * room;
                     kernels().matmul(task);
                   });
    } else {  // each thread some panels
      const std::size_t operations = native::panel * x.cols() * x.rows();
      parallel_for(*pool_, weight.panels(), grain(operations),
                   [&](std::size_t begin, std::size_t end, std::size_t part) {
                     native::MatmulTask<Scalar> task = whole;
                     task.first_panel = begin;
                     task.last_panel = end;
                     task.scratch = packed + part * room;
                     kernels().matmul(task);
                   });
    }
  }

  /// Narrow weights: panel by panel unpacked, then as above. In the same order, so with the same bits for any rows.
  template <WeightFormat W>
  void matmul(View<const Scalar> x, const HostMatrix<W>& weight, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    if (y.empty()) return;
    const std::size_t in = x.cols(), size = in * native::panel;
    const native::MatmulTask<Scalar> whole = task_of(x, nullptr, y);
    const std::size_t room_size = native::packed_rows(in) * in + size + in;
    Scalar* const rooms = scratch(room_size * static_cast<std::size_t>(pool_->threads()));
    parallel_for(*pool_, whole.last_panel, grain(size * (4 + x.rows())),
                 [&](std::size_t begin, std::size_t end, std::size_t part) {
                   Scalar* const room = rooms + part * room_size;
                   Scalar *const unpacked = room + native::packed_rows(in) * in, *const row = unpacked + size;
                   for (std::size_t p = begin; p < end; ++p) {
                     std::fill_n(unpacked, size, Scalar(0));
                     for (std::size_t j = p * native::panel; j < std::min((p + 1) * native::panel, weight.rows());
                          ++j) {
                       Format<W>::unpack(weight.row(j), in, row);
                       for (std::size_t k = 0; k < in; ++k) unpacked[k * native::panel + j % native::panel] = row[k];
                     }
                     native::MatmulTask<Scalar> task = whole;
                     task.weight = unpacked - p * size;
                     task.first_panel = p;
                     task.last_panel = p + 1;
                     task.scratch = room;
                     kernels().matmul(task);
                   }
                 });
  }

  void causal_conv1d(const Conv1dArguments<Scalar>& p) const {
    const std::size_t length = p.sequence.length, channels = p.x.cols(), past = p.window.cols();
    if (length == 0) return;
    each_channels(p.sequence.batch, channels, length * p.weight.cols(),
                  [&](std::size_t row, std::size_t first, std::size_t last) {
                    kernels().causal_conv1d({length, first, last, past + 1, p.x.data() + row * length * p.x.stride(),
                                             p.x.stride(), p.weight.data(), p.bias.empty() ? nullptr : p.bias.data(),
                                             p.window.data() + row * channels * past,
                                             p.y.data() + row * length * p.y.stride(), p.y.stride()});
                  });
  }

  void selective_scan(const ScanArguments<Scalar>& p) const {
    const std::size_t length = p.sequence.length, channels = p.u.cols(), states = p.a.cols();
    const auto at = [&](const auto& view, std::size_t row) { return view.data() + row * length * view.stride(); };
    each_channels(p.sequence.batch, channels, length * states * 4,
                  [&](std::size_t row, std::size_t first, std::size_t last) {
                    kernels().selective_scan({length,
                                              first,
                                              last,
                                              states,
                                              at(p.u, row),
                                              at(p.delta, row),
                                              p.delta_bias.data(),
                                              p.a.data(),
                                              at(p.b, row),
                                              at(p.c, row),
                                              p.d.data(),
                                              at(p.z, row),
                                              p.u.stride(),
                                              p.delta.stride(),
                                              p.b.stride(),
                                              p.c.stride(),
                                              p.z.stride(),
                                              p.h.data() + row * channels * states,
                                              at(p.y, row),
                                              p.y.stride()});
                  });
  }

  void add(View<const Scalar> x, View<Scalar> y) const {
    assert((x.rows() == y.rows() || x.rows() == 1) && x.cols() == y.cols());
    parallel_for(*pool_, y.rows(), grain(y.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        kernels().add(x.row(x.rows() == 1 ? 0 : i).data(), y.row(i).data(), y.cols());
      }
    });
  }

  void negative_exp(View<const Scalar> x, View<Scalar> y) const {
    for (std::size_t i = 0; i < y.rows(); ++i) {
      for (std::size_t j = 0; j < y.cols(); ++j) y(i, j) = static_cast<Scalar>(-std::exp(static_cast<double>(x(i, j))));
    }
  }

 private:
  static constexpr std::size_t strip = 16;             // channels that are never divided between threads
  static constexpr std::size_t worthwhile = 1U << 15;  // elementary operations for which a second thread pays

  static std::size_t grain(std::size_t operations) { return worthwhile / std::max<std::size_t>(operations, 1) + 1; }

  static InstructionSet chosen(InstructionSet set) {
    if (set == InstructionSet::best) return best_instruction_set();
    if (available(set)) return set;
    throw ArgumentError("instruction_set", "one that this machine has", std::string(name_of(set)));
  }

  /// Memory of the calling thread, for all parts of its task, that lasts as long as it does: a step allocates nothing,
  /// whichever threads do the parts.
  static Scalar* scratch(std::size_t size) {
    thread_local HostBuffer<Scalar> buffer;
    if (buffer.size() < size) buffer = HostBuffer<Scalar>(size);
    return buffer.data();
  }

  native::MatmulTask<Scalar> task_of(View<const Scalar> x, const Scalar* weight, View<Scalar> y) const {
    return {x.data(),
            x.stride(),
            weight,
            y.data(),
            y.stride(),
            x.cols(),
            y.cols(),
            0,
            x.rows(),
            0,
            (y.cols() + native::panel - 1) / native::panel,
            nullptr};
  }

  /// Calls body(row, first channel, last channel) on parts that cover the channels of every row.
  template <class Body>
  void each_channels(std::size_t batch, std::size_t channels, std::size_t operations, Body&& body) const {
    const std::size_t strips = (channels + strip - 1) / strip;
    parallel_for(*pool_, batch * strips, grain(strip * operations), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end;) {
        const std::size_t row = i / strips, next = std::min(end, (row + 1) * strips);
        body(row, i % strips * strip, std::min(channels, (next - row * strips) * strip));
        i = next;
      }
    });
  }

  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<native::Arena> arena_;
  InstructionSet set_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
