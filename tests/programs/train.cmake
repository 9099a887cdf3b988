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
set(small ${model} --steps 60 --warmup 5 --lr 0.01 --save-every 10 --text ${WORK}/text.txt)

get_filename_component(programs ${TRAIN} DIRECTORY)
expect(0 "step 10/60  loss [0-9.]+  [0-9]+ tokens/s.*step 20/60  loss [0-9.]+  validation [0-9.]+  .*step 60/60  loss [0-9.]+  validation [0-9.]+  [0-9]+ tokens/s.*---\nsaved; to write with it: ${programs}/generate --model ${WORK}/whole --prompt 'the quick' --temperature 0.8 --min-p 0.1\n"
       ${small} --out ${WORK}/whole --threads 1)
foreach(file IN ITEMS model.safetensors config.json training.safetensors loss.csv loss.svg)
  if(NOT EXISTS ${WORK}/whole/${file})
    message(FATAL_ERROR "no ${file}")
  endif()
endforeach()
execute_process(COMMAND ${GENERATE} --model ${WORK}/whole --prompt "the quick" --max-new-tokens 8 RESULT_VARIABLE result OUTPUT_QUIET)
if(result)
  message(FATAL_ERROR "generate does not read what train wrote")
endif()

# The last line is a command: a path that a shell would divide is in quotation marks. What a model that knows nothing
# says of control characters does not reach the terminal.
execute_process(COMMAND ${TRAIN} --d-model 32 --n-layer 2 --batch 2 --length 32 --steps 1 --sample-tokens 300 --text ${WORK}/text.txt
                        --out "${WORK}/it's (one)"
                RESULT_VARIABLE result OUTPUT_VARIABLE printed)
string(REGEX MATCH "saved; to write with it: ([^\n]+)\n$" _ "${printed}")
execute_process(COMMAND sh -c "${CMAKE_MATCH_1} --max-new-tokens 8" RESULT_VARIABLE failed OUTPUT_VARIABLE text)
if(result OR failed OR NOT text MATCHES "^the quick." OR NOT printed MATCHES "[\\]x[01][0-9a-f]")
  message(FATAL_ERROR "train ended with ${result} and ${CMAKE_MATCH_1}\nwith ${failed}: ${text}\n${printed}")
endif()
foreach(code IN ITEMS 1 7 8 14 27 127)
  string(ASCII ${code} sign)
  string(FIND "${printed}" "${sign}" at)
  if(at GREATER_EQUAL 0)
    message(FATAL_ERROR "train printed the control character ${code}")
  endif()
endforeach()

expect(0 "step 1/1.*note: --overlap changes nothing: there is one rank" ${model} --steps 1 --text ${WORK}/text.txt --out ${WORK}/one --overlap)

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

# Resumed with the data and the folder alone: the options are those of the run, from its file. The same bits, from what
# was saved, and if it was killed before there was more than the file.
set(odd --d-model 24 --n-layer 2 --d-state 8 --expand 1 --untied --batch 2 --length 32 --accumulate 2 --lr 0.0123 --min-lr 0.00017
        --warmup 7 --weight-decay 0.03 --beta1 0.87 --beta2 0.97 --clip 0.7 --dropout 0.1 --average 0.9 --seed 123456789012
        --validation-fraction 0.21 --micro-batches 2 --steps 60 --text ${WORK}/text.txt --sample-every 0)
expect(0 "step 60/60" ${odd} --out ${WORK}/odd)
string(JOIN "' '" quoted ${odd})
file(WRITE ${WORK}/kill.sh "'${TRAIN}' '${quoted}' --out '${WORK}/alone' --save-every 10 > '${WORK}/killed.log' &
pid=$!
while kill -0 $pid 2>/dev/null && ! [ -f '${WORK}/alone/config.json' ]; do :; done
kill -9 $pid 2>/dev/null; wait $pid; exit 0
")
execute_process(COMMAND sh ${WORK}/kill.sh OUTPUT_QUIET ERROR_QUIET)
file(COPY ${WORK}/alone/training.safetensors DESTINATION ${WORK}/bare-run)
foreach(folder IN ITEMS alone bare-run)
  expect(0 "step 60/60" --text ${WORK}/text.txt --out ${WORK}/${folder} --resume --sample-every 0)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${WORK}/odd/model.safetensors ${WORK}/${folder}/model.safetensors RESULT_VARIABLE differ)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${WORK}/odd/training.safetensors ${WORK}/${folder}/training.safetensors RESULT_VARIABLE also)
  if(differ OR also)
    message(FATAL_ERROR "${folder}, resumed with the data alone, has other bits")
  endif()
