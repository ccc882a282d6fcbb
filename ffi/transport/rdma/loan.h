// A buffer that a call lends to an rdma link: puts in it are sent without a copy.
//
// Only the NICs of the rails may read it; no one else gets a key. Memory of the host is registered
// in pieces, each when the first put from it is sent, so that no put waits for all of a large
// array. Registered memory is deregistered before the loan ends, and so before the memory can be
// freed: a NIC never has a key of pages that it should not see any more.
//
// Thread rule: that of the link.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "transport/link.h"
#include "transport/rdma/verbs.h"

namespace jaxcoll {

class RdmaLoan final : public Link::Loan {
 public:
  class Lender {  // the link; it may be gone before its loans
   public:
    virtual ~Lender() = default;
    virtual void OnReturn(RdmaLoan& loan) = 0;
  };

  RdmaLoan(Lender* lender, std::span<const std::byte> buffer, size_t rail_count)
      : lender_(lender), buffer_(buffer), pieces_(rail_count) {}
  ~RdmaLoan() override {
    if (lender_ != nullptr) lender_->OnReturn(*this);
  }

  bool Contains(std::span<const std::byte> bytes) const {
    return bytes.data() >= buffer_.data() &&
           bytes.data() + bytes.size() <= buffer_.data() + buffer_.size();
  }
  // Processors cannot read it.
  bool of_device() const { return of_device_; }

  // The key by which that rail's NIC reads these bytes of the buffer, or why there is none.
  StatusOr<uint32_t> KeyFor(size_t rail, const verbs::Domain& domain,
                            std::span<const std::byte> bytes);
  // All of it, in a dma-buf.
  Status RegisterDmabuf(size_t rail, const verbs::Domain& domain, int fd, uint64_t offset);

  // The link's: no NIC reads it from here on. `forked`: it is the parent's affair.
  void Revoke(bool forked);

 private:
  // At least; registering one takes a fraction of a millisecond.
  static constexpr size_t kPieceBytes = size_t{4} << 20;

  struct Piece {
    std::span<const std::byte> bytes;
    std::unique_ptr<verbs::Region> region;
  };

  Lender* lender_;
  const std::span<const std::byte> buffer_;
  bool of_device_ = false;
  std::vector<std::vector<Piece>> pieces_;  // by rail
};

// Puts from loans, by their numbers in the link, until their tokens have been reported.
class LentPuts {
 public:
  void Add(uint64_t put, uint64_t token, size_t parts) { puts_[put] = {token, parts}; }
  // One more of its parts has been sent and does not need its source any more.
  void Released(uint64_t put);
  // Drops the token, which will not be reported; returns the put, if it was still in flight, or 0.
  uint64_t Forget(uint64_t token);
  bool HasSent() const { return !sent_tokens_.empty(); }
  uint64_t TakeSent();

 private:
  struct Put {
    uint64_t token;
    size_t parts;  // whose sources are still needed
  };
  std::map<uint64_t, Put> puts_;
  std::deque<uint64_t> sent_tokens_;
};

}  // namespace jaxcoll
