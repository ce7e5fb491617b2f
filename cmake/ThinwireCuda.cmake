# nvcc and CUDA's runtime, of a toolkit or of NVIDIA's wheels on PyPI (requirements-cuda.txt).
# Sets THINWIRE_HAS_CUDA, THINWIRE_HAS_NCCL and THINWIRE_NCCL_INCLUDE_DIR.

# The wheels keep their libraries in lib, where nvcc looks in lib64, and have no libcudart.so but
# the one with the version, which is what a program needs anyway. Nothing for a toolkit.
macro(thinwire_use_cuda_wheels)
  set(nvcc "$ENV{CUDACXX}")
  if(CMAKE_CUDA_COMPILER)
    set(nvcc ${CMAKE_CUDA_COMPILER})
  endif()
  if(nvcc MATCHES "^(.*/site-packages/nvidia/cu[0-9]+)/bin/nvcc$")
    set(wheel ${CMAKE_MATCH_1})
    set(ENV{NVCC_APPEND_FLAGS} "$ENV{NVCC_APPEND_FLAGS} -L${wheel}/lib")  # for CMake's own tests
    set(CMAKE_CUDA_FLAGS "-L${wheel}/lib" CACHE STRING "Flags of nvcc")
    file(GLOB runtime ${wheel}/lib/libcudart.so.*)
    foreach(name CUDA_CUDART CUDA_cudart_LIBRARY)  # of FindCUDAToolkit
      set(${name} ${runtime} CACHE FILEPATH "CUDA's runtime")
    endforeach()
  endif()
endmacro()

if(NOT THINWIRE_WITH_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  # Without a word from the user: nvcc of the PATH, of the usual folder, then of the wheels beside
  # torch. What an earlier configuration did not find may be there by now.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    unset(CMAKE_CUDA_COMPILER CACHE)
    file(GLOB wheels LIST_DIRECTORIES ON ${THINWIRE_TORCH_ROOT}/../nvidia/cu[0-9]*)
    list(TRANSFORM wheels APPEND /bin OUTPUT_VARIABLE wheel_programs)
    find_program(THINWIRE_NVCC nvcc PATHS /usr/local/cuda/bin ${wheel_programs} NO_CACHE)
    if(THINWIRE_NVCC)
      cmake_path(NORMAL_PATH THINWIRE_NVCC)
      set(ENV{CUDACXX} ${THINWIRE_NVCC})
    endif()
  endif()
  thinwire_use_cuda_wheels()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND THINWIRE_TORCH_HAS_CUDA)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
    endif()
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc speaks C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    find_package(CUDAToolkit)
  endif()
endif()
if(CMAKE_CUDA_COMPILER AND THINWIRE_TORCH_HAS_CUDA AND CUDAToolkit_FOUND)
  set(cuda_found ON)
endif()
thinwire_resolve(CUDA "${cuda_found}"
  "no kernels and no tests of GPU memory; they need nvcc (found: '${CMAKE_CUDA_COMPILER}'; PyPI has it, see requirements-cuda.txt) and a CUDA build of LibTorch (${THINWIRE_TORCH_HAS_CUDA})")

# NCCL's header comes with the toolkit or with the nvidia-nccl package beside torch.
set(THINWIRE_HAS_NCCL OFF)
if(THINWIRE_HAS_CUDA)
  find_path(THINWIRE_NCCL_INCLUDE_DIR nccl.h
    HINTS ${CUDAToolkit_INCLUDE_DIRS} ${THINWIRE_TORCH_ROOT}/../nvidia/nccl/include)
  if(THINWIRE_NCCL_INCLUDE_DIR)
    set(THINWIRE_HAS_NCCL ON)
  endif()
endif()