endforeach()
expect(0 "note: all 60 steps of this training run are done: give more --steps" --text ${WORK}/text.txt --out ${WORK}/alone --resume)
expect(0 "step 61/61" --text ${WORK}/text.txt --out ${WORK}/alone --resume --steps 61 --lr 0.0123 --untied --seed 123456789012)
expect(1 "^train: .*alone/training.safetensors: this training run was started with --lr 0.0123 --steps 61 --seed 123456789012 --d-model 24 --untied: give the same, or none of them\n$"
       --text ${WORK}/text.txt --out ${WORK}/alone --resume --steps 60 --lr 0.01 --d-model 32 --untied=false --seed 1)
expect(1 "there is no training run to continue" --text ${WORK}/text.txt --out ${WORK}/none --resume)
expect(0 "note: the loss of the last step is [0-9.]+, above that of a guess, 5.5452: train again with a smaller --lr\n" ${model} --steps 20 --warmup 0 --lr 20
       --text ${WORK}/text.txt --out ${WORK}/hot)

file(GLOB left ${WORK}/parts/.minimamba-*)
if(left)
  message(FATAL_ERROR "resuming left ${left}")
endif()

# A text that is larger than the memory for its tokens: the same bytes.
expect(0 "step 60/60" ${small} --out ${WORK}/streamed --memory 0)
foreach(file IN ITEMS model.safetensors training.safetensors)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${WORK}/whole/${file} ${WORK}/streamed/${file} RESULT_VARIABLE differ)
  if(differ)
    message(FATAL_ERROR "${file} depends on the memory for the text")
  endif()
endforeach()

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
expect(0 "step 2/2" --steps 2 --text ${WORK}/text.txt --out ${WORK}/tuned --resume --sample-every 0)  # of the model that was saved
foreach(flag IN ITEMS --d-model=8 --n-layer=1 --d-state=4 --d-conv=2 --expand=1 --untied)
  expect(2 "--init" ${flag} --text ${WORK}/text.txt --out ${WORK}/none --init ${WORK}/whole)
endforeach()
expect(1 "this training run exists already; continue it with --resume" ${small} --out ${WORK}/whole)
expect(1 "backend eigen, found native" ${small} --out ${WORK}/whole --resume --backend eigen)
file(COPY ${WORK}/whole DESTINATION ${WORK}/longer)
set(longer ${model} --warmup 5 --max-lr 0.01 --text ${WORK}/text.txt --out ${WORK}/longer/whole --resume)
expect(0 "step 62/62.*note: .*60 steps; .*schedule for 62.*bits differ" ${longer} --steps 62)
expect(1 "started with --steps 62: " ${longer} --steps 61)
if(NOT WIN32)
  file(RENAME ${WORK}/longer/whole/training.safetensors ${WORK}/longer/stored)
  file(CREATE_LINK ../stored ${WORK}/longer/whole/training.safetensors SYMBOLIC)
  expect(0 "step 63/63" ${longer} --steps 63)
  if(NOT IS_SYMLINK ${WORK}/longer/whole/training.safetensors)
    message(FATAL_ERROR "train replaced a link")
  endif()
  expect(1 "started with --steps 63: " ${longer} --steps 62)
endif()
expect(1 "started with --steps 60: " ${other} --text ${WORK}/text.txt --out ${WORK}/whole --resume)
expect(1 "--text .*/empty.txt: expected more than 32 tokens to train on.*found 0 of 0: a longer text, a smaller --length would do" ${other} --text ${WORK}/empty.txt --out ${WORK}/none)
expect(1 "--text .*/short.txt: expected more than 32 tokens to train on.*found 5 of 5: .*--length" ${other} --text ${WORK}/short.txt --out ${WORK}/none)
expect(1 "to validate on.*: .*--length, or another --validation-fraction" ${other} --text ${WORK}/text.txt --out ${WORK}/none --validation-fraction 0.001)
expect(1 "f32 on the processor, found bf16" ${other} --text ${WORK}/text.txt --out ${WORK}/none --products bf16)
file(COPY_FILE ${WORK}/text.txt ${WORK}/training-tokens.bin)
expect(1 "--text: expected another file than the one that training writes" ${other} --text ${WORK}/training-tokens.bin
       --out ${WORK})
if(NOT EXISTS ${WORK}/training-tokens.bin)
  message(FATAL_ERROR "a text that was named as the file of tokens is gone")
