# minimamba::kernels: the native kernels and Mamba<float> compiled once for a whole project, with its own compiler and
# flags. What links it takes seconds less a file to compile. Nothing is built unless something links it.
if(NOT TARGET minimamba_kernels)
  # No type of build is no error, but seldom meant: CMake then optimises nothing.
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES AND NOT CMAKE_CXX_FLAGS MATCHES "-O" AND NOT minimamba_FIND_QUIETLY)
    message(STATUS "minimamba: CMAKE_BUILD_TYPE is empty, so programs are compiled without optimisation, and many times slower. "
                   "Configure with -DCMAKE_BUILD_TYPE=Release")
  endif()
  set(minimamba_kernels_source "${CMAKE_CURRENT_BINARY_DIR}/minimamba/kernels.cpp")
  file(CONFIGURE OUTPUT "${minimamba_kernels_source}" CONTENT "#include <minimamba/kernels.hpp>\n")
  add_library(minimamba_kernels STATIC EXCLUDE_FROM_ALL "${minimamba_kernels_source}")
  add_library(minimamba::kernels ALIAS minimamba_kernels)
  target_link_libraries(minimamba_kernels PUBLIC minimamba::minimamba)
  target_compile_definitions(minimamba_kernels INTERFACE MINIMAMBA_COMPILED_KERNELS)
endif()
