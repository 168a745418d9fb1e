# launch/fetch-wikitext2 --from, on small archives of WikiText-2's form. WORK is an own folder, SOURCE the root.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK}/wikitext-2-raw)
foreach(split train valid test)
  file(WRITE ${WORK}/wikitext-2-raw/wiki.${split}.raw " \n = Title of ${split} = \n \n Some text @-@ here . \n")
endforeach()

function(pack name)
  execute_process(COMMAND ${CMAKE_COMMAND} -E tar cf ${name} --format=zip ${ARGN} WORKING_DIRECTORY ${WORK}
                  COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# Runs with the archive; `code` and `error` are what came back.
function(fetch archive)
  file(REMOVE_RECURSE ${WORK}/out)
  execute_process(COMMAND ${SOURCE}/launch/fetch-wikitext2 --from ${archive} ${WORK}/out WORKING_DIRECTORY ${WORK}
                  RESULT_VARIABLE code ERROR_VARIABLE error OUTPUT_QUIET)
  set(code ${code} PARENT_SCOPE)
  set(error "${error}" PARENT_SCOPE)
endfunction()

function(expect_error text)
  if(code EQUAL 0 OR NOT error MATCHES "${text}")
    message(FATAL_ERROR "expected an error '${text}', got ${code}: ${error}")
  endif()
  file(GLOB left ${WORK}/out/* ${WORK}/out/.fetch*)
  if(left)
    message(FATAL_ERROR "after '${text}' these are left: ${left}")
  endif()
endfunction()

pack(good.zip wikitext-2-raw)
fetch(good.zip)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "good.zip: ${error}")
endif()
foreach(split train valid test)
  file(READ ${WORK}/wikitext-2-raw/wiki.${split}.raw wanted)
  file(READ ${WORK}/out/wiki.${split}.raw got)
  if(NOT wanted STREQUAL got)
    message(FATAL_ERROR "wiki.${split}.raw is '${got}'")
  endif()
endforeach()
file(GLOB left ${WORK}/out/.fetch*)
if(left)
  message(FATAL_ERROR "left behind: ${left}")
endif()

pack(short.zip wikitext-2-raw/wiki.train.raw wikitext-2-raw/wiki.valid.raw)
fetch(short.zip)
expect_error("has no whole wikitext-2-raw/wiki.test.raw")

file(WRITE ${WORK}/torn.zip "PK, but no archive")
fetch(torn.zip)
expect_error("has no whole wikitext-2-raw/wiki.train.raw")

fetch(absent.zip)
expect_error("'absent.zip' is not a file")

file(WRITE ${WORK}/wikitext-2-raw/wiki.valid.raw "")
pack(empty.zip wikitext-2-raw)
fetch(empty.zip)
expect_error("wiki.valid.raw is empty")

file(WRITE ${WORK}/wikitext-2-raw/wiki.valid.raw "no heading\n")
pack(other.zip wikitext-2-raw)
fetch(other.zip)
expect_error("has no article heading")
