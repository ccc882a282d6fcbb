// The bytes that each link carried, and the check that none was lost or invented.
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
  // traffic, every next link gets a whole number of bytes, and their sum is the total.
  void Enter(const Route& route, int32_t source, int32_t destination, int64_t bytes);
  // Changes the link's capacity from `now` on.
  void ChangeCapacity(int32_t link, double bytes_per_ps, Time now);

  // The bytes that every node itself sent and received, to compare with the expected ones.
  const std::vector<int64_t>& sent() const { return sent_; }
  const std::vector<int64_t>& received() const { return received_; }
  const std::vector<int64_t>& link_bytes() const { return link_bytes_; }

  // Checks that every byte that entered a node and was not for it left it, and that no link carried
  // more by `now` than its capacity allows.
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
