// Files in JSON: plans and curves of L-GreCo, models of a link.
#include "thinwire/comm/link/link_model.h"
#include "thinwire/compressors/allocation/allocator.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

namespace {

constexpr const char* kCurves = R"json({"layers": [
  {"name": "a", "numel": 10, "reference": 1, "candidates": [
    {"spec": "quantize(bits=4)", "bytes": 40, "error": 1, "seconds": 0.5},
    {"spec": "quantize(bits=2)", "bytes": 20, "error": 2, "seconds": 0.25}]},
  {"name": "b", "numel": 20, "reference": 0, "norm": 4, "candidates": [
    {"spec": "topk(density=0.1)", "bytes": 200, "error": 2}]}]})json";

}  // namespace

std::vector<fuzz::Input> fuzz::seeds() {
  comm::LinkModel link;
  link.world = 2;
  const auto layers = lgreco::parse_curves(kCurves, "seed").layers;
  const lgreco::AllocationOptions options;
  const auto plan = lgreco::make_plan(layers, options, lgreco::allocate(layers, options));
  return {input_of(kCurves), input_of(lgreco::plan_text(plan)), input_of(comm::to_json(link)),
          input_of("{}"), input_of("[1, 2.5e3]")};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto text = fuzz::text_of(data, size);
  fuzz::expect_taken_or_refused([&] { lgreco::parse_curves(text, "input"); });
  fuzz::expect_taken_or_refused([&] { lgreco::parse_plan(text, "input"); });
  fuzz::expect_taken_or_refused([&] { comm::parse_link_model(text, "input"); });
  return 0;
}
