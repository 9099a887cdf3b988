# What classify prints and leaves, and how it ends: cmake -DPROGRAM=... -DLANGUAGE=... -DWORK=... -P classify.cmake
function(expect status output)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE printed ERROR_VARIABLE errors
                  WORKING_DIRECTORY ${WORK})
  if(NOT result STREQUAL "${status}" OR NOT "${printed}${errors}" MATCHES "${output}")
    message(FATAL_ERROR "${ARGN}\nended with ${result} and printed:\n${printed}${errors}\nexpected ${status}: ${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
foreach(i RANGE 30)
  string(REPEAT "u" ${i} up)
  string(REPEAT "d" ${i} down)
  string(APPEND lines "{\"text\": \"x${up}\", \"label\": \"rises\"}\n{\"label\": \"falls\", \"text\": \"y${down}\"}\n")
endforeach()
file(WRITE ${WORK}/lines.jsonl "${lines}")
set(small --d-model 8 --n-layer 1 --max-lr 0.02 --batch 8 --warmup 4)
set(train ${PROGRAM} train --data lines.jsonl ${small})
set(refused ${PROGRAM} train ${small} --out none)

expect(0 "50 examples to train on, 12 to validate on, 2 labels.*step 40/40  loss [0-9.]+  validation [0-9.]+"
       ${train} --steps 40 --out a --threads 1 --validation-fraction 0.2)
foreach(file IN ITEMS model.safetensors config.json training.safetensors loss.csv loss.svg)
  if(NOT EXISTS ${WORK}/a/${file})
    message(FATAL_ERROR "no ${file}")
  endif()
endforeach()
expect(0 "rows: the labels.*falls +rises\n +falls +31 +0\n +rises +0 +31\naccuracy 100.00 % .62 of 62."
       ${PROGRAM} evaluate --model a --data lines.jsonl)
file(WRITE ${WORK}/texts "xuuu\nyd\n")
expect(0 "^rises\t[01].[0-9]+\nfalls\t[01].[0-9]+\n$" sh -c "'${PROGRAM}' predict --model a < texts")

# A label is printed without the control characters that it may have, and is as wide as its characters.
file(WRITE ${WORK}/labels.jsonl "{\"text\": \"x\", \"label\": \"l\\nm\"}\n{\"text\": \"y\", \"label\": \"caf\\u00e9\\u001b\"}\n")
expect(0 "step 1/1" ${PROGRAM} train --data labels.jsonl ${small} --steps 1 --validation-fraction 0 --out labels)
expect(0 "\n               caf..?[?]       l[?]m\n     caf..?[?] .*\n       l[?]m " ${PROGRAM} evaluate --model labels --data labels.jsonl)

# Resumed with other threads: the same bytes as without.
expect(0 "step 20/20" ${train} --out b --threads 2 --validation-fraction 0.2 --steps 20)
expect(0 "step 40/40.*note:" ${train} --out b --threads 2 --validation-fraction 0.2 --resume --steps 40)
expect(1 "exists already; continue it with --resume" ${train} --steps 40 --out a)
# Resumed with the data and the folder alone.
expect(0 "note: all 40 steps of this training run are done" ${PROGRAM} train --data lines.jsonl --out b --resume)
expect(0 "step 42/42" ${PROGRAM} train --data lines.jsonl --out b --resume --steps 42 --pooling mean)
expect(1 "b/training.safetensors: this training run was started with --batch 8 --lr 0.02 --d-model 8 --pooling mean: "
       ${PROGRAM} train --data lines.jsonl --out b --resume --batch 4 --lr 0.1 --d-model 16 --pooling last)
expect(0 "step 40/40" ${train} --steps 40 --out c --threads 2 --validation-fraction 0.2)
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${WORK}/a/model.safetensors ${WORK}/c/model.safetensors
                RESULT_VARIABLE differ)
if(differ)
  message(FATAL_ERROR "the bits depend on the number of threads")
endif()

# A text that is made, of one length and of several.
set(order --task order --length 20 --examples 30)
expect(0 "27 examples to train on, 3 to validate on.*step 2/2" ${PROGRAM} train ${order} --out order --steps 2 --d-model 8)
expect(0 "A first +B first.*accuracy [0-9.]+ %" ${PROGRAM} evaluate ${order} --model order)
expect(1 "--task order" ${PROGRAM} evaluate ${order} --model a)

# A label for each word.
foreach(i RANGE 20)
  string(APPEND words "{\"tokens\": [\"a\", \"cat\", \"runs\"], \"labels\": [\"D\", \"N\", \"V\"]}\n")
endforeach()
file(WRITE ${WORK}/words.jsonl "${words}")
expect(0 "19 examples to train on, 2 to validate on, 3 labels" ${PROGRAM} train --data words.jsonl ${small} --steps 60 --out words)
expect(0 " +D +21 +0 +0\n +N +0 +21 +0\n +V +0 +0 +21\naccuracy 100.00 % .63 of 63." ${PROGRAM} evaluate --model words --data words.jsonl)
expect(1 "--pooling: expected none of it, as the data have a label for each word, found max"
       ${PROGRAM} train --data words.jsonl ${small} --steps 1 --out refused --pooling max)
file(WRITE ${WORK}/sentences "a cat  runs\n")
expect(0 "^a\tD\t[01].[0-9]+\ncat\tN\t[01].[0-9]+\nruns\tV\t[01].[0-9]+\n\n$"
       sh -c "'${PROGRAM}' predict --model words < sentences")
