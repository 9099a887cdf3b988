# Libraries for the emulated machine. GoogleTest is compiled from its source package. utf8proc, which no emulated test
# calls, is an empty target: the linker leaves out the tokenizers of minimamba::files, which would call it. Eigen and
# nlohmann-json are header-only.
find_package(Threads REQUIRED)
find_path(GTEST_SOURCE gtest-all.cc PATHS /usr/src/googletest/googletest/src NO_CMAKE_FIND_ROOT_PATH REQUIRED)
add_library(emulated_gtest STATIC EXCLUDE_FROM_ALL "${GTEST_SOURCE}/gtest-all.cc" "${GTEST_SOURCE}/gtest_main.cc")
target_include_directories(emulated_gtest PRIVATE "${GTEST_SOURCE}/..")
target_include_directories(emulated_gtest SYSTEM PUBLIC "${GTEST_SOURCE}/../include")
target_link_libraries(emulated_gtest PUBLIC Threads::Threads)
add_library(GTest::gtest_main ALIAS emulated_gtest)
add_library(utf8proc::utf8proc INTERFACE IMPORTED GLOBAL)
add_compile_options(-ffunction-sections)
add_link_options(-Wl,--gc-sections)
