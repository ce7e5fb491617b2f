# Tests of tensors in GPU memory, on a fake CUDA device: see docs/gpu.md, "Order".
#
# thinwire_gpu_test(<name> [RANKS <n>...] SOURCES <file>... [LIBRARIES <target>...])
#
# One test program that links thinwire, c10's CUDA library and the fake device. Without RANKS one
# ctest entry of its name; with them for each n one <name>_np<n> that starts n processes, which all
# have to pass (tests/support/fake_gpu/ranks). Nothing without nvcc or a CUDA build of LibTorch.
#
# The libraries, in lib/fake_gpu of the build folder:
#   libcuda.so.1          stands before libcudart and libnccl. A program that links it first has it;
#                         any other takes LD_PRELOAD, with libfake_gpu_aten.so behind it.
#   libfake_gpu_aten.so   ATen's operators on the device
#   libthinwire_cuda.so   the module of thinwire's kernels without a CUDA runtime, and their *.ptx.
#                         The library looks for its module beside itself, therefore
#   libthinwire_core.so.* is a link to it, which these programs find first.

# The interpreter of PTX.
set(machine ${PROJECT_SOURCE_DIR}/tests/support/ptx)
set(THINWIRE_PTX_MACHINE ${machine}/alu.cpp ${machine}/machine.cpp ${machine}/memory.cpp
  ${machine}/program.cpp)

# thinwire_ptx(<output> <source> <option>...): PTX text of a CUDA source.
function(thinwire_ptx output source)
  add_custom_command(OUTPUT ${output}
    COMMAND ${CMAKE_CUDA_COMPILER} -ptx -arch=compute_90 -std=c++20 --expt-relaxed-constexpr
      ${ARGN} -I${PROJECT_BINARY_DIR}/include ${source} -o ${output} -MD -MF ${output}.d
    DEPENDS ${source} DEPFILE ${output}.d VERBATIM)
endfunction()

# thinwire_ptx_test(<name> <sources> [<room>]): test_<name>_ptx, which executes <name>_cuda.cu of that
# room of compressors/, kernels if none is named, on the host. It finds the PTX at
# THINWIRE_<NAME>_PTX.
function(thinwire_ptx_test name sources)
  set(room kernels ${ARGN})
  list(GET room -1 room)
  set(ptx ${CMAKE_CURRENT_BINARY_DIR}/${name}.ptx)
  thinwire_ptx(${ptx} ${PROJECT_SOURCE_DIR}/compressors/${room}/${name}_cuda.cu --fmad=false)
  add_custom_target(${name}_ptx DEPENDS ${ptx})
  thinwire_test(test_${name}_ptx SOURCES ${sources} ${THINWIRE_PTX_MACHINE})
  add_dependencies(test_${name}_ptx ${name}_ptx)
  target_compile_options(test_${name}_ptx PRIVATE -O2)
  string(TOUPPER ${name} upper)
  target_compile_definitions(test_${name}_ptx PRIVATE THINWIRE_${upper}_PTX="${ptx}")
  set_tests_properties(test_${name}_ptx PROPERTIES LABELS "core;gpu")
endfunction()

set(THINWIRE_HAS_FAKE_GPU OFF)
if(THINWIRE_HAS_CUDA AND THINWIRE_HAS_NCCL AND BUILD_SHARED_LIBS AND NOT THINWIRE_SANITIZE)
  set(THINWIRE_HAS_FAKE_GPU ON)
endif()

