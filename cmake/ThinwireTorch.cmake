# Defines thinwire::torch, LibTorch with its c10d collectives, from an unpacked LibTorch or from
# the folder of Python's torch package.
#
# TorchConfig.cmake is not used: for a CUDA build of torch it insists on an installed CUDA toolkit
# and links libcuda, which a machine without a GPU driver does not have.
#
# Input:  THINWIRE_TORCH_ROOT (cache), else the torch of ./.venv, else that of python3.
# Output: thinwire::torch, THINWIRE_TORCH_ROOT, THINWIRE_TORCH_VERSION, THINWIRE_TORCH_HAS_CUDA

if(TARGET thinwire::torch)
  return()
endif()

if(NOT THINWIRE_TORCH_ROOT)
  foreach(python ${CMAKE_SOURCE_DIR}/.venv/bin/python python3)
    execute_process(
      COMMAND ${python} -c
        "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE torch_root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
      RESULT_VARIABLE failed)
    if(NOT failed AND EXISTS ${torch_root}/include/torch/csrc/api/include/torch/torch.h)
      set(THINWIRE_TORCH_ROOT ${torch_root} CACHE PATH "Folder of LibTorch" FORCE)
      break()
    endif()
  endforeach()
endif()
if(NOT EXISTS ${THINWIRE_TORCH_ROOT}/include/torch/csrc/api/include/torch/torch.h)
  message(FATAL_ERROR
    "thinwire: LibTorch was not found (THINWIRE_TORCH_ROOT='${THINWIRE_TORCH_ROOT}'). Either run "
    "'make setup', which installs it into .venv, or set THINWIRE_TORCH_ROOT to the folder that "
    "holds LibTorch's include/ and lib/.")
endif()

file(READ ${THINWIRE_TORCH_ROOT}/include/torch/headeronly/version.h torch_version_header)
set(THINWIRE_TORCH_VERSION "")
foreach(part MAJOR MINOR PATCH)
  string(REGEX MATCH "define TORCH_VERSION_${part} ([0-9]+)" _ "${torch_version_header}")
  list(APPEND THINWIRE_TORCH_VERSION ${CMAKE_MATCH_1})
endforeach()
list(JOIN THINWIRE_TORCH_VERSION "." THINWIRE_TORCH_VERSION)

find_package(Threads REQUIRED)
set(THINWIRE_TORCH_HAS_CUDA OFF)
set(torch_libraries torch torch_cpu c10)
if(EXISTS ${THINWIRE_TORCH_ROOT}/lib/libtorch_cuda.so)
  set(THINWIRE_TORCH_HAS_CUDA ON)
  list(APPEND torch_libraries torch_cuda c10_cuda)
endif()
list(TRANSFORM torch_libraries REPLACE "(.+)" "${THINWIRE_TORCH_ROOT}/lib/lib\\1.so")

add_library(thinwire_torch INTERFACE IMPORTED GLOBAL)
add_library(thinwire::torch ALIAS thinwire_torch)
target_include_directories(thinwire_torch SYSTEM INTERFACE
  ${THINWIRE_TORCH_ROOT}/include ${THINWIRE_TORCH_ROOT}/include/torch/csrc/api/include)
target_compile_definitions(thinwire_torch INTERFACE USE_DISTRIBUTED USE_C10D_GLOO)
# --no-as-needed: libtorch_cuda registers itself when it is loaded, no symbol refers to it.
target_link_libraries(thinwire_torch INTERFACE
  "$<$<BOOL:${THINWIRE_TORCH_HAS_CUDA}>:-Wl,--no-as-needed>" ${torch_libraries}
  "$<$<BOOL:${THINWIRE_TORCH_HAS_CUDA}>:-Wl,--as-needed>" Threads::Threads)