endif()
file(REMOVE ${WORK}/training-tokens.bin)
expect(1 "no-such-text" ${other} --text ${WORK}/no-such-text --out ${WORK}/none)
expect(1 "training.safetensors" ${other} --text ${WORK}/text.txt --out ${WORK}/none --resume)
expect(1 "step [0-9]+: the loss is |the gradient of .*: not finite after" ${model} --steps 300 --clip 0
       --max-lr 1e30 --warmup 0 --text ${WORK}/text.txt --out ${WORK}/none)

# Mamba-2: a new model, resumed, and one to start from, whose mixer it keeps.
set(ssd --mixer ssd --d-model 32 --n-layer 2 --d-state 16 --batch 2 --length 32 --sample-every 60 --sample-tokens 20
        --text ${WORK}/text.txt)
expect(0 "step 60/60  loss [0-9.]+ .*---" ${ssd} --head-dim 16 --steps 60 --warmup 5 --max-lr 0.01 --out ${WORK}/ssd)
file(READ ${WORK}/ssd/config.json text)
if(NOT text MATCHES "\"model_type\": \"mamba2\"" OR NOT text MATCHES "\"head_dim\": 16")
  message(FATAL_ERROR "train --mixer ssd wrote\n${text}")
endif()
execute_process(COMMAND ${GENERATE} --model ${WORK}/ssd --prompt "the quick" --max-new-tokens 8 RESULT_VARIABLE result OUTPUT_QUIET)
if(result)
  message(FATAL_ERROR "generate does not read what train --mixer ssd wrote")
endif()
expect(0 "step 61/61" ${ssd} --head-dim 16 --steps 61 --warmup 5 --max-lr 0.01 --out ${WORK}/ssd --resume)
expect(0 "step 2/2" --init ${WORK}/ssd --steps 2 --text ${WORK}/text.txt --out ${WORK}/ssd-again --backend eigen --sample-every 0)
expect(1 "started with --mixer ssd: " ${model} --mixer s6 --steps 61 --warmup 5 --max-lr 0.01 --text ${WORK}/text.txt --out ${WORK}/ssd --resume)
expect(1 "head_dim: expected a divisor of d_inner = 64, found 48" ${ssd} --head-dim 48 --steps 1 --out ${WORK}/none)
expect(0 "step 1/1" ${ssd} --backend auto --steps 1 --out ${WORK}/auto-ssd)
expect(0 "step 1/1" ${other} --backend auto --text ${WORK}/text.txt --out ${WORK}/auto)
expect(1 "--dt-b-c-rms: use it with --mixer s6" ${ssd} --dt-b-c-rms --steps 1 --out ${WORK}/none)
expect(1 "--head-dim: use it with --mixer ssd" ${other} --head-dim 16 --text ${WORK}/text.txt --out ${WORK}/none)
expect(2 "--mixer.*excludes.*--init|--init.*excludes.*--mixer" --mixer ssd --init ${WORK}/ssd --steps 1 --text ${WORK}/text.txt --out ${WORK}/none)
expect(2 "--mixer" --mixer s7 --text ${WORK}/text.txt --out ${WORK}/none)

