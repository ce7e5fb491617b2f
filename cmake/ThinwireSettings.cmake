# Language level, output folders, warnings, sanitizers, compiler cache.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
  set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Precompiled headers need this sloppiness, see ccache's manual, "Precompiled headers".
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

# Flags that every target of the project shares; they are never exported to a user of the library.
add_library(thinwire_settings INTERFACE)
target_include_directories(thinwire_settings INTERFACE
  $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>)
# Contraction to fused multiply-add would let two SIMD targets round differently; see
# docs/determinism.md.
target_compile_options(thinwire_settings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
  -ffp-contract=off -fpch-preprocess>)
# The same for tests, examples and the command line: what takes time runs in the libraries, so these
# need not wait for -O3.
add_library(thinwire_program_settings INTERFACE)
target_link_libraries(thinwire_program_settings INTERFACE thinwire_settings)
target_compile_options(thinwire_program_settings INTERFACE
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<NOT:$<CONFIG:Debug>>>:-O1>)
if(THINWIRE_WERROR)
  target_compile_options(thinwire_settings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
option(THINWIRE_LIBFUZZER "Link the fuzz targets with libFuzzer (clang)" OFF)
if(THINWIRE_LIBFUZZER)
  target_compile_options(thinwire_settings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
endif()
if(THINWIRE_SANITIZE)
  target_compile_options(thinwire_settings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${THINWIRE_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=undefined>)
  target_link_options(thinwire_settings INTERFACE -fsanitize=${THINWIRE_SANITIZE})
endif()
