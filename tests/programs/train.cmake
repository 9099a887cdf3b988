# What train prints and leaves, and how it ends: cmake -DTRAIN=... -DGENERATE=... -DDATA=... -DWORK=... -P train.cmake
function(expect status output)
  execute_process(COMMAND ${TRAIN} ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE printed ERROR_VARIABLE errors)
  if(NOT result STREQUAL "${status}" OR NOT "${printed}${errors}" MATCHES "${output}")
    message(FATAL_ERROR "train ${ARGN}\nended with ${result} and printed:\n${printed}${errors}\nexpected ${status}: ${output}")
  endif()
endfunction()
function(expect_same file)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${WORK}/whole/${file} ${WORK}/parts/${file} RESULT_VARIABLE differ)
  if(differ)
    message(FATAL_ERROR "${file} of the resumed training differs")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
string(REPEAT "the quick brown fox jumps over the lazy dog. " 200 text)
file(WRITE ${WORK}/text.txt "${text}")
file(WRITE ${WORK}/short.txt "short")
string(REPEAT "${text}" 500 long)
file(WRITE ${WORK}/long.txt "${long}")
file(WRITE ${WORK}/empty.txt "")
set(model --d-model 32 --n-layer 2 --batch 2 --length 32 --validate-every 20 --sample-every 60
          --sample-tokens 20)
set(small ${model} --steps 60 --warmup 5 --max-lr 0.01 --save-every 10 --text ${WORK}/text.txt)

expect(0 "step 60/60  loss [0-9.]+  validation [0-9.]+  [0-9]+ tokens/s.*---" ${small} --out ${WORK}/whole --threads 1)
foreach(file IN ITEMS model.safetensors config.json training.safetensors loss.csv loss.svg)
  if(NOT EXISTS ${WORK}/whole/${file})
    message(FATAL_ERROR "no ${file}")
  endif()
endforeach()
execute_process(COMMAND ${GENERATE} --model ${WORK}/whole --prompt "the quick" --max-new-tokens 8 RESULT_VARIABLE result OUTPUT_QUIET)
if(result)
  message(FATAL_ERROR "generate does not read what train wrote")
endif()

