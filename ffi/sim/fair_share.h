// Max-min fair rates of flows over links, kept up to date as flows come and go (Bertsekas and
// Gallager, "Data Networks", 1992, section 6.5: progressive filling).
//
// Only flows that can change are updated. A link on which all flows together could never exceed its
// capacity (each runs at most at the capacity of its own route) constrains no flow and is skipped;
// a change propagates from flow to flow only over the other, contended links. In a ring without
// collisions no link is contended, and a change costs the length of a route.
//
// Slow flows do not change when a fast one ends, either. Filling raises all flows together and
// stops those on the link that is full first. None of a flow's links is full below the level at
// which the flow stops, so removing it changes nothing below that level. A new flow changes nothing
// below the level at which a link of its route can be full. Flows that stopped below this floor
// keep their rates, and only the others are filled again.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "sim/router.h"

namespace jaxcoll::sim {

class FairShare {
 public:
  explicit FairShare(const Network& network);

  // `hops` must outlive the flow. `limit` is the rate at which the flow would run alone; where
  // flows compete, each rises in proportion to its `pull`.
  int32_t Add(const Hop* hops, int32_t hop_count, double limit, double pull = 1);
  void Remove(int32_t flow);
  // Flows on the link keep their limits: those that a capacity limited are to be added anew.
  void SetCapacity(int32_t link, double bytes_per_ps);

  // Updates the rates. Returns the flows whose rate changed, new ones included, in a fixed order.
  const std::vector<int32_t>& Update();
  double rate(int32_t flow) const { return flows_[flow].rate; }

  // Flows on a link now.
  std::vector<int32_t> FlowsOn(int32_t link) const;

 private:
  struct Flow {
    const Hop* hops = nullptr;
    int32_t hop_count = 0;
    bool alive = false;
    bool filled = false;  // in this update: its rate is final
    uint32_t seen = 0;    // the update that last looked at it
    double limit = 0;
    double pull = 1;
    double last_level = 0;        // at which it has all that it can take
    double rate = -1;             // -1: not known yet
    double exact = -1;            // before rounding
    std::vector<int32_t> places;  // by hop: where the link's list has it
  };
  struct OnLink {
    int32_t flow;
    int32_t hop;
  };
  struct LinkState {
    double capacity = 0;
    double demand = 0;       // sum of weight * limit of its flows
    bool contended = false;  // as of the last update
    bool touched = false;
    uint32_t seen = 0;
    // While rates are filled in: of the flows that are not filled yet.
    double left = 0, weight = 0;
    double counted_weight = 0;  // when `weight` was last summed up
    int32_t unfilled = 0;
    std::vector<OnLink> flows;
  };

  void Touch(int32_t link);
  double FullFrom(const LinkState& link) const;
  bool Stays(const Flow& flow) const { return flow.exact > 0 && flow.exact < floor_ * flow.pull; }
  void Visit(int32_t link);
  void Count(LinkState& link) const;
  double Level(const LinkState& link) const;
  void Fill();
  void Freeze(int32_t flow, double rate);

  std::vector<LinkState> links_;
  std::vector<Flow> flows_;
  std::vector<int32_t> free_;
  std::vector<int32_t> touched_, added_;
  uint32_t update_ = 0;
  // The lowest level of the changes since the last update: flows that stopped below it stay.
  double floor_ = kInfinity;
  double level_ = 0;  // that filling has reached
  std::vector<int32_t> component_links_, component_flows_, changed_;
  std::vector<std::pair<double, int32_t>> heap_;         // contended links, by the level of each
  std::vector<std::pair<double, int32_t>> last_levels_;  // flows, by theirs
};

}  // namespace jaxcoll::sim
