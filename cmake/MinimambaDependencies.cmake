# Finds the libraries that minimamba depends on. minimamba_find(NAME) looks for a package and, if
# MINIMAMBA_FETCH_DEPENDENCIES is on, downloads it by commit. minimamba_require(NAME) stops if it is still missing, with a
# message that says how to install it.
include_guard()
include(FetchContent)

# minimamba_dependency(NAME TARGET apt dnf brew vcpkg REPOSITORY COMMIT [HEADERS]): HEADERS is the include folder
# in the repository of a header-only library.
macro(minimamba_dependency name target apt dnf brew vcpkg repository commit)
  set(minimamba_target_${name} ${target})
  set(minimamba_repository_${name} ${repository})
  set(minimamba_commit_${name} ${commit})
  set(minimamba_headers_${name} ${ARGN})
  set(minimamba_cure_${name} "Install it with one of: apt install ${apt} | dnf install ${dnf} | brew install ${brew} | vcpkg install ${vcpkg}")
endmacro()
minimamba_dependency(Eigen3 Eigen3::Eigen libeigen3-dev eigen3-devel eigen eigen3  # 3.4.0
                     https://gitlab.com/libeigen/eigen.git 3147391d946bb4b6c68edd901f2add6ac1f31f8c .)
minimamba_dependency(nlohmann_json nlohmann_json::nlohmann_json nlohmann-json3-dev json-devel nlohmann-json nlohmann-json  # 3.11.3
                     https://github.com/nlohmann/json.git 9cca280a4d0ccf0c08f47a99aa71d1b0e52f8d03 single_include)
minimamba_dependency(Utf8proc utf8proc::utf8proc libutf8proc-dev utf8proc-devel utf8proc utf8proc  # 2.11.3
                     https://github.com/JuliaStrings/utf8proc.git e5e799221b45bbb90f5fdc5c69b6b8dfbf017e78)
minimamba_dependency(Pcre2 PCRE2::8BIT libpcre2-dev pcre2-devel pcre2 pcre2  # optional, never downloaded
                     "" "")
minimamba_dependency(CLI11 CLI11::CLI11 libcli11-dev cli11-devel cli11 cli11  # 2.7.2
                     https://github.com/CLIUtils/CLI11.git cbd58a3696887b34c70949aef21a71735a0c2ad5 include)
minimamba_dependency(GTest GTest::gtest_main libgtest-dev gtest-devel googletest gtest  # 1.17.0
                     https://github.com/google/googletest.git 52eb8108c5bdec04579160ae17225d66034bd723)
minimamba_dependency(benchmark benchmark::benchmark libbenchmark-dev google-benchmark-devel google-benchmark benchmark  # 1.9.4
                     https://github.com/google/benchmark.git eddb0241389718a23a42db6af5f0164b6e0139af)
minimamba_dependency(httplib httplib::httplib libcpp-httplib-dev - - -  # 0.11.4, optional; others have newer versions
                     https://github.com/yhirose/cpp-httplib.git 7992b148969fbf8093230b37a6a36c2f61135937 .)
set(minimamba_cure_httplib "Install it with apt install libcpp-httplib-dev, or configure with -DMINIMAMBA_FETCH_DEPENDENCIES=ON.")

macro(minimamba_find name)
  if(NOT TARGET ${minimamba_target_${name}})
    if("${name}" MATCHES "^(Utf8proc|Pcre2|httplib)$")
      find_package(${name} QUIET MODULE)
    else()
      find_package(${name} QUIET CONFIG)  # no version here: Eigen 5 would not match 3.4
    endif()
  endif()
  if(NOT TARGET ${minimamba_target_${name}} AND MINIMAMBA_FETCH_DEPENDENCIES AND minimamba_repository_${name})
    minimamba_fetch(${name})
  endif()
endmacro()

# The targets that this function defines are imported ones, so their headers are system headers without warnings. They are
# not part of our package: its users find these libraries on their own system.
function(minimamba_fetch name)
  message(STATUS "Fetching ${name} from ${minimamba_repository_${name}} at ${minimamba_commit_${name}}")
  set(content minimamba_${name})
  string(TOLOWER ${content} lower)
  set(options GIT_REPOSITORY ${minimamba_repository_${name}} GIT_TAG ${minimamba_commit_${name}})
  if(minimamba_headers_${name})
    FetchContent_Declare(${content} ${options} SOURCE_SUBDIR only-its-headers)  # a folder that does not exist, so that their CMakeLists.txt is not read
    FetchContent_MakeAvailable(${content})
    add_library(${minimamba_target_${name}} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${minimamba_target_${name}} INTERFACE "${${lower}_SOURCE_DIR}/${minimamba_headers_${name}}")
    return()
  endif()
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)  # so that these values override their options
  set(CMAKE_WARN_DEPRECATED OFF)
  foreach(option IN ITEMS BUILD_TESTING BUILD_SHARED_LIBS BUILD_GMOCK INSTALL_GTEST UTF8PROC_INSTALL
                          BENCHMARK_ENABLE_TESTING BENCHMARK_ENABLE_INSTALL BENCHMARK_ENABLE_WERROR)
    set(${option} OFF)
  endforeach()
  FetchContent_Declare(${content} ${options})
  FetchContent_MakeAvailable(${content})
  foreach(target IN ITEMS utf8proc gtest gtest_main benchmark)
    if(TARGET ${target})
      set_target_properties(${target} PROPERTIES SYSTEM ON)
    endif()
  endforeach()
  if(NOT TARGET ${minimamba_target_${name}})
    add_library(utf8proc::utf8proc INTERFACE IMPORTED GLOBAL)
    target_link_libraries(utf8proc::utf8proc INTERFACE utf8proc)
  endif()
endfunction()

macro(minimamba_require name)
  minimamba_find(${name})
  if(NOT TARGET ${minimamba_target_${name}})
    message(FATAL_ERROR "minimamba needs ${name}, which was not found. ${minimamba_cure_${name}}, "
                        "or configure with -DMINIMAMBA_FETCH_DEPENDENCIES=ON.")
  endif()
  if("${name}" STREQUAL "Eigen3" AND Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS 3.4)
    message(FATAL_ERROR "minimamba needs Eigen 3.4 or later, found ${Eigen3_VERSION}. ${minimamba_cure_Eigen3}")
  endif()
endmacro()
