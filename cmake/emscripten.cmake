# Compiles for browsers with emscripten, as packaged by Debian and Ubuntu (3.1.6) or from its own SDK.
find_program(MINIMAMBA_EM_CONFIG em-config REQUIRED)
execute_process(COMMAND ${MINIMAMBA_EM_CONFIG} EMSCRIPTEN_ROOT OUTPUT_VARIABLE emscripten OUTPUT_STRIP_TRAILING_WHITESPACE)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)  # Eigen's headers are those of this machine
set(CMAKE_HAVE_LIBC_PTHREAD TRUE CACHE INTERNAL "The functions are there; threads are not")
include(${emscripten}/cmake/Modules/Platform/Emscripten.cmake)
set(CMAKE_PROJECT_minimamba_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/MinimambaWeb.cmake")
