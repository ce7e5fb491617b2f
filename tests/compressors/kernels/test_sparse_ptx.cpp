// The kernels that average chosen entries in GPU memory as nvcc compiles them: their PTX is
// executed on the host for two ranks, with every access checked. Their payloads are what the codecs
// on the CPU choose and read, and the means are those of these; every barrier that is taken out is
// found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/index_coder.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/sparse_task.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/support/ptx/barriers.h"
#include "thinwire/tests/support/ptx/machine.h"
#include "thinwire/tests/support/ptx/named_kernels.h"

namespace thinwire::testing {
namespace {

using namespace kernels;

constexpr std::uint32_t kWorld = 2;

struct Layer {
  const char* codec;
  std::uint32_t numel;
  bool has_momentum = false;
};
constexpr Layer kLayers[] = {{"topk(density=0.04)", 5003},
                             {"topk(density=0.3, values=fp16)", 2049, true},
                             {"ternary(density=0.5)", 2300},
                             {"topk(density=1, values=bf16)", 70}};
// Entries that all ranks draw alike.
constexpr Layer kDrawnLayers[] = {{"randomk(density=0.3, unbiased=on)", 2100},
                                  {"randomk(density=0.05)", 130, true}};
using Layers = std::span<const Layer>;

const std::vector<ptx::Kernel>& compiled() {
  static const std::vector<ptx::Kernel> kernels = ptx::kernels_of_file(THINWIRE_SPARSE_PTX);
  return kernels;
}

// One rank's memory.
struct Rank {
  std::vector<float> bucket;
  std::vector<std::vector<float>> residuals, velocities, next;
  std::vector<SparseLayer> layers;
  std::vector<SelectState> states;
  std::vector<std::uint32_t> bins, tally, indices, finite, poisoned;
  std::vector<float> chosen, scales;
  std::vector<double> magnitudes;
  std::vector<std::byte> payload, arrived;
  ExchangeWords words{0, 0};
  std::uint64_t tiles = 0, runs = 0, payload_bytes = 0;

  Rank(std::uint32_t number, Layers made_of);
  std::uint32_t count() const { return static_cast<std::uint32_t>(layers.size()); }
  bool drawn() const { return layers.front().form == EntryForm::kDrawn; }
};

Rank::Rank(std::uint32_t number, Layers made_of)
    : states(made_of.size()), bins(made_of.size() * kSelectBins), scales(made_of.size()) {
  std::uint64_t entries = 0, value = 3;
  for (const Layer& layer : made_of) value += layer.numel;
  bucket = normal_values(value, 10 + number);
  // Some of equal magnitude, more than are sent of the layer's last bin.
  for (std::size_t i = 500; i < 1500; ++i) bucket[i] = bucket[i] < 0 ? -2.5f : 2.5f;
  value = 3;
  for (const Layer& layer : made_of) {
    const CodecPtr codec = make_codec(layer.codec);
    const auto kept = kept_count(codec->facts().density.value(), layer.numel);
    residuals.push_back(normal_values(layer.numel, 30 + number, 0.1f));
    velocities.push_back(normal_values(layer.has_momentum ? layer.numel : 0, 50 + number, 0.1f));
    next.emplace_back(velocities.back().size());
    SparseLayer made{};
    made.form = codec->entry_form().value_or(EntryForm::kDrawn);
    made.layer_id = static_cast<std::uint32_t>(7 + layers.size());
    made.unbiased = codec->traits().unbiased;
    made.numel = layer.numel;
    made.kept = static_cast<std::uint32_t>(kept);
    made.shape = EliasFano::of(layer.numel, made.kept);
    made.value = value;
    made.first_tile = tiles;
    made.first_run = runs;
    made.first_entry = entries;
    made.payload = payload_bytes;
    made.decay = 0.5f;
    made.has_momentum = layer.has_momentum;
    made.momentum = 0.9f;
    made.residual = residuals.back().data();
    made.velocity = layer.has_momentum ? velocities.back().data() : nullptr;
    made.new_velocity = layer.has_momentum ? next.back().data() : nullptr;
    layers.push_back(made);
    value += layer.numel;
    tiles += (layer.numel + kSparseTile - 1) / kSparseTile;
    runs += (made.kept + kEntryRun - 1) / kEntryRun;
    entries += made.kept;
    payload_bytes += (entry_payload_bytes(made.form, made.shape, made.kept) + 15) / 16 * 16;
  }
  tally.resize(2 * tiles);
  indices.resize(entries);
  chosen.resize(entries);
  finite.resize(runs);
  poisoned.resize(kWorld * made_of.size());
  magnitudes.resize(4 * runs);
  payload.resize(payload_bytes);
  arrived.resize(kWorld * payload_bytes);
}

SparseTask task_of(Rank& rank) {
  SparseTask task{};
  task.layers = rank.layers.data();
  task.count = rank.count();
  task.tiles = rank.tiles;
  task.runs = rank.runs;
  task.dtype = DType::kFloat32;
  task.values = task.lost = rank.bucket.data();
  task.ranks = task.divisor = kWorld;
  task.seed = 5;
  task.step = 3;
  task.states = rank.states.data();
  task.bins = rank.bins.data();
  task.tally = rank.tally.data();
  task.indices = rank.indices.data();
  task.chosen = rank.chosen.data();
  task.magnitudes = rank.magnitudes.data();
  task.scales = rank.scales.data();
  task.finite = rank.finite.data();
  task.payload = rank.payload.data();
  task.arrived = rank.arrived.data();
  task.stride = rank.payload_bytes;
  task.world = kWorld;
  task.poisoned = rank.poisoned.data();
  task.words = &rank.words;
  return task;
}

struct Machine {
  const std::vector<ptx::Kernel>& kernels = compiled();
  std::uint64_t seed = 1;
  std::uint64_t most_blocks = 64;  // of a launch: fewer take several parts each

