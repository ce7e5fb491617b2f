# Defines thinwire::torch, LibTorch with its c10d collectives, from an unpacked LibTorch or from
# the folder of Python's torch package.
#
# TorchConfig.cmake is not used: for a CUDA build of torch it insists on an installed CUDA toolkit
# and links libcuda, which a machine without a GPU driver does not have.
#
# It is installed with the library, whose package configuration includes it as well.
#
# Input:  THINWIRE_TORCH_ROOT (cache), else THINWIRE_TORCH_HINT (the installed library's own torch),
#         else the torch of ./.venv, else that of python3.
#         THINWIRE_TORCH_REQUIRED: major.minor that it must have, empty for any.
# Output: thinwire::torch, THINWIRE_TORCH_ROOT, THINWIRE_TORCH_VERSION, THINWIRE_TORCH_HAS_CUDA, or
#         THINWIRE_TORCH_PROBLEM, which says why there is none.

if(TARGET thinwire::torch)
  return()
endif()

set(THINWIRE_TORCH_PROBLEM "")
set(torch_header include/torch/csrc/api/include/torch/torch.h)
if(NOT THINWIRE_TORCH_ROOT AND THINWIRE_TORCH_HINT AND EXISTS ${THINWIRE_TORCH_HINT}/${torch_header})
  set(THINWIRE_TORCH_ROOT ${THINWIRE_TORCH_HINT} CACHE PATH "Folder of LibTorch" FORCE)
endif()
if(NOT THINWIRE_TORCH_ROOT)
  # A wheel is made by, and for, one Python.
  foreach(python ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/.venv/bin/python python3)
    execute_process(
      COMMAND ${python} -c
        "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE torch_root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
      RESULT_VARIABLE failed)
    if(NOT failed AND EXISTS ${torch_root}/${torch_header})
      set(THINWIRE_TORCH_ROOT ${torch_root} CACHE PATH "Folder of LibTorch" FORCE)
      break()
    endif()
  endforeach()
endif()
if(NOT EXISTS ${THINWIRE_TORCH_ROOT}/${torch_header})
  string(CONCAT THINWIRE_TORCH_PROBLEM
    "LibTorch was not found (THINWIRE_TORCH_ROOT='${THINWIRE_TORCH_ROOT}'). Set THINWIRE_TORCH_ROOT "
    "to the folder that holds LibTorch's include/ and lib/, or install Python's torch package; in "
    "thinwire's own tree 'make setup' does that.")
  return()
endif()

file(READ ${THINWIRE_TORCH_ROOT}/include/torch/headeronly/version.h torch_version_header)
set(THINWIRE_TORCH_VERSION "")
foreach(part MAJOR MINOR PATCH)
  string(REGEX MATCH "define TORCH_VERSION_${part} ([0-9]+)" _ "${torch_version_header}")
  list(APPEND THINWIRE_TORCH_VERSION ${CMAKE_MATCH_1})
endforeach()
list(JOIN THINWIRE_TORCH_VERSION "." THINWIRE_TORCH_VERSION)
if(THINWIRE_TORCH_REQUIRED AND
   NOT "${THINWIRE_TORCH_VERSION}." MATCHES "^${THINWIRE_TORCH_REQUIRED}[.]")
  string(CONCAT THINWIRE_TORCH_PROBLEM
    "this thinwire was built with LibTorch ${THINWIRE_TORCH_REQUIRED} and cannot be used with "
    "${THINWIRE_TORCH_VERSION} in ${THINWIRE_TORCH_ROOT}: c10d has no stable ABI. Set "
    "THINWIRE_TORCH_ROOT to a LibTorch ${THINWIRE_TORCH_REQUIRED}, or build thinwire anew.")
  return()
endif()

find_package(Threads REQUIRED)
set(THINWIRE_TORCH_HAS_CUDA OFF)
if(EXISTS ${THINWIRE_TORCH_ROOT}/lib/libtorch_cuda.so)
  set(THINWIRE_TORCH_HAS_CUDA ON)
endif()
set(torch_libraries torch torch_cpu c10)
if(THINWIRE_WHEEL)
  # It serves a torch with CUDA and one without; the one that is imported has loaded what it has.
  set(torch_libraries torch_cpu c10)
elseif(THINWIRE_TORCH_HAS_CUDA)
  list(APPEND torch_libraries torch_cuda c10_cuda)
endif()
list(TRANSFORM torch_libraries REPLACE "(.+)" "${THINWIRE_TORCH_ROOT}/lib/lib\\1.so")

add_library(thinwire_torch INTERFACE IMPORTED GLOBAL)
add_library(thinwire::torch ALIAS thinwire_torch)
target_include_directories(thinwire_torch SYSTEM INTERFACE
  ${THINWIRE_TORCH_ROOT}/include ${THINWIRE_TORCH_ROOT}/include/torch/csrc/api/include)
target_compile_definitions(thinwire_torch INTERFACE USE_DISTRIBUTED)
# --no-as-needed: libtorch_cuda registers itself when it is loaded, no symbol refers to it.
target_link_libraries(thinwire_torch INTERFACE
  "$<$<BOOL:${THINWIRE_TORCH_HAS_CUDA}>:-Wl,--no-as-needed>" ${torch_libraries}
  "$<$<BOOL:${THINWIRE_TORCH_HAS_CUDA}>:-Wl,--as-needed>" Threads::Threads)
