# Installs BUILD into a fresh prefix, builds docs/example of SOURCE against it with COMPILER and FLAGS, runs it.
set(work ${BUILD}/example_test)
file(REMOVE_RECURSE ${work})

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${ARGV}: ${code}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/prefix)
run(${CMAKE_COMMAND} -S ${SOURCE}/docs/example -B ${work}/build -G Ninja -DCMAKE_PREFIX_PATH=${work}/prefix
    -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_FLAGS=${FLAGS})
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/example ${SOURCE}/tests/data/models/llama3)
if(NOT output MATCHES "^([0-9]+ )+\n$")  # ids
  message(FATAL_ERROR "docs/example prints:\n${output}")
endif()
if(NOT EXISTS ${work}/prefix/bin/ridge)
  message(FATAL_ERROR "the program is not installed")
endif()
