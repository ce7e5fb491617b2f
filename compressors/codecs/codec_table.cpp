#include "thinwire/compressors/codecs/codec_table.h"

#include <array>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/cast.h"
#include "thinwire/compressors/codecs/ecsq.h"
#include "thinwire/compressors/codecs/identity.h"
#include "thinwire/compressors/codecs/onebit.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/codecs/quantize.h"
#include "thinwire/compressors/codecs/randomk.h"
#include "thinwire/compressors/codecs/spectral.h"
#include "thinwire/compressors/codecs/ternary.h"
#include "thinwire/compressors/codecs/terngrad.h"
#include "thinwire/compressors/codecs/topk.h"
#include "thinwire/compressors/kernels/simd.h"

namespace thinwire {
namespace {

constexpr std::array kTable = {
    CodecEntry{"identity", CodecId::kIdentity, "", "the tensor's own bytes", make_identity},
    CodecEntry{"cast", CodecId::kCast, "format=bf16|fp16|fp8_e4m3|fp8_e5m2",
               "narrower floating point, rounded to nearest even", make_cast},
    CodecEntry{"quantize", CodecId::kQuantize,
               "bits=4 (1..8), bucket=1024, norm=minmax|linf|l2, rounding=nearest|stochastic",
               "bucketed uniform quantisation; QSGD, Alistarh et al., NeurIPS 2017", make_quantize},
    CodecEntry{"topk", CodecId::kTopk,
               "density=0.01, select=exact|sampled, values=fp32|fp16|bf16|coded",
               "largest magnitudes with packed indices; Stich et al., NeurIPS 2018", make_topk},
    CodecEntry{"randomk", CodecId::kRandomk, "density=0.01, unbiased=off|on",
               "random entries, the same on all ranks; Stich et al., NeurIPS 2018", make_randomk},
    CodecEntry{"onebit", CodecId::kOnebit, "bucket=1024 (a multiple of 64)",
               "signs and the mean of either sign; Seide et al., Interspeech 2014", make_onebit},
    CodecEntry{"terngrad", CodecId::kTerngrad, "bucket=1024 (a multiple of 64), clip=0",
               "stochastic -s, 0 or s; TernGrad, Wen et al., NeurIPS 2017", make_terngrad},
    CodecEntry{"ternary", CodecId::kTernary, "density=0.01, scale=mean|std, alpha=1 (scale=std)",
               "signs of the largest magnitudes and their mean; ComPEFT, arXiv 2311.13171",
               make_ternary},
    CodecEntry{"powersgd", CodecId::kPowerSgd,
               "rank=4 (1..1024), iterations=1 (1..16), factors=fp32|bf16|int8|int4|ecsq(bits=F)",
               "low-rank factors; PowerSGD, Vogels et al., NeurIPS 2019", make_powersgd},
    CodecEntry{"ecsq", CodecId::kEcsq, "bits=2.5 (0.02..16) | step=F | error=F | as=SPEC",
               "one step with a dead zone, entropy-coded; Sullivan, IEEE Trans. Inf. Theory 1996",
               make_ecsq},
    CodecEntry{"spectral", CodecId::kSpectral,
               "bits=1 (0.02..16) | step=F | error=F, directions=16 (1..64), every=10 (1..1000000)",
               "ecsq in a basis learned from the means, by predicted size; docs/ecsq.md",
               make_spectral},
};

}  // namespace

std::span<const CodecEntry> codec_table() {
  return kTable;
}

const CodecEntry& codec_entry(std::string_view name) {
  std::vector<std::string> known;
  for (const auto& entry : kTable) {
    if (entry.name == name) return entry;
    known.emplace_back(entry.name);
  }
  std::string list;
  for (const auto& word : known) list += (list.empty() ? "" : ", ") + word;
  const std::string nearest = nearest_name(name, known);
  throw InvalidArgument(concat("unknown codec '", name, "'; the codecs are: ", list,
                               nearest.empty() ? "" : concat(" (did you mean '", nearest, "'?)")));
}

CodecPtr make_codec(const Spec& spec) {
  kernels::apply_simd_environment();
  return codec_entry(spec.name).make(spec);
}

CodecPtr make_codec(std::string_view spec) {
  return make_codec(Spec::parse(spec));
}

}  // namespace thinwire