if(THINWIRE_HAS_FAKE_GPU)
  set(fake_gpu ${PROJECT_SOURCE_DIR}/tests/support/fake_gpu)
  set(fake_gpu_folder ${PROJECT_BINARY_DIR}/lib/fake_gpu)

  add_library(fake_gpu SHARED
    ${fake_gpu}/cudart/device.cpp
    ${fake_gpu}/cudart/driver.cpp
    ${fake_gpu}/cudart/kernel.cpp
    ${fake_gpu}/cudart/memory.cpp
    ${fake_gpu}/cudart/stream.cpp
    ${fake_gpu}/detector.cpp
    ${fake_gpu}/event.cpp
    ${fake_gpu}/faults.cpp
    ${fake_gpu}/host_sync.cpp
    ${fake_gpu}/kernels.cpp
    ${fake_gpu}/memory.cpp
    ${fake_gpu}/names.cpp
    ${fake_gpu}/nccl/collectives.cpp
    ${fake_gpu}/nccl/communicator.cpp
    ${fake_gpu}/nccl/group.cpp
    ${fake_gpu}/nccl/pipes.cpp
    ${fake_gpu}/nccl/reduce.cpp
    ${fake_gpu}/queue.cpp
    ${fake_gpu}/settings.cpp
    ${fake_gpu}/stream.cpp
    ${PROJECT_SOURCE_DIR}/common/text.cpp
    ${THINWIRE_PTX_MACHINE})
  # Its copy is no one else's: thinwire_core has these functions too.
  set_source_files_properties(${PROJECT_SOURCE_DIR}/common/text.cpp
    PROPERTIES COMPILE_OPTIONS -fvisibility=hidden)
  target_link_libraries(fake_gpu PRIVATE thinwire_settings fmt::fmt Threads::Threads
                        ${CMAKE_DL_LIBS} rt)
  target_compile_options(fake_gpu PRIVATE -O2)
  set_target_properties(fake_gpu PROPERTIES OUTPUT_NAME cuda SUFFIX .so.1
    LIBRARY_OUTPUT_DIRECTORY ${fake_gpu_folder})
  target_link_options(fake_gpu PRIVATE -Wl,-soname,libcuda.so.1)

  add_library(fake_gpu_aten SHARED
    ${fake_gpu}/aten/copies.cpp
    ${fake_gpu}/aten/install.cpp
    ${fake_gpu}/aten/operators.cpp
    ${fake_gpu}/aten/tasks.cpp)
  target_link_libraries(fake_gpu_aten PRIVATE thinwire_settings fake_gpu thinwire::torch)
  target_compile_options(fake_gpu_aten PRIVATE -O1)
  set_target_properties(fake_gpu_aten PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${fake_gpu_folder})

  foreach(target fake_gpu fake_gpu_aten)
    target_include_directories(${target} SYSTEM PRIVATE
      ${CUDAToolkit_INCLUDE_DIRS} ${THINWIRE_NCCL_INCLUDE_DIR})
  endforeach()

  # The kernels, of the sources that the library's module has.
  get_target_property(sources thinwire_cuda SOURCES)
  get_target_property(folder thinwire_cuda SOURCE_DIR)
  set(ptx_files "")
  foreach(source IN LISTS sources)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${folder})
    cmake_path(GET source STEM stem)
    list(APPEND cuda_sources ${source})
    list(APPEND ptx_files ${fake_gpu_folder}/${stem}.ptx)
    thinwire_ptx(${fake_gpu_folder}/${stem}.ptx ${source} --fmad=false)
  endforeach()
  add_custom_target(fake_gpu_ptx DEPENDS ${ptx_files})
  add_library(fake_gpu_module MODULE ${cuda_sources})
  target_include_directories(fake_gpu_module PRIVATE ${PROJECT_BINARY_DIR}/include)
  target_compile_options(fake_gpu_module PRIVATE --fmad=false --expt-relaxed-constexpr)
  set_target_properties(fake_gpu_module PROPERTIES OUTPUT_NAME thinwire_cuda
    LIBRARY_OUTPUT_DIRECTORY ${fake_gpu_folder} CUDA_RUNTIME_LIBRARY None
    CUDA_ARCHITECTURES 90-virtual CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  file(MAKE_DIRECTORY ${fake_gpu_folder})
  set(core libthinwire_core.so.${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  file(CREATE_LINK ../${core} ${fake_gpu_folder}/${core} SYMBOLIC)

  add_library(fake_gpu_ranks OBJECT ${fake_gpu}/ranks/ranks.cpp ${fake_gpu}/ranks/main.cpp)
  target_link_libraries(fake_gpu_ranks PUBLIC thinwire_program_settings thinwire GTest::gtest)
  target_compile_definitions(fake_gpu_ranks PRIVATE USE_C10D_NCCL)
  target_include_directories(fake_gpu_ranks SYSTEM PRIVATE
    ${CUDAToolkit_INCLUDE_DIRS} ${THINWIRE_NCCL_INCLUDE_DIR})
endif()

function(thinwire_gpu_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "RANKS;SOURCES;LIBRARIES")
  if(NOT THINWIRE_HAS_FAKE_GPU)
    return()
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE -Wl,--no-as-needed fake_gpu fake_gpu_aten
    thinwire_program_settings thinwire fake_gpu_ranks seed_each_test GTest::gtest GTest::gmock
    ${arg_LIBRARIES})
  thinwire_share_precompiled_header(${name})
  target_include_directories(${name} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  add_dependencies(${name} fake_gpu_module fake_gpu_ptx)
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin/tests
    BUILD_RPATH ${fake_gpu_folder})
  set(entries ${name})
  if(arg_RANKS)
    set(entries "")
    foreach(ranks IN LISTS arg_RANKS)
      list(APPEND entries ${name}_np${ranks})
    endforeach()
  endif()
  foreach(entry IN LISTS entries)
    set(ranks "")
    if(entry MATCHES "_np([0-9]+)$")
      set(ranks --ranks=${CMAKE_MATCH_1})
    endif()
    add_test(NAME ${entry} COMMAND ${name} ${ranks}
      --gtest_output=xml:${PROJECT_BINARY_DIR}/test-results/${entry}.xml)
    set_tests_properties(${entry} PROPERTIES TIMEOUT 300 LABELS "torch;gpu"
      ENVIRONMENT OMP_NUM_THREADS=1)
  endforeach()
endfunction()
