# What tests/fuzz/run.sh says of targets that end, are killed, or get nowhere. The targets are scripts.
#   cmake -DRUN=<tests/fuzz/run.sh> -DWORK=<folder> -P fuzz.cmake

# Runs a target that does as `script` says and has made 500 of 1000 executions before, after the command `before`.
function(expect_of script before status pattern)
  file(REMOVE_RECURSE "${WORK}")
  file(WRITE "${WORK}/tests/some_fuzz" "#!/bin/sh\n${script}\n")
  file(CHMOD "${WORK}/tests/some_fuzz" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  file(WRITE "${WORK}/long/some/executions" "500\n")
  set(ENV{MINIMAMBA_FUZZ_DIVISOR} 1000)
  set(ENV{MINIMAMBA_FUZZ_JOBS} 1)
  execute_process(COMMAND sh -c "${before} exec sh '${RUN}' '${WORK}' '${WORK}/long'"
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE complaint TIMEOUT 60)
  file(STRINGS "${WORK}/long/some/executions" made)
  if(NOT "${result} ${made} ${output}" MATCHES "^${status} .*${pattern}")
    message(SEND_ERROR "${script}: expected ${status} and ${pattern}, found ${result}, ${made}:\n${output}${complaint}")
  endif()
endfunction()

set(makes_some "echo 'stat::number_of_executed_units: 250'")
expect_of("${makes_some}" "" 0 "1000 some_fuzz: 1000 executions")
expect_of("${makes_some}; exit 77" "" 1 "750 some_fuzz: found something after 750 executions.*found something")
expect_of("kill -9 $$" "" 1 "500 some_fuzz: killed, perhaps for want of memory, after 500 executions")
expect_of("${makes_some}; exit 130" "" 130 "750 ")
expect_of("true" "" 1 "500 no target makes an execution any more")
expect_of("true" "ulimit -f 0;" 1 "500 no target makes an execution any more")  # as on a full disk
