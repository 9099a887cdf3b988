# minimamba_program(NAME SOURCE...) adds a program of this repository, with warnings and sanitizers.
function(minimamba_program name)
  add_executable(${name} ${ARGN})
  minimamba_checks(${name})
endfunction()

function(minimamba_checks name)
  set_target_properties(${name} PROPERTIES CXX_EXTENSIONS OFF)
  if(MSVC)
    target_compile_options(${name} PRIVATE /W4 $<$<BOOL:${MINIMAMBA_WERROR}>:/WX>)
  else()
    target_compile_options(${name} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion
                                           $<$<BOOL:${MINIMAMBA_WERROR}>:-Werror>)
    if(MINIMAMBA_SANITIZE)
      target_compile_options(${name} PRIVATE -fsanitize=${MINIMAMBA_SANITIZE} -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer)
      target_link_options(${name} PRIVATE -fsanitize=${MINIMAMBA_SANITIZE})
    endif()
  endif()
endfunction()
