// A = -exp(A_log): the decay of the states of a mixer, which it derives from its parameter A_log.
#ifndef MINIMAMBA_NN_DERIVED_A_HPP
#define MINIMAMBA_NN_DERIVED_A_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "minimamba/backend/concept.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

/// The states of a channel. Throws ConfigError for more than the backend's scan takes.
template <class Backend>
std::size_t check_states(const char* field, std::int64_t states) {
  constexpr std::size_t most = BackendTraits<Backend>::max_states;
  if (static_cast<std::size_t>(states) <= most) return static_cast<std::size_t>(states);
  throw ConfigError(field, "at most " + std::to_string(most) + " states on this backend", std::to_string(states));
}

}  // namespace detail

/// A base of mixers: their parameter A_log, and A.
template <class Scalar, template <class> class Backend>
struct DerivedA {
  Tensor<Backend<Scalar>> A_log;  // [E, N] or [H]
  Tensor<Backend<Scalar>> A;      // the same; derived from A_log by refresh(), or read from a GGUF file

  DerivedA() = default;
  DerivedA(Shape shape, Role role) : A_log(std::move(shape), role) {}

  /// Recomputes A; call it after changing A_log.
  void refresh(const Backend<Scalar>& backend) {
    reserve_derived(backend);
    backend.negative_exp(std::as_const(A_log).view(), A.view());
    derived_from_ = A_log.version();
  }

  /// Allocates A, so that refresh() allocates nothing.
  void reserve_derived(const Backend<Scalar>& backend) {
    if (A.present() && A.allocated()) return;
    A = {A_log.shape(), A_log.role()};
    A.allocate(backend);
  }

  std::size_t derived_bytes() const { return A.memory_bytes(); }

  /// Throws ArgumentError unless refresh() was called after the last upload to A_log. Changes through A_log.view() are
  /// not noticed.
  void check_derived() const {
    if (is_derived()) return;
    if (!A.present() || !A.allocated())
      throw ArgumentError("A", "it is missing; call refresh() before the first forward");
    throw ArgumentError("A", "it is out of date; call refresh() after changing A_log");
  }

  /// Copies A, which may be more exact than what refresh() computes from A_log, unless it is missing or out of date.
  void copy_derived(const Backend<Scalar>& backend, const DerivedA& from) {
    if (!from.is_derived()) return;
    reserve_derived(backend);
    backend.copy(from.A.view(), A.view());
    derived_from_ = A_log.version();
  }

  /// Tensors that a file may hold in place of the named parameters: GGUF has A in place of A_log.
  template <class F, class... Self>
  static void visit_derived(F&& f, Self&... self) {
    f("A_log", self.A...);
  }

 private:
  bool is_derived() const { return A.present() && A.allocated() && derived_from_ == A_log.version(); }

  std::uint64_t derived_from_ = 0;  // A_log.version() of the last refresh()
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
