# A mixer is named in its own files and in the registry, and nowhere in what serves all mixers (law 16):
# cmake -DINCLUDE=... -P mixers.cmake
file(GLOB shared ${INCLUDE}/minimamba/train/*.hpp ${INCLUDE}/minimamba/generate/*.hpp)
foreach(name IN ITEMS nn/mamba nn/mamba_block nn/mamba_model nn/blocks nn/inference_cache nn/workspace nn/mixer nn/selection io/load
                      io/save io/transfer io/state io/any_model io/any_model_of io/open_checkpoint io/checkpoint)
  if(NOT EXISTS ${INCLUDE}/minimamba/${name}.hpp)
    message(FATAL_ERROR "there is no ${name}.hpp")
  endif()
  list(APPEND shared ${INCLUDE}/minimamba/${name}.hpp)
endforeach()
foreach(file IN LISTS shared)
  file(STRINGS ${file} lines REGEX "(SSD|Ssd|ssd|[Mm]amba-?2)")
  if(lines)
    message(FATAL_ERROR "${file} names a mixer that it should not know:\n${lines}")
  endif()
endforeach()
