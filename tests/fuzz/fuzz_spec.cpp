// Specs: the grammar, and making a codec or a policy of what it gives.
#include "thinwire/common/spec.h"
#include "thinwire/compressors/allocation/policy.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

std::vector<fuzz::Input> fuzz::seeds() {
  std::vector<Input> all;
  for (const char* spec :
       {"none", "identity", "quantize(bits=4)", "quantize(bits=4, bucket=1024, norm=minmax)",
        "topk(density=0.01, select=sampled, values=fp16)", "topk(values=coded)",
        "powersgd(rank=2, factors=int8)", "powersgd(rank=2, factors=ecsq(bits=3))",
        "randomk(density=0.1)", "cast(bf16)", "powersgd(rank=4, iterations=2)",
        "ternary(density=0.05, alpha=2)", "onebit(bucket=64)",
        "lgreco(family=powersgd, reference=4)", "lgreco(family=mixed, cap=0, period=100)",
        "spectral(bits=2.5)", "lsh(hashes=6, radius=0.4)"})
    all.push_back(input_of(spec));
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto text = fuzz::text_of(data, size);
  fuzz::expect_taken_or_refused([&] {
    const Spec spec = Spec::parse(text);
    // The canonical text means the same spec.
    if (Spec::parse(spec.str()).str() != spec.str()) throw InternalError("text is not canonical");
  });
  fuzz::expect_taken_or_refused([&] { make_codec(text); });
  fuzz::expect_taken_or_refused([&] { lgreco::parse_policy(Spec::parse(text)); });
  return 0;
}
