# thinwire_mpi_test(<name> NP <n>... SOURCES <file>... [LIBRARIES <target>...] [TARGET <name>])
#
# One test program that links thinwire, and for each n one ctest entry <name>_np<n> that starts it
# with n ranks. Every rank has to pass; rank 0 writes the results, where thinwire_test() has them
# too. Nothing without MPI.
# TARGET: no ctest entry, but a target that builds and runs it, for tests that need more memory than
# a test may take.
#
# The variables are Open MPI's, any other MPI ignores them: more ranks than cores, started by
# whoever runs the tests, on this host alone.
set(THINWIRE_MPI_ENVIRONMENT OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo)

function(thinwire_mpi_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TARGET" "NP;SOURCES;LIBRARIES")
  if(NOT THINWIRE_HAS_MPI)
    return()
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE thinwire_program_settings thinwire $<TARGET_NAME_IF_EXISTS:thinwire_mpi> GTest::gtest GTest::gmock
                        GTest::gtest_main ${arg_LIBRARIES})
  thinwire_share_precompiled_header(${name})
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin/tests)
  if(arg_TARGET)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
    list(GET arg_NP 0 ranks)
    add_custom_target(${arg_TARGET} USES_TERMINAL
      COMMAND ${CMAKE_COMMAND} -E env ${THINWIRE_MPI_ENVIRONMENT}
              ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:${name}>)
    return()
  endif()
  add_dependencies(torch_tests ${name})
  foreach(ranks IN LISTS arg_NP)
    set(command ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 1 $<TARGET_FILE:${name}>
        --gtest_output=xml:${PROJECT_BINARY_DIR}/test-results/${name}_np${ranks}.xml)
    if(ranks GREATER 1)
      math(EXPR others "${ranks} - 1")
      list(APPEND command : ${MPIEXEC_NUMPROC_FLAG} ${others} $<TARGET_FILE:${name}>)
    endif()
    add_test(NAME ${name}_np${ranks} COMMAND ${command})
    # Ranks that share cores with other tests only get slower together.
    set_tests_properties(${name}_np${ranks} PROPERTIES TIMEOUT 120 RUN_SERIAL ON LABELS "torch;mpi"
      ENVIRONMENT "${THINWIRE_MPI_ENVIRONMENT}")
  endforeach()
endfunction()
