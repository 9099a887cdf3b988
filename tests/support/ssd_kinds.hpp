// The kinds of model with SSD as their mixer.
#ifndef MINIMAMBA_TESTS_SSD_KINDS_HPP
#define MINIMAMBA_TESTS_SSD_KINDS_HPP

#include "minimamba/nn/ssd.hpp"
#include "support/support.hpp"

namespace support {

template <class K>
struct SsdKind : K {
  template <class Weight>
  using ModelOf = minimamba::Mamba<typename K::Scalar, K::template BackendOf, Weight, minimamba::SSD>;
  using Model = ModelOf<typename K::Scalar>;
  using Block = typename Model::Block;
};

template <class Kinds>
struct SsdKindsOf;
template <class... K>
struct SsdKindsOf<testing::Types<K...>> {
  using Type = testing::Types<SsdKind<K>...>;
};
using SsdKinds = typename SsdKindsOf<KernelKinds>::Type;

}  // namespace support

#endif
