# What perplexity prints and how it ends:
# cmake -DPERPLEXITY=... -DTRAIN=... -DDATA=... -DTOKENIZER=... -DWORK=... -P perplexity.cmake
function(expect status output)
  execute_process(COMMAND ${PERPLEXITY} ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE printed ERROR_VARIABLE errors)
  if(NOT result STREQUAL "${status}" OR NOT "${printed}${errors}" MATCHES "${output}")
    message(FATAL_ERROR "perplexity ${ARGN}\nended with ${result} and printed:\n${printed}${errors}\nexpected ${status}: ${output}")
  endif()
  set(printed "${printed}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
string(REPEAT "the quick brown fox jumps over the lazy dog. " 40 text)
file(WRITE ${WORK}/text.txt "${text}")
file(WRITE ${WORK}/one.txt "a")
file(WRITE ${WORK}/empty.txt "")
set(model ${WORK}/model)
foreach(flags IN ITEMS "--steps;40;--out;${model}" "--steps;1;--out;${model}-words;--tokenizer;${TOKENIZER}")
  execute_process(COMMAND ${TRAIN} --d-model 32 --n-layer 2 --batch 2 --length 32 --warmup 1 --max-lr 0.01 --sample-every 0
                          --text ${WORK}/text.txt ${flags} RESULT_VARIABLE result OUTPUT_QUIET)
  if(result)
    message(FATAL_ERROR "train failed")
  endif()
endforeach()

set(one --model ${model} --file ${WORK}/text.txt)
expect(0 "^tokens: 1799\nnats per token: [0-9.]+\nbits per byte: [0-9.]+\nperplexity: [0-9.]+\ntokens per second: [0-9]+\n$" ${one})
set(first "${printed}")
expect(0 "^tokens: 1799\n" --model ${model} --text ${WORK}/text.txt)
string(REGEX REPLACE "tokens per second.*" "" first "${first}")
foreach(flags IN ITEMS "--threads;1" "--backend;native" "--backend;reference;--last;1")  # the same bits but for the backend
  expect(0 "nats per token" ${one} ${flags})
  string(REGEX REPLACE "tokens per second.*" "" again "${printed}")
  if(NOT "${flags}" MATCHES reference AND NOT again STREQUAL first)
    message(FATAL_ERROR "with ${flags}:\n${again}\nand not\n${first}")
  endif()
endforeach()
expect(0 "^tokens: 179\n" ${one} --last 0.1)
expect(0 "^tokens: 3598\n" ${one} ${WORK}/text.txt)  # two texts, each from the beginning
string(REGEX MATCH "nats per token: [0-9.]+\nbits per byte: [0-9.]+" twice "${printed}")
if(NOT first MATCHES "${twice}")
  message(FATAL_ERROR "the same text twice: ${twice}\nand once: ${first}")
endif()
expect(0 "^weights  nats per token .*\nf32  .* [+]0.000 %.*\nbf16 .*\nf16 .*\nq8 .*\nq4 .*\n$" ${one} --weights f32,bf16,f16,q8,q4)
expect(0 "^weights .*\nq8 .*\nf32 .*\n$" ${one} --weights q8 f32 --backend eigen)

# Mamba-2, of bytes: the same on every backend, but for rounding.
set(ssd --model ${DATA}/tiny-mamba2-official --file ${WORK}/text.txt)
expect(0 "^weights .*\nf32 .*\nq4 .*\n$" ${ssd} --weights f32,q4)
set(nats "")
foreach(backend IN ITEMS native eigen reference)
  expect(0 "^tokens: 1799\nnats per token: [0-9.]+\n" ${ssd} --backend ${backend})
  string(REGEX MATCH "nats per token: [0-9]+[.][0-9][0-9]" found "${printed}")
  list(APPEND nats "${found}")
endforeach()
list(REMOVE_DUPLICATES nats)
list(LENGTH nats different)
if(NOT different EQUAL 1)
  message(FATAL_ERROR "the backends differ: ${nats}")
endif()

expect(1 "two tokens or more.*found 0" --model ${model} --file ${WORK}/empty.txt)
expect(1 "two tokens or more.*found 1" --model ${model} --file ${WORK}/one.txt)
expect(1 "no-such-text" --model ${model} --file ${WORK}/no-such-text)
expect(1 "no-such-model" --model ${WORK}/no-such-model --file ${WORK}/text.txt)
expect(1 "the model has no tokenizer; use --tokenizer" --model ${DATA}/tiny-hf --file ${WORK}/text.txt)
expect(2 "" ${one} --weights f99)
expect(2 "" ${one} --last 2)
expect(2 "--file" --model ${model})
expect(0 "minimamba [0-9]" --version)

# A tokenizer's template is no part of the text.
file(WRITE ${WORK}/two.txt "xy")
expect(0 "^tokens: 1\n" --model ${model}-words --file ${WORK}/two.txt)
expect(1 "two tokens or more.*found 1" --model ${model}-words --file ${WORK}/one.txt)

if(NOT CMAKE_HOST_WIN32)
  execute_process(COMMAND ${CMAKE_COMMAND} -E cat ${WORK}/text.txt COMMAND ${PERPLEXITY} --model ${model} --file -
                  OUTPUT_VARIABLE printed)
  string(REGEX REPLACE "tokens per second.*" "" printed "${printed}")
  if(NOT printed STREQUAL first)
    message(FATAL_ERROR "from standard input:\n${printed}\nand not\n${first}")
  endif()

  # NaN in a weight, the last of the file: which tensor, and after how many tokens.
  file(COPY ${model}/ DESTINATION ${WORK}/nan)
  file(SIZE ${WORK}/nan/model.safetensors size)
  math(EXPR last "${size} - 4")
  execute_process(COMMAND sh -c "printf '\\000\\000\\300\\177' | dd of='${WORK}/nan/model.safetensors' bs=1 seek=${last} conv=notrunc 2>/dev/null")
  expect(1 "model.safetensors: [a-z_.A-Z0-9]+: the logits after 1 token are not finite: element [0-9]+ of this tensor is nan"
         --model ${WORK}/nan --file ${WORK}/text.txt)

  # What nobody reads is not measured: this would take a minute.
  string(REPEAT "f32," 3000 many)
  execute_process(COMMAND ${PERPLEXITY} ${one} --weights ${many}f32 COMMAND ${CMAKE_COMMAND} -E true
                  RESULTS_VARIABLE results ERROR_VARIABLE errors TIMEOUT 20)
  if(NOT "${results} ${errors}" STREQUAL "0;0 ")
    message(FATAL_ERROR "with a broken pipe, perplexity ended with ${results}: ${errors}")
  endif()

  # Interrupted: said so, and no part of a loss is given out for all of it.
  string(REPEAT "${text}" 1000 long)
  file(WRITE ${WORK}/long.txt "${long}")
  file(WRITE ${WORK}/interrupt.sh "'${PERPLEXITY}' --model '${model}' --file '${WORK}/long.txt' --backend reference \\
  --weights f32,q8 > '${WORK}/interrupted.txt' 2> '${WORK}/interrupted.err' &
pid=$!
while kill -0 $pid 2>/dev/null && ! grep -q weights '${WORK}/interrupted.txt'; do :; done
sleep 1; kill -INT $pid; wait $pid
")
  execute_process(COMMAND sh ${WORK}/interrupt.sh RESULT_VARIABLE result TIMEOUT 60)
  file(READ ${WORK}/interrupted.txt printed)
  file(READ ${WORK}/interrupted.err errors)
  if(NOT result EQUAL 130 OR NOT printed MATCHES "^weights[^\n]*\n$" OR
     NOT errors MATCHES "^perplexity: f32: interrupted after [0-9]+ of 1799999 tokens\n$")
    message(FATAL_ERROR "interrupted, perplexity ended with ${result} and printed:\n${printed}${errors}")
  endif()
endif()

# In a terminal, the line that changes is never wider than that.
find_program(SCRIPT script)
if(SCRIPT AND CMAKE_HOST_SYSTEM_NAME STREQUAL Linux)
  string(REPEAT "${text}" 40 long)
  file(WRITE ${WORK}/long.txt "${long}")
  file(WRITE ${WORK}/narrow.sh "stty cols 30; '${PERPLEXITY}' --model '${model}' --file '${WORK}/long.txt' --backend reference\n")
  execute_process(COMMAND ${SCRIPT} -qec "sh '${WORK}/narrow.sh'" /dev/null OUTPUT_VARIABLE printed RESULT_VARIABLE result TIMEOUT 60)
  string(REGEX MATCHALL "\rf32: [^\r\n]*" lines "${printed}")
  foreach(line IN LISTS lines ITEMS "${printed}")
    string(LENGTH "${line}" length)
    if((length GREATER 30 AND NOT line STREQUAL printed) OR NOT line MATCHES "\rf32: [0-9]+ of 71999 tokens, ")
      message(FATAL_ERROR "in 30 columns, perplexity wrote:\n${printed}")
    endif()
  endforeach()
endif()
