# Uses minimamba from another project: cmake -DWAY=... -DSOURCE=... -DWORK=... -DCXX=... -DGENERATOR=... -DEIGEN=... -P consume.cmake
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nended with ${result}:\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

# Expects a failure whose message contains these words.
function(refused words)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  string(FIND "${output}" "${words}" position)
  if(result EQUAL 0 OR position EQUAL -1)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nended with ${result}, expected a refusal that says '${words}':\n${output}")
  endif()
endfunction()

# Strict warnings apply to the program and to our headers, but not to those of Eigen.
set(strict "")
if(NOT GENERATOR MATCHES "Visual Studio")
  set(strict -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror)
endif()
list(JOIN strict " " strict_flags)
set(toolchain -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX})
set(library ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/library ${toolchain} -DCMAKE_INSTALL_PREFIX=${WORK}/built-for
            -DMINIMAMBA_BUILD_TESTS=OFF -DMINIMAMBA_BUILD_EXAMPLES=OFF -DMINIMAMBA_BUILD_BENCH=OFF)
set(consumer ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK}/build ${toolchain} -DWAY=${WAY}
             -DMINIMAMBA_SOURCE=${SOURCE} -DCMAKE_PREFIX_PATH=${WORK}/prefix "-DCMAKE_CXX_FLAGS=${strict_flags}")

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
if(WAY STREQUAL "find_package" OR WAY STREQUAL "pkg_config")
  run(${library})
  run(${CMAKE_COMMAND} --install ${WORK}/library --prefix ${WORK}/prefix)  # another than it was configured for
endif()

if(WAY STREQUAL "plain_line")  # the one of the README: nothing is installed or configured
  run(${CXX} -std=c++20 -O2 ${strict} -pthread -I${SOURCE}/include -isystem ${EIGEN} ${SOURCE}/examples/hello.cpp -o ${WORK}/hello)
  run(${CMAKE_COMMAND} -E chdir ${WORK} ${WORK}/hello)
  return()
endif()

if(WAY STREQUAL "pkg_config")
  find_program(PKG_CONFIG pkg-config REQUIRED)
  set(ENV{PKG_CONFIG_PATH} ${WORK}/prefix/share/pkgconfig)
  set(define_minimamba-io -DWITH_IO)
  foreach(package IN ITEMS minimamba minimamba-io)
    run(${PKG_CONFIG} --cflags --libs ${package})
    separate_arguments(flags UNIX_COMMAND "${output}")
    run(${CXX} -std=c++20 ${strict} ${define_${package}} ${CMAKE_CURRENT_LIST_DIR}/main.cpp ${flags} -o ${WORK}/program)
    run(${CMAKE_COMMAND} -E chdir ${WORK} ${WORK}/program)
  endforeach()
  return()
endif()

run(${consumer})
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${CMAKE_COMMAND} -E chdir ${WORK} ${WORK}/build/program)

if(WAY STREQUAL "add_subdirectory" OR WAY STREQUAL "fetch_content")
  refused("apt install nlohmann-json3-dev" ${consumer} -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
  refused("apt install libutf8proc-dev" ${consumer} -UCMAKE_DISABLE_* -DCMAKE_DISABLE_FIND_PACKAGE_Utf8proc=ON)
endif()
if(WAY STREQUAL "add_subdirectory")  # what is missing can be fetched: here from folders that stand for the repositories
  file(MAKE_DIRECTORY ${WORK}/json/single_include)
  file(WRITE ${WORK}/utf8proc/CMakeLists.txt "add_library(utf8proc INTERFACE)\n")
  run(${consumer} -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON -DCMAKE_DISABLE_FIND_PACKAGE_Utf8proc=ON
      -DMINIMAMBA_FETCH_DEPENDENCIES=ON -DFETCHCONTENT_SOURCE_DIR_MINIMAMBA_NLOHMANN_JSON=${WORK}/json
      -DFETCHCONTENT_SOURCE_DIR_MINIMAMBA_UTF8PROC=${WORK}/utf8proc)
  if(NOT output MATCHES "Fetching nlohmann_json .*Fetching Utf8proc ")
    message(FATAL_ERROR "nothing was fetched:\n${output}")
  endif()
endif()
if(WAY STREQUAL "find_package")
  refused("requested version \"99.0\"" ${consumer} -DWANTED_VERSION=99.0)
  refused("requested version \"0.0.9\"" ${consumer} -DWANTED_VERSION=0.0.9)
  refused("no component nonsense" ${consumer} -UWANTED_VERSION -DWANTED_COMPONENT=nonsense)
  set(again ${consumer} -UWANTED_COMPONENT)
  refused("apt install libeigen3-dev" ${again} -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON)
  refused("apt install nlohmann-json3-dev" ${again} -UCMAKE_DISABLE_* -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
  refused("apt install libutf8proc-dev" ${again} -UCMAKE_DISABLE_* -DCMAKE_DISABLE_FIND_PACKAGE_Utf8proc=ON)
  refused("apt install libeigen3-dev" ${library} -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON)
endif()