  // What is sent to a kernel may be touched by it, and nothing else.
  void launch(Rank& rank, const std::string& name, const SparseTask& task,
              std::uint64_t blocks) const {
    ptx::GlobalMemory memory;
    const auto add = [&](auto& values) {
      memory.add(values.data(), values.size() * sizeof(values[0]));
    };
    for (auto* lists : {&rank.residuals, &rank.velocities, &rank.next}) {
      for (auto& values : *lists) add(values);
    }
    for (auto* words : {&rank.bins, &rank.tally, &rank.indices, &rank.finite, &rank.poisoned})
      add(*words);
    for (auto* floats : {&rank.bucket, &rank.chosen, &rank.scales}) add(*floats);
    for (auto* bytes : {&rank.payload, &rank.arrived}) add(*bytes);
    add(rank.layers);
    add(rank.states);
    add(rank.magnitudes);
    memory.add(&rank.words, sizeof rank.words);
    ptx::run(ptx::kernel_of(kernels, name),
             {.blocks = static_cast<std::uint32_t>(std::min(blocks, most_blocks)),
              .threads = 256,
              .parameters = std::as_bytes(std::span(&task, 1)),
              .seed = seed},
             memory);
  }
  void encode(Rank& rank) const {
    SparseTask task = task_of(rank);
    launch(rank, ptx::instance("sparse_correct_kernel", "DType", 0), task, task.tiles);
    for (; task.pass < kSelectPasses; ++task.pass) {
      if (task.pass > 0) launch(rank, "sparse_count_kernel", task, task.tiles);
      launch(rank, "sparse_pick_kernel", task, task.count);
      if (rank.drawn()) return launch(rank, "sparse_draw_kernel", task, task.runs);
    }
    launch(rank, "sparse_tally_kernel", task, task.tiles);
    launch(rank, "sparse_before_kernel", task, task.count);
    launch(rank, "sparse_gather_kernel", task, task.tiles);
    launch(rank, "sparse_scale_kernel", task, task.count);
    launch(rank, "sparse_pack_kernel", task, task.runs);
  }
  void decode(Rank& rank) const {
    const SparseTask task = task_of(rank);
    if (rank.drawn()) launch(rank, "sparse_limit_kernel", task, task.runs);
    launch(rank, "sparse_poisoned_kernel", task, task.count * kWorld);
    launch(
        rank,
        ptx::instance(rank.drawn() ? "sparse_spread_kernel" : "sparse_decode_kernel", "DType", 0),
        task, task.tiles);
  }
  void run(std::vector<Rank>& ranks) const {
    for (Rank& rank : ranks) encode(rank);
    // What the exchange of slices makes of drawn entries.
    std::vector<float> means = ranks[0].chosen;
    for (std::size_t j = 0; j < means.size(); ++j)
      means[j] = (means[j] + ranks[1].chosen[j]) / kWorld;
    if (ranks[0].drawn()) ranks[0].chosen = ranks[1].chosen = means;
    for (Rank& to : ranks) {
      for (std::size_t from = 0; from < kWorld; ++from) {
        std::ranges::copy(ranks[from].payload, to.arrived.begin() + static_cast<std::ptrdiff_t>(
                                                                        from * to.payload_bytes));
      }
    }
    for (Rank& rank : ranks) decode(rank);
  }
};

std::vector<Rank> ranks_of(Layers layers) {
  std::vector<Rank> ranks;
  for (std::uint32_t r = 0; r < kWorld; ++r) ranks.emplace_back(r, layers);
  return ranks;
}

// What a rank should send and keep of a layer, by the codec on the CPU.
struct Expected {
  std::vector<float> corrected, lost, velocity;
  std::vector<std::byte> payload;
  SparseEntries entries;
};

Expected expected_of(const Rank& before, Layers layers, std::size_t l) {
  const SparseLayer& layer = before.layers[l];
  Expected expected;
  for (std::size_t i = 0; i < layer.numel; ++i) {
    const float gradient = before.bucket[layer.value + i], kept = before.residuals[l][i];
    if (layer.has_momentum) {
      expected.velocity.push_back(layer.momentum * before.velocities[l][i] + gradient);
      expected.corrected.push_back(kept + expected.velocity.back());
    } else {
      expected.corrected.push_back(gradient + layer.decay * kept);
    }
  }
  const CodecPtr codec = make_codec(layers[l].codec);
  expected.lost = expected.corrected;
  std::vector<std::byte> own(codec->max_compressed_bytes(layer.numel, DType::kFloat32));
  const RandomKey key{.seed = 5, .step = 3, .layer = layer.layer_id};
  own.resize(codec->compress_and_subtract(view_of(std::span(expected.lost)), key, own));
  for (std::size_t i = 0; i < expected.velocity.size(); ++i) {
    if (expected.lost[i] != expected.corrected[i]) expected.velocity[i] = 0;
  }
  if (!codec->decompress_entries(own, layer.numel, expected.entries)) {
    expected.payload = own;
    return expected;
  }
  // The same entries with indices in the form of one size.
  const std::size_t index_bytes = elias_fano_bytes(layer.numel, layer.kept);
  const std::size_t values = own.size() - 4;
  std::vector<std::uint32_t> read(layer.kept);
  const std::size_t own_index_bytes = decode_indices(std::span(own).subspan(4), layer.numel, read);
  expected.payload.assign(own.begin(), own.begin() + 4);
  expected.payload.resize(4 + index_bytes);
  encode_elias_fano(read, layer.numel, std::span(expected.payload).subspan(4));
  expected.payload.insert(expected.payload.end(),
                          own.end() - static_cast<std::ptrdiff_t>(values - own_index_bytes),
                          own.end());
  return expected;
}

// The mean of a layer from what the ranks send of it.
std::vector<float> mean_of(const std::vector<std::vector<Expected>>& all, const SparseLayer& layer,
                           const Codec& codec, std::size_t l) {
  std::vector<float> mean(layer.numel);
  if (layer.form == EntryForm::kDrawn) {
    std::vector<float> values(layer.kept), more(layer.kept);
    std::memcpy(values.data(), all[0][l].payload.data(), all[0][l].payload.size());
    std::memcpy(more.data(), all[1][l].payload.data(), all[1][l].payload.size());
    for (std::size_t j = 0; j < values.size(); ++j) values[j] = (values[j] + more[j]) / kWorld;
    codec.decompress(std::as_bytes(std::span(values)),
                     {.seed = 5, .step = 3, .layer = layer.layer_id}, view_of(std::span(mean)),
                     WriteMode::kAssign);
    return mean;
  }
  for (std::size_t p = 0; p < kWorld; ++p) {
    const SparseEntries& entries = all[p][l].entries;
    for (std::size_t j = 0; j < entries.size(); ++j) mean[entries.indices[j]] += entries.values[j];
  }
  for (float& value : mean) value /= kWorld;
  return mean;
}

// Empty where all ranks have what is expected, else what they have not.
std::string difference(const Machine& machine, Layers layers) {
  std::vector<Rank> ranks = ranks_of(layers);
  std::vector<std::vector<Expected>> expected(kWorld);
  for (std::size_t r = 0; r < kWorld; ++r) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      expected[r].push_back(expected_of(ranks[r], layers, l));
    }
  }
  machine.run(ranks);
  for (std::size_t r = 0; r < kWorld; ++r) {
    if (std::ranges::any_of(ranks[r].bins, [](std::uint32_t n) { return n != 0; })) return "bins";
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const SparseLayer& layer = ranks[r].layers[l];
      const CodecPtr codec = make_codec(layers[l].codec);
      const std::string where = concat(" of layer ", l, ", rank ", r);
      const auto& payload = expected[r][l].payload;
      if (!ranks[r].drawn()) {
        if (payload.size() != entry_payload_bytes(layer.form, layer.shape, layer.kept) ||
            !std::equal(payload.begin(), payload.end(),
                        ranks[r].payload.begin() + static_cast<std::ptrdiff_t>(layer.payload))) {
          return "payload" + where;
        }
        SparseEntries read;
        codec->decompress_entries(payload, layer.numel, read);
        if (read.indices != expected[r][l].entries.indices) return "what the codec reads" + where;
      }
      if (ranks[r].residuals[l] != expected[r][l].lost) return "residual" + where;
      if (ranks[r].velocities[l] != expected[r][l].velocity) return "velocity" + where;
      const std::vector<float> mean = mean_of(expected, layer, *codec, l);
      if (!std::equal(mean.begin(), mean.end(),
                      ranks[r].bucket.begin() + static_cast<std::ptrdiff_t>(layer.value))) {
        return "mean" + where;
      }
    }
  }
  return {};
}

