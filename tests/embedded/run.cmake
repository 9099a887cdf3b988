# Runs a program on an emulated board, and checks what it prints and what it is linked from:
#   cmake -DQEMU=... -DBOARD=... -DPROGRAM=... -DNM=... -DORACLE=... -DMODEL=... -DWEIGHTS=... -P run.cmake
cmake_minimum_required(VERSION 3.21)
execute_process(COMMAND ${NM} ${PROGRAM} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
foreach(name IN ITEMS _malloc_r malloc free _free_r _sbrk _sbrk_r _Zn[wa][A-Za-z0-9_]* _Zd[la]Pv[A-Za-z0-9_]* __cxa_throw __cxa_allocate_exception abort)
  if(symbols MATCHES " ${name}\n")
    message(FATAL_ERROR "${PROGRAM} is linked with ${name}")
  endif()
endforeach()
if(NOT symbols MATCHES " reset\n")
  message(FATAL_ERROR "${NM} shows no symbols of ${PROGRAM}")
endif()

# With -icount shift=0, each instruction takes one nanosecond of the board's time, whatever this computer does meanwhile.
execute_process(COMMAND ${QEMU} -M ${BOARD} -nographic -monitor none -serial none -icount shift=0,sleep=off
                        -semihosting-config enable=on,target=native -kernel ${PROGRAM}
                OUTPUT_FILE ${PROGRAM}.txt ERROR_FILE ${PROGRAM}.txt RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  file(READ ${PROGRAM}.txt printed LIMIT 2000)
  message(FATAL_ERROR "${PROGRAM} ended with ${result}:\n${printed}")
endif()
execute_process(COMMAND ${ORACLE} check ${MODEL} ${WEIGHTS} ${PROGRAM}.txt RESULT_VARIABLE result OUTPUT_VARIABLE printed)
message("${printed}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${PROGRAM}: see above")
endif()
