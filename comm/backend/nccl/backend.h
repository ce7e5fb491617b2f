// NCCL, the GPU backend inside LibTorch, made from C++.
//
// What needs CUDA is a part of its own, libthinwire_nccl.so, which these functions load: see
// Note [Parts]. Where it cannot be loaded they throw InvalidArgument, saying what it needs.
#pragma once

#include <chrono>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

// Whether this build contains the NCCL backend and this host has a GPU with a driver.
bool nccl_backend_usable();
// Throws InvalidArgument, saying what to use instead, where make_nccl_backend() cannot work.
void check_nccl_backend(int cuda_device);

// A backend whose ranks each use one GPU, `cuda_device` for this rank. Connects at the first
// collective. Throws as check_nccl_backend() does.
c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    int rank, int size,
                                                    std::chrono::milliseconds timeout,
                                                    int cuda_device);

// A backend over the ranks `ranks` of `backend`, this one among them, numbered in this order, and
// the same GPU, with communicators of its own.
c10::intrusive_ptr<c10d::Backend> reconnect_nccl_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend, const c10::intrusive_ptr<c10d::Store>& store,
    const std::vector<int>& ranks);

// A function of NCCL or of CUDA's runtime, or null where this process has none. Starts nothing.
void* find_nccl_function(const char* name);

}  // namespace thinwire::comm