TEST(SparsePtx, PayloadsMeansAndResidualsEqualTheCpus) {
  for (const Layers layers : {Layers(kLayers), Layers(kDrawnLayers)}) {
    EXPECT_EQ(difference({}, layers), "");
    EXPECT_EQ(difference({.seed = 2, .most_blocks = 2}, layers), "");
  }
}

TEST(SparsePtx, MoreThatIsNotFiniteThanIsSentSpoilsTheLayer) {
  std::vector<Rank> ranks = ranks_of(kLayers);
  const SparseLayer& layer = ranks[1].layers[0];
  for (std::size_t i = 0; i < layer.kept; ++i) ranks[1].bucket[layer.value + 7 * i] = HUGE_VALF;
  ranks[1].bucket[ranks[1].layers[1].value + 9] = std::nanf("");
  for (Rank& rank : ranks) rank.words.not_finite = 1;
  const auto residuals = ranks[1].residuals;
  Machine{}.run(ranks);
  for (const Rank& rank : ranks) {
    EXPECT_THAT(rank.poisoned, ::testing::ElementsAre(0, 0, 0, 0, 1, 0, 0, 0));
    EXPECT_TRUE(std::isnan(rank.bucket[layer.value + 1]));
    EXPECT_TRUE(std::isnan(rank.bucket[rank.layers[1].value + 9]));
    EXPECT_FALSE(std::isnan(rank.bucket[rank.layers[1].value + 8]));
    EXPECT_FALSE(std::isnan(rank.bucket[rank.layers[2].value]));
  }
  EXPECT_EQ(ranks[1].finite[0], 0u);
  EXPECT_EQ(ranks[0].finite[0], 1u);
  EXPECT_EQ(ranks[1].residuals, residuals);
}

