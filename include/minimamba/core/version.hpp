// The library's version, for the preprocessor and for programs.
#ifndef MINIMAMBA_CORE_VERSION_HPP
#define MINIMAMBA_CORE_VERSION_HPP

#define MINIMAMBA_VERSION_MAJOR 0
#define MINIMAMBA_VERSION_MINOR 1
#define MINIMAMBA_VERSION_PATCH 0
#define MINIMAMBA_VERSION_STRING "0.1.0"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct Version {
  int major, minor, patch;
};

inline constexpr Version version{MINIMAMBA_VERSION_MAJOR, MINIMAMBA_VERSION_MINOR, MINIMAMBA_VERSION_PATCH};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
