# The two libraries and the precompiled header.
#
#   thinwire_core  common/ and compressors/: plain C++, neither torch nor MPI
#   thinwire       everything else: comm/, moe/, torch_ext/, launch/
#
# Each folder adds its sources with thinwire_sources(). THINWIRE_LAYERS below is the order of the
# include law, which tests/include_law.py checks.

option(BUILD_SHARED_LIBS "Build shared libraries" ON)

add_library(thinwire_core)
add_library(thinwire::core ALIAS thinwire_core)
target_link_libraries(thinwire_core
  PRIVATE $<BUILD_INTERFACE:thinwire_settings> fmt::fmt spdlog::spdlog nlohmann_json::nlohmann_json
          Boost::headers PkgConfig::hwy PkgConfig::xxhash Threads::Threads
          ${CMAKE_DL_LIBS})

add_library(thinwire)
add_library(thinwire::thinwire ALIAS thinwire)
target_link_libraries(thinwire
  PUBLIC thinwire_core thinwire::torch
  PRIVATE $<BUILD_INTERFACE:thinwire_settings> nlohmann_json::nlohmann_json Boost::headers
          PkgConfig::xxhash ${CMAKE_DL_LIBS})
target_precompile_headers(thinwire PRIVATE ${PROJECT_SOURCE_DIR}/cmake/torch_pch.h)
set_target_properties(thinwire PROPERTIES DEFINE_SYMBOL "")

foreach(library thinwire_core thinwire)
  target_include_directories(${library} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include> $<INSTALL_INTERFACE:include>)
  target_compile_features(${library} PUBLIC cxx_std_20)
  set_target_properties(${library} PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
endforeach()

# Most of what it takes to compile a file that sees torch are templates that torch's headers leave
# open, whatever the file uses. Several files in one translation unit pay that once. Without it every
# file shows that it includes what it uses: the debug preset.
option(THINWIRE_UNITY_BUILD "Compile several files of the libraries at once" OFF)
set_target_properties(thinwire thinwire_core PROPERTIES UNITY_BUILD ${THINWIRE_UNITY_BUILD}
  UNITY_BUILD_BATCH_SIZE 6)

# thinwire_sources(<library> <file>...): adds the files of the calling folder to a library.
function(thinwire_sources library)
  list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  target_sources(${library} PRIVATE ${ARGN})
  # Highway compiles a file once for each instruction set, by including it again.
  foreach(file IN LISTS ARGN)
    file(STRINGS ${file} highway REGEX "hwy/foreach_target\\.h" LIMIT_COUNT 1)
    if(highway)
      set_source_files_properties(${file} TARGET_DIRECTORY ${library}
        PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
  endforeach()
endfunction()

# thinwire_public_headers(<library> <file>... [DETAIL <file>...]): headers of the calling folder that
# a user includes, and after DETAIL those that these include, of which nothing is promised. They are
# installed, all others are private. docs/api.md has a line for each public one, which
# tests/style/test_public_headers.py checks.
function(thinwire_public_headers library)
  list(REMOVE_ITEM ARGN DETAIL)
  file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  cmake_path(APPEND PROJECT_BINARY_DIR include thinwire ${folder} OUTPUT_VARIABLE folder)
  list(TRANSFORM ARGN PREPEND ${folder}/)
  target_sources(${library} PUBLIC FILE_SET HEADERS
    BASE_DIRS ${PROJECT_BINARY_DIR}/include FILES ${ARGN})
endfunction()

# thinwire_share_precompiled_header(<target>): for a target that links thinwire and sees torch. The
# compiler takes a precompiled header only with the macros and the code model that made it, hence
# those of the library.
function(thinwire_share_precompiled_header target)
  target_link_libraries(${target} PRIVATE Boost::headers)
  target_compile_options(${target} PRIVATE -fPIC)
  target_precompile_headers(${target} REUSE_FROM thinwire)
endfunction()

target_compile_definitions(thinwire_settings INTERFACE
  THINWIRE_VERSION="${PROJECT_VERSION}" THINWIRE_TORCH_VERSION="${THINWIRE_TORCH_VERSION}")
