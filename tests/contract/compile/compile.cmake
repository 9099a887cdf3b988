# What a compiler says, and what it leaves in objects:
#   cmake -DCASE=... -DCXX=... -DINCLUDE=... -DINCLUDES=... -DIMPLICIT=... -DWORK=... -P compile.cmake
# CXX compiles, INCLUDE is our folder of headers, INCLUDES are those of our dependencies, but for those that compilers
# search anyway, IMPLICIT. Prints "skipped: <why>" where a compiler, or an instruction set, is not there.
cmake_minimum_required(VERSION 3.21)

set(here ${CMAKE_CURRENT_LIST_DIR})
set(work ${WORK}/${CASE})
file(REMOVE_RECURSE ${work})
file(MAKE_DIRECTORY ${work})

list(REMOVE_ITEM INCLUDES ${INCLUDE} ${IMPLICIT})
list(REMOVE_DUPLICATES INCLUDES)
list(TRANSFORM INCLUDES PREPEND -isystem)
set(compile ${CXX} -std=c++20 -I${INCLUDE} ${INCLUDES})
set(warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror)

# Sets result and output.
macro(try_to)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${work} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE complaint)
endmacro()

macro(run)
  try_to(${ARGN})
  if(NOT result EQUAL 0)
    string(REPLACE ";" " " command "${ARGN}")
    message(FATAL_ERROR "${command}\nended with ${result}:\n${output}${complaint}")
  endif()
endmacro()

# The code of kernels and of readers is left to other tests.
set(declared -DMINIMAMBA_COMPILED_KERNELS -DMINIMAMBA_COMPILED_FILES)

# Compiles the headers once, for the many units of a check; adds what uses them to `compile`.
macro(precompile)
  list(APPEND compile ${declared})
  set(text "")
  foreach(header IN ITEMS ${ARGN})
    string(APPEND text "#include <minimamba/${header}>\n")
  endforeach()
  file(WRITE ${work}/headers.hpp "${text}")
  run(${compile} ${warnings} -x c++-header headers.hpp -o headers.hpp.gch)
  list(APPEND compile -include headers.hpp)
endmacro()

# A list of the lines that match: semicolons and brackets, which CMake's lists cannot hold, never do.
function(lines_matching pattern text out)
  string(REGEX MATCHALL "${pattern}" lines "${text}")
  list(SORT lines)
  list(REMOVE_DUPLICATES lines)
  set(${out} "${lines}" PARENT_SCOPE)
endfunction()

