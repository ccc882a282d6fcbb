#include "transport/rdma/loan.h"

#include <algorithm>
#include <utility>

namespace jaxcoll {

StatusOr<uint32_t> RdmaLoan::KeyFor(size_t rail, const verbs::Domain& domain,
                                    std::span<const std::byte> bytes) {
  for (const Piece& piece : pieces_[rail]) {
    if (bytes.data() >= piece.bytes.data() &&
        bytes.data() + bytes.size() <= piece.bytes.data() + piece.bytes.size()) {
      return piece.region->lkey();
    }
  }
  const size_t begin = static_cast<size_t>(bytes.data() - buffer_.data());
  const auto piece =
      buffer_.subspan(begin, std::min(std::max(bytes.size(), kPieceBytes), buffer_.size() - begin));
  // No rights at all: the NIC of this side may read, and nothing may write.
  auto region = verbs::Region::Register(domain, const_cast<std::byte*>(piece.data()), piece.size(),
                                        /*access=*/0);
  if (!region.ok()) return region.status();
  pieces_[rail].push_back({piece, std::move(*region)});
  return pieces_[rail].back().region->lkey();
}

Status RdmaLoan::RegisterDmabuf(size_t rail, const verbs::Domain& domain, int fd, uint64_t offset) {
  of_device_ = true;
  auto region = verbs::Region::RegisterDmabuf(
      domain, fd, offset, buffer_.size(), reinterpret_cast<uint64_t>(buffer_.data()), /*access=*/0);
  if (!region.ok()) return region.status();
  pieces_[rail].push_back({buffer_, std::move(*region)});
  return Status();
}

void RdmaLoan::Revoke(bool forked) {
  lender_ = nullptr;
  for (std::vector<Piece>& pieces : pieces_) {
    for (Piece& piece : pieces) {
      if (forked) (void)piece.region.release();
    }
    pieces.clear();
  }
}

void LentPuts::Released(uint64_t put) {
  const auto it = puts_.find(put);
  if (it == puts_.end() || --it->second.parts > 0) return;
  sent_tokens_.push_back(it->second.token);
  puts_.erase(it);
}

uint64_t LentPuts::Forget(uint64_t token) {
  std::erase(sent_tokens_, token);
  const auto it = std::find_if(puts_.begin(), puts_.end(),
                               [&](const auto& put) { return put.second.token == token; });
  return it == puts_.end() ? 0 : puts_.extract(it).key();
}

uint64_t LentPuts::TakeSent() {
  const uint64_t token = sent_tokens_.front();
  sent_tokens_.pop_front();
  return token;
}

}  // namespace jaxcoll
