// The bytes that each link carried, and the proof that none was lost or made up.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "sim/router.h"

namespace jaxcoll::sim {

class Ledger {
 public:
  explicit Ledger(const Network& network);

  // Enters `bytes` that went from `source` to `destination` along `route`. Where a node splits its
  // traffic, every next link gets a whole number of bytes, and together they get all.
  void Enter(const Route& route, int32_t source, int32_t destination, int64_t bytes);
  // From `now` on the link's capacity is another.
  void ChangeCapacity(int32_t link, double bytes_per_ps, Time now);

  // The bytes that every node itself sent and got, to compare with what it should have.
  const std::vector<int64_t>& sent() const { return sent_; }
  const std::vector<int64_t>& received() const { return received_; }
  const std::vector<int64_t>& link_bytes() const { return link_bytes_; }

  // Every byte that entered a node and was not for it left it; no link carried more by `now` than
  // its capacity allows.
  Status Check(Time now) const;

 private:
  const Network& network_;
  std::vector<int64_t> link_bytes_, sent_, received_;
  std::vector<int64_t> entries_;   // by link: each may be off by the rounding of a time
  std::vector<double> allowance_;  // by link: capacity * time until `since_`
  std::vector<double> capacity_, top_capacity_;
  std::vector<Time> since_;
  std::vector<int64_t> at_node_;  // scratch
};

}  // namespace jaxcoll::sim