TEST(SparsePtx, DrawnEntriesOfALayerThatIsNotFiniteSpoilIt) {
  std::vector<Rank> ranks = ranks_of(kDrawnLayers);
  ranks[1].bucket[ranks[1].layers[0].value + 9] = -HUGE_VALF;
  const auto residuals = ranks[1].residuals;
  Machine{}.run(ranks);
  for (const Rank& rank : ranks) {
    EXPECT_NE(rank.words.not_finite, 0u);
    for (std::size_t i = 0; i < rank.layers[0].numel; i += 50) {
      EXPECT_TRUE(std::isnan(rank.bucket[rank.layers[0].value + i]));
    }
    EXPECT_FALSE(std::isnan(rank.bucket[rank.layers[1].value]));
  }
  EXPECT_EQ(ranks[1].residuals, residuals);
}

TEST(SparsePtx, EveryBarrierThatIsTakenOutIsFound) {
  const int barriers = ptx::expect_barriers_are_needed(
      compiled(),
      {"sparse_correct_kernelILNS_5DTypeE0", "sparse_pick_kernel", "sparse_count_kernel",
       "sparse_tally_kernel", "sparse_before_kernel", "sparse_gather_kernel", "sparse_scale_kernel",
       "sparse_pack_kernel", "sparse_decode_kernelILNS_5DTypeE0",
       "sparse_spread_kernelILNS_5DTypeE0"},
      [](const std::vector<ptx::Kernel>& mutants) {
        return ptx::finding_of_seeds([&](std::uint64_t seed) {
          const Machine machine{.kernels = mutants, .seed = seed, .most_blocks = 2};
          const std::string found = difference(machine, kLayers);
          return found.empty() ? difference(machine, kDrawnLayers) : found;
        });
      });
  EXPECT_GT(barriers, 20);
}

}  // namespace
}  // namespace thinwire::testing
