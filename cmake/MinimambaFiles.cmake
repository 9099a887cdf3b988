# minimamba::files: what opens and converts files, compiled once for a whole project, with its own compiler and flags.
# What links it takes seconds less a file to compile. Nothing is built unless something links it.
if(NOT TARGET minimamba_files)
  set(minimamba_files_source "${CMAKE_CURRENT_BINARY_DIR}/minimamba/files.cpp")
  file(CONFIGURE OUTPUT "${minimamba_files_source}" CONTENT "#include <minimamba/files.hpp>\n")
  add_library(minimamba_files STATIC EXCLUDE_FROM_ALL "${minimamba_files_source}")
  add_library(minimamba::files ALIAS minimamba_files)
  target_link_libraries(minimamba_files PUBLIC minimamba::io)
  target_compile_definitions(minimamba_files INTERFACE MINIMAMBA_COMPILED_FILES)
endif()