# Every public header, in the order of their names.
function(write_all_headers file)
  file(GLOB_RECURSE headers RELATIVE ${INCLUDE} ${INCLUDE}/minimamba/*.hpp)
  list(REMOVE_ITEM headers minimamba/core/isa.hpp minimamba/mpi.hpp)  # MPI is not everywhere
  list(SORT headers)
  list(TRANSFORM headers REPLACE "(.+)" "#include <\\1>\n")
  string(CONCAT text ${headers})
  file(WRITE ${file} "${text}")
endfunction()

# A model is built, saved, loaded and run without run-time type information.
function(check_no_rtti)
  run(${compile} ${warnings} -fno-rtti -pthread ${here}/no_rtti.cpp -o program)
  run(${work}/program)
endfunction()

# No name of ours is in the way of one of the standard library's, where both are used unqualified.
function(check_unqualified)
  write_all_headers(${work}/all.hpp)
  run(${compile} ${declared} -fsyntax-only "-DALL_HEADERS=\"${work}/all.hpp\"" ${here}/unqualified.cpp)
endfunction()

# Flags that give up reproducible bits and tests for NaN are refused by every header, once, in words.
function(check_fast_math)
  foreach(header IN ITEMS minimamba/minimamba.hpp minimamba/core/view.hpp)
    file(WRITE ${work}/unit.cpp "#include <${header}>\n#include <minimamba/core/version.hpp>\n")
    run(${compile} ${declared} -O3 -fsyntax-only unit.cpp)
    set(flags -ffast-math -Ofast -ffinite-math-only)
    if(header STREQUAL "minimamba/minimamba.hpp")  # of the flags, one is enough
      set(flags -ffast-math)
    endif()
    foreach(flag IN LISTS flags)
      try_to(${compile} ${declared} ${flag} -fsyntax-only unit.cpp)
      string(REGEX MATCHALL "error: [^\n]*minimamba cannot be compiled with -ffast-math" complaints "${complaint}")
      list(LENGTH complaints count)
      if(result EQUAL 0 OR NOT count EQUAL 1)
        message(SEND_ERROR "${header} with ${flag}: expected one refusal in words, found status ${result}:\n${complaint}")
      endif()
    endforeach()
  endforeach()
endfunction()

# A language older than C++20 is refused in words by every header, and a program needs no Eigen unless it names it.
function(check_requirements)
  foreach(header IN ITEMS minimamba/minimamba.hpp minimamba/core/view.hpp minimamba/core/version.hpp)
    file(WRITE ${work}/unit.cpp "#include <${header}>\n")
    try_to(${CXX} -std=c++17 -I${INCLUDE} ${INCLUDES} -fsyntax-only unit.cpp)
    if(result EQUAL 0 OR NOT complaint MATCHES "error: [^\n]*minimamba needs C\\+\\+20")
      message(SEND_ERROR "${header}: expected a refusal of C++17 in words, found status ${result}:\n${complaint}")
    endif()
  endforeach()
  list(FILTER INCLUDES EXCLUDE REGEX "[Ee]igen")
  run(${CXX} -std=c++20 -I${INCLUDE} ${INCLUDES} -fsyntax-only ${here}/no_eigen.cpp)
endfunction()

# What our headers leave behind, beyond what the headers of others do, is guards and the version.
function(check_macros)
  file(GLOB_RECURSE files ${INCLUDE}/minimamba/*.hpp ${INCLUDE}/minimamba/*.inl)
  set(theirs "")
  foreach(file IN LISTS files)
    file(STRINGS ${file} includes REGEX "^#include <.+>")
    list(APPEND theirs ${includes})
  endforeach()
  list(REMOVE_DUPLICATES theirs)
  # A compiler may carry the intrinsics of machines that it does not compile for; they end in #error.
  list(REMOVE_ITEM theirs "#include <arm_neon.h>" "#include <cpuid.h>" "#include <immintrin.h>")
  list(TRANSFORM theirs REPLACE "#include (<.+>).*" "#if __has_include(\\1)\n#include \\1\n#endif\n")
  # PCRE2 asks for a macro, which must not stay.
  list(TRANSFORM theirs REPLACE "(#include <pcre2.h>)"
                 "#define PCRE2_CODE_UNIT_WIDTH 8\n\\1\n#undef PCRE2_CODE_UNIT_WIDTH")
  string(CONCAT text ${theirs} "#if defined(__ARM_NEON)\n#include <arm_neon.h>\n"
                "#elif defined(__x86_64__)\n#include <cpuid.h>\n#include <immintrin.h>\n#endif\n")
  file(WRITE ${work}/theirs.hpp "${text}")
  file(WRITE ${work}/both.hpp "${text}#include \"all.hpp\"\n")
  write_all_headers(${work}/all.hpp)
  foreach(which IN ITEMS theirs both)
    run(${compile} -pthread -dM -E -x c++ ${work}/${which}.hpp)
    lines_matching("#define [A-Za-z0-9_]+" "${output}" ${which})
  endforeach()
  list(REMOVE_ITEM both ${theirs})
  list(FILTER both EXCLUDE REGEX "^#define MINIMAMBA_([A-Z0-9_]+_HPP|VERSION_(MAJOR|MINOR|PATCH|STRING))$")
  if(both)
    message(FATAL_ERROR "macros leak: ${both}")
  endif()
endfunction()

# A backend that lacks a function is refused in less than 20 lines, which show the call that cannot be made.
function(expect_named function)
  try_to(${ARGN})
  string(REGEX REPLACE "In file included from [^\n]*/headers.hpp:[0-9]+:\n" "" complaint "${complaint}")  # ours, for speed
  string(REGEX MATCHALL "\n" lines "${complaint}")
  list(LENGTH lines length)
  if(result EQUAL 0 OR NOT length LESS 20 OR NOT complaint MATCHES "backend\\.(template )?${function}[(<]")
    message(SEND_ERROR "${ARGN}\nexpected a refusal in less than 20 lines that shows a call of ${function}, "
                       "found status ${result} and ${length} lines:\n${complaint}")
  endif()
endfunction()

function(check_missing_kernel)
  precompile(backend/host_memory.hpp nn/mamba.hpp)
  set(source -fsyntax-only ${here}/missing_kernel.cpp)
  run(${compile} ${warnings} ${source})
  run(${compile} ${warnings} ${source} -DLOADED)
  file(STRINGS ${here}/missing_kernel.cpp functions REGEX "^#ifndef WITHOUT_")
  foreach(function IN LISTS functions)
    string(REPLACE "#ifndef WITHOUT_" "" function ${function})
    expect_named(${function} ${compile} ${source} -DWITHOUT_${function})
  endforeach()
  expect_named(matmul ${compile} ${source} -DWITHOUT_matmul -DLOADED)
endfunction()

# The same of training, by each that trains; what it asks for are the calls in its concepts.
function(check_missing_training_kernel)
  precompile(backend/reference_training.hpp train/adamw.hpp train/tape.hpp train/trainer.hpp)
  set(source -fsyntax-only ${here}/missing_training_kernel.cpp)
  file(STRINGS ${INCLUDE}/minimamba/backend/training_concept.hpp functions REGEX "^ .*backend\\.[a-z0-9_]+\\(.*;$")
  list(TRANSFORM functions REPLACE ".*backend\\.([a-z0-9_]+).*" "\\1")
  list(REMOVE_DUPLICATES functions)
  foreach(by IN ITEMS TRAINER ADAMW TAPE)
    run(${compile} ${warnings} ${source} -DBY_${by})
    expect_named(adamw ${compile} ${source} -DBY_${by} -DWITHOUT=adamw)
  endforeach()
  foreach(function IN LISTS functions)
    expect_named(${function} ${compile} ${source} -DWITHOUT=${function})
  endforeach()
endfunction()

# Case 0 of a file compiles without a warning; each other case is an error that says the words given for it, in order,
# in less than 35 lines from case `brief` on.
function(expect_words file brief)
  set(source -fsyntax-only ${here}/${file})
  run(${compile} ${warnings} ${source} -DCASE=0)
  set(number 0)
  foreach(expected IN LISTS ARGN)
    math(EXPR number "${number} + 1")
    try_to(${compile} ${source} -DCASE=${number})
    if(result EQUAL 0 OR NOT complaint MATCHES "${expected}")
      message(SEND_ERROR "case ${number}: expected an error that says ${expected}, found ${result}:\n${complaint}")
    endif()
    string(REGEX MATCHALL "\n" lines "${complaint}")
    list(LENGTH lines length)
    if(NOT number LESS brief AND NOT length LESS 35)
      message(SEND_ERROR "case ${number}: expected less than 35 lines, found ${length}:\n${complaint}")
    endif()
  endforeach()
endfunction()

# What a model lacks is said in words.
function(check_words)
  precompile(train.hpp)
  set(training "training needs a backend such as NativeTraining")
  expect_words(words.cpp 6 "must be causal" "needs Model shapes\\(\\) const" "a folder holds a language model"
               "a GGUF file holds a language model" "the model needs check, forward and forward_last"
               "weights may be bf16: Mamba<float, NativeBackend, bf16>" "${training}" "${training}" "${training}"
               "${training}" "for weights in this format" "SSD needs two kernels that the backend lacks"
               "to train SSD, the backend needs two kernels that it lacks" "a backend with rounds_operand also needs")
endfunction()

# A small machine: no heap and no exceptions, and models that do not fit are refused in words.
function(check_embedded)
  list(APPEND compile -fno-exceptions -fno-rtti)
  expect_words(embedded.cpp 1 "these weights belong to another Config" "larger than the flash of the Board"
               "larger than the RAM of the Board" "the Config of a Mamba-2" "is float or minimamba::q8"
               "the Sum of a Board is double or float")
  find_program(NM nm)
  if(NOT NM)
    message("nm was not found: what the object needs was not looked at")
    return()
  endif()
  run(${compile} ${warnings} -O1 -DCASE=0 -c ${here}/embedded.cpp -o embedded.o)
  run(${NM} embedded.o)
  lines_matching(" U [^\n]+" "${output}" needed)
  list(FILTER needed EXCLUDE REGEX " U _*(expf?|log1pf?|sqrtf?|mem(cpy|move|set)|stack_chk_fail|GLOBAL_OFFSET_TABLE_|ZN9minimamba.*|.*weights.*)$")
  if(needed)
    message(FATAL_ERROR "a StaticMamba needs ${needed}")
  endif()
endfunction()

# Mistakes with generate() are reported in words: a range that nobody iterates, a callback that returns nothing, a text.
function(check_generation)
  precompile(minimamba.hpp)
  expect_words(generation.cpp 4 "computes nothing until its range is iterated"
               "on_token\\(token\\) must return a bool" "on_token\\(row, token\\) must return a bool"
               "pass tokenizer.encode\\(text\\)")
endfunction()

# Results of a card that are read in place are refused: they must be copied first.
function(check_device)
  precompile(cuda.hpp)
  set(words "are in the memory of another device: read row\\(i\\) of model.backend\\(\\).to_host\\(logits\\)")
  expect_words(device.cpp 1 "${words}" "${words}" "${words}")
endfunction()

# Links the units in the order given, and runs the program; sets ran, and <unit>_lines for each of them.
macro(run_units)
  set(uses "")
  set(objects "")
  foreach(unit IN ITEMS ${ARGN})
    string(APPEND uses " USE(${unit})")
    list(APPEND objects ${unit}.o)
  endforeach()
  run(${compile} "-DUNITS=${uses}" ${here}/isa_main.cpp ${objects} -pthread -o program)
  try_to(${work}/program)
  if(result EQUAL 77)
    set(ran FALSE)
  elseif(result EQUAL 0)
    set(ran TRUE)
    message("${ARGN}: ${complaint}")
    foreach(unit IN ITEMS ${ARGN})
      lines_matching("${unit} [a-z]+ [0-9]+ [0-9a-f]+" "${output}" ${unit}_lines)
    endforeach()
  else()
    message(FATAL_ERROR "units ${ARGN} disagree:\n${output}${complaint}")
  endif()
endmacro()

# Sets shared: the names that two objects both define and the linker would merge.
function(shared_names a b out)
  foreach(unit IN ITEMS ${a} ${b})
    run(${NM} ${unit}.o)
    lines_matching(" [BDRTVWu] [^\n]+" "${output}" ${unit}_names)
  endforeach()
  set(shared ${${a}_names})
  list(REMOVE_ITEM shared ${${b}_names})
  set(only_a ${shared})
  set(shared ${${a}_names})
  list(REMOVE_ITEM shared ${only_a})
  set(${out} "${shared}" PARENT_SCOPE)
endfunction()

# Units of different -m flags in one program, linked in either order, each answer as they do alone.
function(check_instruction_sets)
  run(${CXX} -dumpmachine)
  if(NOT output MATCHES "^(x86_64|amd64)")
    message("skipped: no two sets of flags are known for ${output}")
    return()
  endif()
  set(flags_of_plain "")
  set(flags_of_avx2 -mavx2 -mfma)
  set(flags_of_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
  set(units "")
  foreach(unit IN ITEMS plain avx2 avx512)
    run(${compile} -O1 ${flags_of_${unit}} -DUNIT=${unit} -c ${here}/isa_unit.cpp -o ${unit}.o)
    run_units(${unit})
    if(ran)
      list(APPEND units ${unit})
      set(${unit}_alone ${${unit}_lines})
    endif()
  endforeach()
  if(units STREQUAL "plain")
    message("skipped: this machine has no AVX2")
    return()
  endif()

  set(reversed ${units})
  list(REVERSE reversed)
  foreach(order IN ITEMS units reversed)
    run_units(${${order}})
    foreach(unit IN LISTS units)
      if(NOT ${unit}_lines OR NOT ${unit}_lines STREQUAL ${unit}_alone)
        message(SEND_ERROR "linked as ${${order}}, ${unit} answers ${${unit}_lines}; alone ${${unit}_alone}")
      endif()
    endforeach()
  endforeach()

  find_program(NM nm)
  if(NOT NM)
    message("nm was not found: what the objects share was not looked at")
    return()
  endif()
  foreach(unit IN ITEMS avx2 avx512)
    shared_names(plain ${unit} shared)
    list(FILTER shared INCLUDE REGEX "minimamba|Eigen")
    if(shared)
      message(SEND_ERROR "plain and ${unit} both define: ${shared}")
    endif()
  endforeach()
endfunction()

file(WRITE ${work}/probe.cpp "#include <concepts>\n#include <span>\nint main() {}\n")
try_to(${CXX} -std=c++20 ${work}/probe.cpp -o ${work}/probe)
if(NOT result EQUAL 0)
  message("skipped: ${CXX} is not here, or compiles no C++20")
  return()
endif()
cmake_language(CALL check_${CASE})
