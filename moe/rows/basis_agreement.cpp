#include "thinwire/moe/rows/basis_agreement.h"

#include <ATen/ATen.h>

#include <numeric>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::moe {
namespace {

// Weight of the rows before the last basis.
constexpr double kBasisDecay = 0.5;

// [sum of send] -> [sum of receive], by rank.
at::Tensor exchange_parts(c10d::ProcessGroup* group, const at::Tensor& outgoing,
                          std::vector<std::int64_t> send, std::vector<std::int64_t> receive,
                          at::Device device, std::uint64_t sequence) {
  if (group == nullptr) return outgoing;
  at::Tensor input = outgoing.to(device);
  at::Tensor output = at::empty({std::accumulate(receive.begin(), receive.end(), std::int64_t{0})},
                                input.options());
  comm::wait(*group, group->alltoall_base(output, input, receive, send),
             "agreeing on the bases of expert rows", sequence);
  return output.cpu();
}

// The message of an owner who has got the moments of all ranks since the last one.
at::Tensor next_basis(BasisLeg& leg, const RowMoments& fresh, std::int64_t dim) {
  if (fresh.count() == 0) return at::zeros({basis_message_bytes(dim)}, at::kByte);
  const bool settled = leg.basis != nullptr && fresh.drift_from(*leg.basis) <= leg.options.drift;
  leg.running.decay_and_add(kBasisDecay, fresh);
  return leg.running.basis_message(leg.options, settled);
}

}  // namespace

void BasisLeg::take(const at::Tensor& next, std::int64_t dim) {
  auto made = basis_of(next, options, dim);
  if (made == nullptr) return;
  message = next.clone();
  basis = std::move(made);
}

std::shared_ptr<const SpectralBasis> BasisLeg::usable() const {
  return basis != nullptr && is_settled(message) ? basis : nullptr;
}

std::int64_t agree_on_bases(c10d::ProcessGroup* group, const std::vector<BasisLeg*>& legs,
                            const std::vector<RowMoments>& fresh, std::int64_t dim,
                            at::Device device, std::uint64_t sequence) {
  THINWIRE_ASSERT(fresh.size() == legs.size());
  const int ranks = group == nullptr ? 1 : group->getSize();
  const int me = group == nullptr ? 0 : group->getRank();
  const std::int64_t moments = RowMoments::packed_size(dim);
  const std::int64_t message = basis_message_bytes(dim);
  std::vector<std::int64_t> owned(static_cast<std::size_t>(ranks), 0);
  for (const BasisLeg* leg : legs) ++owned[static_cast<std::size_t>(leg->owner)];
  const std::int64_t mine = owned[static_cast<std::size_t>(me)];
  const auto times = [](std::vector<std::int64_t> counts, std::int64_t size) {
    for (auto& count : counts) count *= size;
    return counts;
  };
  const std::vector<std::int64_t> mine_of_all(static_cast<std::size_t>(ranks), mine);

  std::vector<at::Tensor> parts = {at::empty({0}, at::kFloat)};
  for (int owner = 0; owner < ranks; ++owner) {
    for (std::size_t i = 0; i < legs.size(); ++i) {
      if (legs[i]->owner == owner) parts.push_back(fresh[i].packed());
    }
  }
  const at::Tensor sums = exchange_parts(group, at::cat(parts), times(owned, moments),
                                         times(mine_of_all, moments), device, sequence);

  std::vector<at::Tensor> made = {at::empty({0}, at::kByte)};
  std::int64_t number = 0;
  for (BasisLeg* leg : legs) {
    if (leg->owner != me) continue;
    RowMoments all(dim);
    for (int rank = 0; rank < ranks; ++rank) {
      all.decay_and_add(1.0, RowMoments::unpacked(
                                 sums.narrow(0, (rank * mine + number) * moments, moments), dim));
    }
    ++number;
    made.push_back(next_basis(*leg, all, dim));
  }
  const at::Tensor own = at::cat(made);
  const at::Tensor bases = exchange_parts(group, own.repeat({ranks}), times(mine_of_all, message),
                                          times(owned, message), device, sequence);

  std::int64_t begin = 0;
  for (int owner = 0; owner < ranks; ++owner) {
    for (BasisLeg* leg : legs) {
      if (leg->owner != owner) continue;
      leg->take(bases.narrow(0, begin, message), dim);
      begin += message;
    }
  }
  const std::int64_t others = ranks - 1;
  return (static_cast<std::int64_t>(legs.size()) - mine) * moments *
             static_cast<std::int64_t>(sizeof(float)) +
         others * mine * message;
}

}  // namespace thinwire::moe
