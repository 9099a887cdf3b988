// eigen_map: a View as an Eigen::Map. Opt-in: include this header only where you need Eigen's types, and compile all
// translation units that exchange them with the same flags.
#ifndef MINIMAMBA_BACKEND_EIGEN_MAP_HPP
#define MINIMAMBA_BACKEND_EIGEN_MAP_HPP

#include <Eigen/Core>

#include <type_traits>

#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A row-major Eigen matrix over the memory of the view, without a copy: the memory must outlive it.
template <class T>
auto eigen_map(View<T> view) {
  using Plain = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Mapped = std::conditional_t<std::is_const_v<T>, const Plain, Plain>;
  return Eigen::Map<Mapped, 0, Eigen::OuterStride<>>(view.data(), static_cast<Eigen::Index>(view.rows()),
                                                     static_cast<Eigen::Index>(view.cols()),
                                                     Eigen::OuterStride<>(static_cast<Eigen::Index>(view.stride())));
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
