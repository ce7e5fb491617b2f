// Puts ATen's operators on the fake device, when this library is loaded.
#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/util/Logging.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "thinwire/tests/support/fake_gpu/aten/copies.h"
#include "thinwire/tests/support/fake_gpu/aten/operators.h"
#include "thinwire/tests/support/fake_gpu/detector.h"
#include "thinwire/tests/support/fake_gpu/memory.h"
#include "thinwire/tests/support/fake_gpu/names.h"
#include "thinwire/tests/support/fake_gpu/stream.h"

namespace thinwire::fake_gpu {
namespace {

// What looks at sizes alone or makes room, and what copies.cpp has.
bool stays(const std::string& name) {
  constexpr const char* beginnings[] = {"aten::empty",
                                        "aten::new_empty",
                                        "aten::as_strided",
                                        "aten::view",
                                        "aten::_reshape",
                                        "aten::resize_",
                                        "aten::set_",
                                        "aten::unfold",
                                        "aten::alias",
                                        "aten::detach",
                                        "aten::record_stream",
                                        "aten::_pin_memory",
                                        "aten::is_pinned",
                                        "aten::is_set_to",
                                        "aten::_copy_from_and_resize",
                                        "aten::copy_",
                                        "aten::fill_",
                                        "aten::zero_",
                                        "aten::_local_scalar_dense"};
  return !name.starts_with("aten::") ||
         std::ranges::any_of(beginnings, [&](const char* one) { return name.starts_with(one); });
}

struct NoWarnings final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

void replace_operators() {
  NoWarnings none;  // that kernels are replaced
  const c10::WarningUtils::WarningHandlerGuard guard(&none);
  auto& dispatcher = c10::Dispatcher::singleton();
  static auto* registered = new std::vector<c10::RegistrationHandleRAII>;
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA) || stays(name.name)) continue;
    registered->push_back(dispatcher.registerImpl(
        name, c10::DispatchKey::CUDA, c10::KernelFunction::makeFromBoxedFunction<&run_operator>(),
        std::nullopt, nullptr, "fake GPU"));
  }
  static auto* library =
      new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  library->impl("copy_", copy_);
  library->impl("_copy_from_and_resize", copy_from_and_resize);
  library->impl("fill_.Scalar", fill_);
  library->impl("zero_", zero_);
  library->impl("_local_scalar_dense", local_scalar_dense);
  // It would be asked for its kernels otherwise, which are not ATen's.
  at::globalContext().setUserEnabledCuDNN(false);
}

// The detector follows tensors, of which the caching allocator cuts several from one allocation.
void follow_tensors() {
  using c10::cuda::CUDACachingAllocator::TraceEntry;
  constexpr std::size_t kGranularity = 512;  // of the caching allocator
  at::globalContext().lazyInitDevice(at::kCUDA);
  c10::cuda::CUDACachingAllocator::attachAllocatorTraceTracker([](const TraceEntry& entry) {
    const bool given = entry.action_ == TraceEntry::ALLOC;
    if (!given && entry.action_ != TraceEntry::FREE_COMPLETED) return;
    auto* const begin = reinterpret_cast<std::byte*>(entry.addr_);
    const std::size_t bytes = entry.size_;
    const std::size_t room = (bytes + kGranularity - 1) / kGranularity * kGranularity;
    if (given) rename_memory(begin, room, "a tensor of " + std::to_string(bytes) + " bytes");
    Stream* const stream =
        entry.stream_ == nullptr ? default_stream(entry.device_) : stream_of(entry.stream_);
    if (!given) {
      enqueue(stream, {"free", [all = named({begin, room, true})] {
                         note_contents(current_task(), all, Contents::kFreed);
                       }});
      return;
    }
    const Access tensor = named({begin, bytes, true});
    const Access rest = named({begin + bytes, room - bytes, true});
    enqueue(stream, {"allocation", [=] {
                       note_contents(current_task(), tensor, Contents::kUnwritten);
                       note_contents(current_task(), rest, Contents::kNobodys);
                       std::fill_n(static_cast<std::byte*>(shadow(begin)), room, std::byte{0xFF});
                     }});
  });
}

[[gnu::constructor]] void install() {
  replace_operators();
  follow_tensors();
}

}  // namespace
}  // namespace thinwire::fake_gpu