file(WRITE ${WORK}/texts.jsonl "{\"text\": \"a\", \"label\": \"D\"}\n")
expect(1 "--model: expected one that gives a label for each text" ${PROGRAM} evaluate --model words --data texts.jsonl)
set(inside --task inside --length 40 --examples 40)
expect(0 "step 2/2" ${PROGRAM} train ${inside} --out inside --steps 2 --d-model 8)
expect(0 "outside +inside.*accuracy [0-9.]+ % .[0-9]+ of 1600." ${PROGRAM} evaluate ${inside} --model inside)

# Another mixer, and the backbone of a language model: all of it, the head alone, or with an adapter.
expect(0 "step 20/20" ${train} --steps 20 --out ssd --mixer ssd --head-dim 8 --validation-fraction 0.2)
expect(0 "accuracy" ${PROGRAM} evaluate --model ssd --data lines.jsonl)
set(tuned ${PROGRAM} train --data lines.jsonl --max-lr 0.02 --batch 8 --warmup 4 --validation-fraction 0.2 --model ${LANGUAGE})
expect(0 "step 20/20" ${tuned} --steps 20 --out whole)
expect(0 "[0-9]+ of [0-9]+ parameters train.*step 20/20" ${tuned} --steps 20 --out head --freeze-backbone)
expect(0 "[0-9]+ of [0-9]+ parameters train.*step 20/20" ${tuned} --steps 20 --out lora --lora-rank 2)
expect(0 "step 30/30" ${tuned} --steps 30 --out lora --lora-rank 2 --resume)
expect(0 "step 21/21" ${PROGRAM} train --data lines.jsonl --out whole --resume --steps 21)
expect(1 "--model: expected the language model that the run began with" ${PROGRAM} train --data lines.jsonl --out head --resume --steps 21)
expect(0 "of [0-9]+ parameters train.*step 21/21" ${PROGRAM} train --data lines.jsonl --out head --resume --steps 21 --model ${LANGUAGE})
expect(0 "of [0-9]+ parameters train.*step 31/31" ${PROGRAM} train --data lines.jsonl --out lora --resume --steps 31 --model ${LANGUAGE})
expect(1 "one of embedding, in_proj" ${tuned} --steps 1 --out none --lora-rank 2 --lora-targets q_proj)
foreach(model IN ITEMS whole head lora)
  expect(0 "accuracy [0-9.]+ %" ${PROGRAM} evaluate --model ${model} --data lines.jsonl)
endforeach()
expect(2 "excludes" ${tuned} --steps 1 --out none --d-model 8)
expect(2 "requires" ${train} --steps 1 --out none --lora-rank 2)

# A tokenizer: the tokens in training are those in evaluation.
file(WRITE ${WORK}/pairs.json "{\"model\": {\"type\": \"BPE\", \"merges\": [\"a b\", \"c d\", \"e f\", \"g h\"], \"vocab\": {\"a\": 0, \"b\": 1,
  \"c\": 2, \"d\": 3, \"e\": 4, \"f\": 5, \"g\": 6, \"h\": 7, \"ab\": 8, \"cd\": 9, \"ef\": 10, \"gh\": 11}}}")
foreach(text IN ITEMS ab cd ef gh ab cd ef gh ab cd ef gh)
  string(APPEND pairs "{\"text\": \"${text}\", \"label\": \"${text}\"}\n")
endforeach()
file(WRITE ${WORK}/pairs.jsonl "${pairs}")
expect(0 "step 40/40" ${PROGRAM} train --data pairs.jsonl --tokenizer pairs.json ${small} --steps 40 --validation-fraction 0 --out pairs)
expect(0 "accuracy 100.00 % .12 of 12." ${PROGRAM} evaluate --model pairs --data pairs.jsonl)

# What is refused names the line.
expect(1 "standard input: line 2: expected a text of at least one token" sh -c "printf 'x\\n\\n' | '${PROGRAM}' predict --model a")
file(WRITE ${WORK}/bad.jsonl "${lines}{\"text\": \"\", \"label\": \"rises\"}\n")
expect(1 "bad.jsonl: line 63: expected a text of at least one token" ${refused} --data bad.jsonl)
file(WRITE ${WORK}/other.jsonl "{\"text\": \"x\", \"label\": \"stays\"}\n")
expect(1 "other.jsonl: line 1: expected one of the labels falls, rises, found \"stays\"" ${PROGRAM} evaluate --model a --data other.jsonl)
expect(1 "SequenceConfig.labels: expected from 2" ${refused} --data other.jsonl --validation-fraction 0)
file(WRITE ${WORK}/first.jsonl "\nx\n")
expect(1 "first.jsonl: line 2: " ${refused} --data first.jsonl)
file(WRITE ${WORK}/empty.jsonl "")
expect(1 "empty.jsonl: expected at least one line" ${refused} --data empty.jsonl)
expect(1 "no-such-file" ${PROGRAM} predict --model no-such-file)
if(EXISTS ${WORK}/none)
  message(FATAL_ERROR "a training that was refused left a folder")
endif()
expect(2 "--data or --task" ${PROGRAM} train --out none)
expect(2 "excludes" ${train} --task order --out none)
expect(2 "subcommand" ${PROGRAM})
expect(0 "minimamba [0-9]" ${PROGRAM} --version)
expect(0 "train.*evaluate.*predict" ${PROGRAM} --help)
