# thinwire_python_test(<name> FILE <test.py> [ENVIRONMENT <A=b>...] [LABELS <label>...] [TIMEOUT s]
#                      [JOBS | SERIAL])
#
# A file of Python's unittest as one ctest entry whose cases are counted like those of a GoogleTest
# program. The test finds the source and the build folder in THINWIRE_SOURCE_DIR and
# THINWIRE_BINARY_DIR. JOBS: it starts jobs of several ranks, so one such test of its (first)
# label runs at a time, beside others. SERIAL: it runs alone.
find_program(THINWIRE_TEST_PYTHON NAMES python3 HINTS /usr/bin DOC "Python that runs the tests")

function(thinwire_python_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "JOBS;SERIAL" "FILE;TIMEOUT" "ENVIRONMENT;LABELS")
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${THINWIRE_TEST_PYTHON} -B
    ${PROJECT_SOURCE_DIR}/scripts/run_unittests.py
    --xml ${PROJECT_BINARY_DIR}/test-results/${name}.xml ${CMAKE_CURRENT_SOURCE_DIR}/${arg_FILE})
  set_tests_properties(${name} PROPERTIES
    TIMEOUT ${arg_TIMEOUT} RUN_SERIAL "${arg_SERIAL}" LABELS "${arg_LABELS}"
    ENVIRONMENT "THINWIRE_SOURCE_DIR=${PROJECT_SOURCE_DIR};THINWIRE_BINARY_DIR=${PROJECT_BINARY_DIR};${arg_ENVIRONMENT}")
  if(arg_JOBS)
    list(GET arg_LABELS 0 label)
    set_tests_properties(${name} PROPERTIES RESOURCE_LOCK jobs_${label})
  endif()
endfunction()