# An adapter of both kinds of model, resumed, beside the model and merged into it.
get_filename_component(folder ${TRAIN} DIRECTORY)
get_filename_component(suffix ${TRAIN} EXT)
foreach(base IN ITEMS whole ssd)
  set(lora --init ${WORK}/${base} --lora-rank 4 --lora-targets in_proj,out_proj --batch 2 --length 32 --sample-every 0 --text ${WORK}/text.txt
           --out ${WORK}/${base}-adapter)
  expect(0 "[0-9]+ of [0-9]+ parameters train.*step 4/4.*/generate --model ${WORK}/${base} --adapter ${WORK}/${base}-adapter --prompt 'the quick' --temp"
         ${lora} --steps 4 --lora-alpha 12.5 --lora-weights q8)
  expect(0 "step 5/5" ${lora} --steps 5 --lora-alpha 12.5 --lora-weights q8 --resume)
  expect(0 "step 6/6" --text ${WORK}/text.txt --out ${WORK}/${base}-adapter --steps 6 --resume --lora-weights q8 --sample-every 0)
  expect(1 "started with --batch 2 --lora-rank 4 --lora-alpha 12.5: " --text ${WORK}/text.txt --out ${WORK}/${base}-adapter --steps 6 --batch 3 --resume
         --init ${WORK}/${base} --lora-rank 3 --lora-alpha 3)
  expect(0 "step 1/1" --init ${WORK}/${base} --lora-rank 2 --batch 2 --length 32 --sample-every 0 --steps 1 --text ${WORK}/text.txt
         --out ${WORK}/${base}-default)  # targets that each mixer has
  expect(1 "other frozen parameters" ${lora} --steps 6 --resume)
  file(READ ${WORK}/${base}-adapter/adapter_config.json text)
  if(NOT text MATCHES "\"peft_type\": \"LORA\"" OR EXISTS ${WORK}/${base}-adapter/model.safetensors)
    message(FATAL_ERROR "train --lora-rank wrote\n${text}")
  endif()
  execute_process(COMMAND ${folder}/convert${suffix} ${WORK}/${base} ${WORK}/${base}-merged --adapter ${WORK}/${base}-adapter RESULT_VARIABLE result)
  if(base STREQUAL whole)  # a merged model is in F32 unless another type is asked for, whatever its base has
    execute_process(COMMAND ${folder}/convert${suffix} ${WORK}/${base} ${WORK}/narrow.gguf --type q8_0)
    execute_process(COMMAND ${folder}/convert${suffix} ${WORK}/narrow.gguf ${WORK}/wide.gguf --adapter ${WORK}/${base}-adapter ERROR_VARIABLE errors)
    if(NOT errors MATCHES "wide.gguf: matrices in F32")
      message(FATAL_ERROR "convert --adapter of a Q8_0 model printed ${errors}")
    endif()
  endif()
  foreach(model IN ITEMS "${WORK}/${base};--adapter;${WORK}/${base}-adapter" "${WORK}/${base}-merged")
    execute_process(COMMAND ${GENERATE} --model ${model} --prompt "the quick" --max-new-tokens 8 --temperature 0 RESULT_VARIABLE failed
                    OUTPUT_VARIABLE printed)
    if(result OR failed OR DEFINED before AND NOT printed STREQUAL before)
      message(FATAL_ERROR "generate --model ${model} ended with ${failed} and printed ${printed} in place of ${before}")
    endif()
    set(before "${printed}")
  endforeach()
  unset(before)
endforeach()
expect(2 "--lora-rank requires --init" --lora-rank 4 --text ${WORK}/text.txt --out ${WORK}/none)
expect(1 "--lora-weights: use it with --lora-rank" --lora-weights q8 --text ${WORK}/text.txt --out ${WORK}/none)
expect(2 "--lora-alpha requires --lora-rank" --lora-alpha 4 --text ${WORK}/text.txt --out ${WORK}/none)
expect(1 "LoraOptions.targets: .*tie_embeddings" --init ${WORK}/whole --lora-rank 4 --lora-targets embedding --length 32 --text ${WORK}/text.txt --out ${WORK}/none)
expect(1 "--backend: expected native with --lora-rank" --init ${WORK}/whole --lora-rank 4 --backend eigen --text ${WORK}/text.txt --out ${WORK}/none)

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
expect(0 "720 tokens to train on, 80 to.*step 3/3" --text ${WORK}/letters.txt --out ${WORK}/letters --steps 3 --resume --sample-every 0)
string(REPEAT "ab ba\nb ab\n" 200000 text)  # of several pieces
file(WRITE ${WORK}/many.txt "${text}")
foreach(memory IN ITEMS 1024 0)
  expect(0 "step 2/2" --steps 2 --batch 2 --length 16 --text ${WORK}/many.txt ${WORK}/letters.txt --sample-every 0 --d-model 32 --n-layer 1
         --out ${WORK}/many${memory} --tokenizer ${WORK}/tokenizer --memory ${memory})
endforeach()
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${WORK}/many0/training.safetensors ${WORK}/many1024/training.safetensors RESULT_VARIABLE differ)
if(differ OR EXISTS ${WORK}/many0/training-tokens.bin)
  message(FATAL_ERROR "the tokens in a file are others than those in memory, or were left")
endif()
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
expect(2 "^train: --no-such-flag: no such option\nRun with --help" --no-such-flag)
expect(2 "^train: --txt: no such option; did you mean --text[?]\n" --txt book.txt --out ${WORK}/none)
expect(2 "^train: --text is required" --out ${WORK}/none)
expect(2 "--seed.*found -1" ${other} --text ${WORK}/text.txt --out ${WORK}/none --seed -1)
expect(2 "--text" --out ${WORK}/none)
expect(0 "minimamba [0-9]" --version)
if(EXISTS ${WORK}/none)
  message(FATAL_ERROR "a training that was refused left a folder")
endif()