# Killed after its first checkpoint, and resumed with other threads: the same bytes as without.
string(JOIN "' '" quoted ${small})
file(WRITE ${WORK}/kill.sh "'${TRAIN}' '${quoted}' --out '${WORK}/parts' --threads 2 > '${WORK}/killed.log' &
pid=$!
while kill -0 $pid 2>/dev/null && ! [ -f '${WORK}/parts/training.safetensors' ]; do :; done
kill -9 $pid 2>/dev/null; wait $pid; exit 0
")
execute_process(COMMAND sh ${WORK}/kill.sh OUTPUT_QUIET ERROR_QUIET)
file(WRITE ${WORK}/parts/.minimamba-1234.tmp "what it may have left")
expect(0 "step 60/60" ${small} --out ${WORK}/parts --resume --threads 2)
foreach(file IN ITEMS model.safetensors config.json training.safetensors loss.csv loss.svg)
  expect_same(${file})
endforeach()

file(GLOB left ${WORK}/parts/.minimamba-*)
if(left)
  message(FATAL_ERROR "resuming left ${left}")
endif()

# Interrupted: saved, and said so.
file(WRITE ${WORK}/interrupt.sh "'${TRAIN}' --d-model 32 --n-layer 2 --steps 1000000 --text '${WORK}/text.txt' \\
  --out '${WORK}/interrupted' > '${WORK}/interrupted.log' &
pid=$!
while kill -0 $pid 2>/dev/null && ! grep -q step '${WORK}/interrupted.log'; do :; done
kill -INT $pid; wait $pid
")
execute_process(COMMAND sh ${WORK}/interrupt.sh RESULT_VARIABLE result TIMEOUT 60)
file(READ ${WORK}/interrupted.log printed)
if(NOT result EQUAL 130 OR NOT printed MATCHES "stopped after step" OR NOT EXISTS ${WORK}/interrupted/model.safetensors)
  message(FATAL_ERROR "interrupted, train ended with ${result} and printed:\n${printed}")
endif()

# Ctrl-C is heard while it validates and while it samples; what was not validated then is when the training goes on.
foreach(slow IN ITEMS "--validate-every 0 --sample-every 1 --sample-tokens 100000000"
                      "--validate-every 1 --validation-batches 1000000 --validation-fraction 0.5 --sample-every 0")
  file(WRITE ${WORK}/interrupt.sh "'${TRAIN}' --d-model 32 --n-layer 2 --steps 2 --batch 1 --length 8 --text '${WORK}/long.txt' \\
  --out '${WORK}/slow' ${slow} --save-every 0 > '${WORK}/interrupted.log' &
pid=$!
while kill -0 $pid 2>/dev/null && ! grep -q tokens '${WORK}/interrupted.log'; do :; done
sleep 1; kill -INT $pid; wait $pid; result=$?
grep -a -q 'stopped after step 1;' '${WORK}/interrupted.log' || exit 1
exit $result
")
  file(REMOVE_RECURSE ${WORK}/slow)
  execute_process(COMMAND sh ${WORK}/interrupt.sh RESULT_VARIABLE result TIMEOUT 60)
  if(NOT result EQUAL 130)
    message(FATAL_ERROR "interrupted, train ${slow} ended with ${result}: see ${WORK}/interrupted.log")
  endif()
endforeach()
expect(0 "step 2/2" --d-model 32 --n-layer 2 --steps 2 --batch 1 --length 8 --text ${WORK}/long.txt --out ${WORK}/slow
       --validate-every 1 --validation-batches 1 --validation-fraction 0.5 --sample-every 0 --resume)
file(STRINGS ${WORK}/slow/loss.csv lines)
if(NOT lines MATCHES ";1,[0-9.]+,[0-9.]+,.*;2,[0-9.]+,[0-9.]+,")
  message(FATAL_ERROR "a step was not validated:\n${lines}")
endif()

set(other ${model} --steps 1)
expect(0 "tokens to train on" --steps 1 --length 32 --text ${WORK}/text.txt --out ${WORK}/tuned --init ${WORK}/whole)
foreach(flag IN ITEMS --d-model=8 --n-layer=1 --d-state=4 --d-conv=2 --expand=1 --untied)
  expect(2 "--init" ${flag} --text ${WORK}/text.txt --out ${WORK}/none --init ${WORK}/whole)
endforeach()
expect(1 "this training run exists already; continue it with --resume" ${small} --out ${WORK}/whole)
expect(1 "backend eigen, found native" ${small} --out ${WORK}/whole --resume --backend eigen)
file(COPY ${WORK}/whole DESTINATION ${WORK}/longer)
set(longer ${model} --warmup 5 --max-lr 0.01 --text ${WORK}/text.txt --out ${WORK}/longer/whole --resume)
expect(0 "step 62/62.*note: .*60 steps; .*schedule for 62.*bits differ" ${longer} --steps 62)
expect(1 "steps 61, found 62" ${longer} --steps 61)
if(NOT WIN32)
  file(RENAME ${WORK}/longer/whole/training.safetensors ${WORK}/longer/stored)
  file(CREATE_LINK ../stored ${WORK}/longer/whole/training.safetensors SYMBOLIC)
  expect(0 "step 63/63" ${longer} --steps 63)
  if(NOT IS_SYMLINK ${WORK}/longer/whole/training.safetensors)
    message(FATAL_ERROR "train replaced a link")
  endif()
  expect(1 "steps 62, found 63" ${longer} --steps 62)
endif()
expect(1 "rate 0.001, found 0.01" ${other} --text ${WORK}/text.txt --out ${WORK}/whole --resume)
expect(1 "more than 32 tokens to train on.*found 0 of 0" ${other} --text ${WORK}/empty.txt --out ${WORK}/none)
expect(1 "more than 32 tokens to train on.*found 5 of 5" ${other} --text ${WORK}/short.txt --out ${WORK}/none)
expect(1 "no-such-text" ${other} --text ${WORK}/no-such-text --out ${WORK}/none)
expect(1 "training.safetensors" ${other} --text ${WORK}/text.txt --out ${WORK}/none --resume)
expect(1 "step [0-9]+: the loss is |the gradient of .*: not finite after" ${model} --steps 300 --clip 0
       --max-lr 1e30 --warmup 0 --text ${WORK}/text.txt --out ${WORK}/none)

# A model to start from brings its tokenizer; one without needs --tokenizer, which is a tokenizer.json.
set(vocabulary "")
set(shifted 256)
foreach(byte RANGE 255)
  set(code ${byte})
  if(byte LESS 33 OR byte EQUAL 173 OR (byte GREATER 126 AND byte LESS 161))
    set(code ${shifted})
    math(EXPR shifted "${shifted} + 1")
  endif()
  math(EXPR code "65536 + ${code}" OUTPUT_FORMAT HEXADECIMAL)
  string(SUBSTRING ${code} 3 4 code)
  string(APPEND vocabulary "\"\\u${code}\": ${byte}, ")
endforeach()
file(WRITE ${WORK}/tokenizer/tokenizer.json "{\"model\": {\"type\": \"BPE\", \"vocab\": {${vocabulary} \"ab\": 256}, \"merges\": [\"a b\"]},
  \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": {\"type\": \"ByteLevel\"}}")
string(REPEAT "ab ba" 200 text)
file(WRITE ${WORK}/letters.txt "${text}")
set(letters --steps 2 --batch 2 --length 16 --text ${WORK}/letters.txt --sample-every 0)
expect(0 "720 tokens to train on" ${letters} --d-model 32 --n-layer 1 --out ${WORK}/letters --tokenizer ${WORK}/tokenizer)
expect(0 "720 tokens to train on, 80 to" ${letters} --out ${WORK}/more --init ${WORK}/letters)
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${WORK}/more/tokenizer.json ${WORK}/tokenizer/tokenizer.json RESULT_VARIABLE differ)
if(differ)
  message(FATAL_ERROR "the tokenizer of --init is not that of the new model")
endif()
file(COPY ${WORK}/letters/model.safetensors ${WORK}/letters/config.json DESTINATION ${WORK}/bare)
expect(1 "--init .*bare: the model has no tokenizer; use --tokenizer" ${letters} --out ${WORK}/none --init ${WORK}/bare)
file(GLOB gguf ${DATA}/gguf/*.gguf)
list(GET gguf 0 gguf)
file(COPY ${gguf} DESTINATION ${WORK}/gguf)
expect(1 "gguf: expected" ${letters} --out ${WORK}/none --tokenizer ${gguf})
expect(1 "gguf/tokenizer.json: no such file" ${letters} --out ${WORK}/none --tokenizer ${WORK}/gguf)

# A step that went astray replaces no checkpoint, and a last one leaves no model.
set(astray ${model} --clip 0 --warmup 0 --save-every 1 --text ${WORK}/text.txt)
expect(1 "after step 1: the loss is (-?nan|-?inf)" ${astray} --steps 6 --rate 1e30 --out ${WORK}/none)  # the older name of --max-lr
expect(1 "max_lr.*found inf" ${astray} --steps 1 --max-lr inf --out ${WORK}/none)
set(train ${TRAIN})
set(TRAIN sh -c "exec \"$0\" \"$@\" --sample-prompt ''" ${train})
expect(0 "---\n\n" ${other} --text ${WORK}/text.txt --out ${WORK}/prompt)
set(TRAIN sh -c "cat '${WORK}/text.txt' | \"$0\" \"$@\"" ${train})
expect(0 "---" ${other} --text - --out ${WORK}/piped)
expect(1 "standard input: it can be read only once" ${other} --text - --text - --out ${WORK}/none)
set(TRAIN ${train})
expect(2 "--sample-tokens.*-3" ${other} --text ${WORK}/text.txt --out ${WORK}/none --sample-tokens -3)
foreach(flag IN ITEMS --batch --length --accumulate --validation-batches --seed)
  expect(2 "${flag}.*-5" ${flag} -5 --text ${WORK}/text.txt --out ${WORK}/none)
endforeach()
if(EXISTS /dev/full)
  set(train ${TRAIN})
  set(TRAIN sh -c "exec \"$0\" \"$@\" > /dev/full" ${train})
  expect(1 "standard output: cannot be written" ${other} --text ${WORK}/text.txt --out ${WORK}/none)
  set(TRAIN ${train})
endif()
file(MAKE_DIRECTORY ${WORK}/dangling)
file(CREATE_LINK nowhere ${WORK}/dangling/training.safetensors SYMBOLIC)
expect(1 "this training run exists already; continue it with --resume" ${other} --text ${WORK}/text.txt --out ${WORK}/dangling)
expect(2 "" --no-such-flag)
expect(2 "--seed.*found -1" ${other} --text ${WORK}/text.txt --out ${WORK}/none --seed -1)
expect(2 "--text" --out ${WORK}/none)
expect(0 "minimamba [0-9]" --version)
if(EXISTS ${WORK}/none)
  message(FATAL_ERROR "a training that was refused left a folder")
endif()
