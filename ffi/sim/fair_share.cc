#include "sim/fair_share.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace jaxcoll::sim {
namespace {

// Sums of shares such as 1/7 are inexact; a smaller excess is not contention.
constexpr double kSlack = 1 + 1e-9;
// Pulls differ by many orders of magnitude: where a sum has shrunk to this part, what is left of it
// is mostly the rounding of what was taken away, and it is summed up anew.
constexpr double kShrunk = 1e-6;
constexpr int kPasses = 4;  // each raises FullFrom's bound; any number of them is right

// Equal shares must be equal whatever the order of the arithmetic, or flows that end together would
// end in two steps of a picosecond: 40 significant bits are kept.
double Rounded(double rate) {
  constexpr uint64_t kDropped = 12;
  const uint64_t bits = std::bit_cast<uint64_t>(rate) + (uint64_t{1} << (kDropped - 1));
  return std::bit_cast<double>(bits >> kDropped << kDropped);
}

}  // namespace

FairShare::FairShare(const Network& network) : links_(network.links.size()) {
  for (size_t i = 0; i < links_.size(); ++i) links_[i].capacity = network.links[i].bytes_per_ps;
}

void FairShare::Touch(int32_t link) {
  if (links_[link].touched) return;
  links_[link].touched = true;
  touched_.push_back(link);
}

int32_t FairShare::Add(const Hop* hops, int32_t hop_count, double limit, double pull) {
  int32_t id;
  if (free_.empty()) {
    id = static_cast<int32_t>(flows_.size());
    flows_.emplace_back();
  } else {
    id = free_.back();
    free_.pop_back();
  }
  Flow& flow = flows_[id];
  flow.hops = hops;
  flow.hop_count = hop_count;
  flow.limit = limit;
  flow.pull = pull;
  flow.last_level = limit / pull;
  flow.rate = flow.exact = -1;
  flow.alive = flow.filled = true;
  flow.places.resize(hop_count);
  for (int32_t h = 0; h < hop_count; ++h) {
    LinkState& link = links_[hops[h].link];
    flow.places[h] = static_cast<int32_t>(link.flows.size());
    link.flows.push_back({id, h});
    link.demand += hops[h].weight * limit;
    Touch(hops[h].link);
  }
  added_.push_back(id);
  return id;
}

void FairShare::Remove(int32_t id) {
  Flow& flow = flows_[id];
  for (int32_t h = 0; h < flow.hop_count; ++h) {
    LinkState& link = links_[flow.hops[h].link];
    if (link.contended && flow.exact >= 0) floor_ = std::min(floor_, flow.exact / flow.pull);
    const OnLink moved = link.flows.back();
    link.flows[flow.places[h]] = moved;
    flows_[moved.flow].places[moved.hop] = flow.places[h];
    link.flows.pop_back();
    link.demand = link.flows.empty() ? 0 : link.demand - flow.hops[h].weight * flow.limit;
    Touch(flow.hops[h].link);
  }
  flow.alive = false;
  free_.push_back(id);
}

void FairShare::SetCapacity(int32_t link, double bytes_per_ps) {
  links_[link].capacity = bytes_per_ps;
  floor_ = 0;
  Touch(link);
}

std::vector<int32_t> FairShare::FlowsOn(int32_t link) const {
  std::vector<int32_t> flows;
  for (const OnLink& entry : links_[link].flows) flows.push_back(entry.flow);
  return flows;
}

const std::vector<int32_t>& FairShare::Update() {
  ++update_;
  changed_.clear();
  component_links_.clear();
  component_flows_.clear();
  // Where contention was or is, rates may change.
  for (int32_t id : touched_) {
    LinkState& link = links_[id];
    link.touched = false;
    const bool contended = link.demand > link.capacity * kSlack;
    if (link.contended || contended) component_links_.push_back(id);
    link.contended = contended;
    link.seen = 0;
  }
  touched_.clear();
  for (int32_t id : component_links_) {
    links_[id].seen = update_;
    if (links_[id].contended) floor_ = std::min(floor_, FullFrom(links_[id]));
  }
  floor_ /= kSlack;
  for (size_t next = 0; next < component_links_.size(); ++next) Visit(component_links_[next]);
  Fill();
  floor_ = kInfinity;
  for (int32_t id : added_) {  // those that met no contention
    Flow& flow = flows_[id];
    if (!flow.alive || flow.rate >= 0) continue;
    flow.exact = flow.limit;
    flow.rate = Rounded(flow.limit);
    changed_.push_back(id);
  }
  added_.clear();
  return changed_;
}

// A level below which the link cannot be full while no flow has more than it had.
double FairShare::FullFrom(const LinkState& link) const {
  double level = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    double left = link.capacity, weight = 0;
    bool any = false;
    for (const OnLink& entry : link.flows) {
      const Flow& flow = flows_[entry.flow];
      const double share = flow.hops[entry.hop].weight;
      if (flow.exact >= 0 && flow.exact < level * flow.pull) {
        left -= share * flow.exact;
      } else {
        weight += share * flow.pull;
        any = true;
      }
    }
    if (!any || left <= level * weight) break;
    level = left / weight;
  }
  return level;
}

// Takes a link's flows into the component, and the contended links that those use; but not the
// flows that stay as they are.
void FairShare::Visit(int32_t link) {
  for (const OnLink& entry : links_[link].flows) {
    Flow& flow = flows_[entry.flow];
    if (flow.seen == update_ || Stays(flow)) continue;
    flow.seen = update_;
    flow.filled = false;
    component_flows_.push_back(entry.flow);
    for (int32_t h = 0; h < flow.hop_count; ++h) {
      LinkState& other = links_[flow.hops[h].link];
      if (!other.contended || other.seen == update_) continue;
      other.seen = update_;
      component_links_.push_back(flow.hops[h].link);
    }
  }
}

void FairShare::Freeze(int32_t id, double rate) {
  Flow& flow = flows_[id];
  flow.filled = true;
  flow.exact = rate;
  for (int32_t h = 0; h < flow.hop_count; ++h) {
    LinkState& link = links_[flow.hops[h].link];
    if (!link.contended) continue;
    link.left -= flow.hops[h].weight * rate;
    link.weight -= flow.hops[h].weight * flow.pull;
    --link.unfilled;
    if (link.unfilled > 0 && link.weight < kShrunk * link.counted_weight) Count(link);
  }
  rate = Rounded(rate);
  if (rate == flow.rate) return;
  flow.rate = rate;
  changed_.push_back(id);
}

void FairShare::Count(LinkState& link) const {
  link.left = link.capacity;
  link.weight = 0;
  link.unfilled = 0;
  for (const OnLink& entry : link.flows) {
    const Flow& flow = flows_[entry.flow];
    if (flow.seen == update_ && !flow.filled) {
      link.weight += flow.hops[entry.hop].weight * flow.pull;
      ++link.unfilled;
    } else {
      link.left -= flow.hops[entry.hop].weight * flow.exact;
    }
  }
  link.counted_weight = link.weight;
}

// The level at which the link is full. Filling never goes back: a flow that takes nearly all leaves
// a remainder of which each digit is rounding.
double FairShare::Level(const LinkState& link) const {
  return link.unfilled > 0 ? std::max(link.left / link.weight, level_) : level_;
}

void FairShare::Fill() {
  if (component_flows_.empty()) return;
  heap_.clear();
  level_ = 0;
  for (int32_t id : component_links_) {
    LinkState& link = links_[id];
    if (!link.contended) continue;
    Count(link);
    heap_.emplace_back(Level(link), id);
  }
  const auto later = std::greater<>();  // a heap with the lowest level on top
  std::make_heap(heap_.begin(), heap_.end(), later);
  last_levels_.clear();
  for (int32_t id : component_flows_) last_levels_.emplace_back(flows_[id].last_level, id);
  std::sort(last_levels_.begin(), last_levels_.end());
  size_t next = 0;  // among the flows, by that level
  while (true) {
    while (next < last_levels_.size() && flows_[last_levels_[next].second].filled) ++next;
    if (next == last_levels_.size()) return;
    const auto [last_level, first] = last_levels_[next];
    if (heap_.empty() || last_level <= heap_.front().first) {
      level_ = std::max(level_, last_level);
      Freeze(first, flows_[first].limit);
      ++next;
      continue;
    }
    std::pop_heap(heap_.begin(), heap_.end(), later);
    auto [was, id] = heap_.back();
    heap_.pop_back();
    LinkState& link = links_[id];
    if (link.unfilled == 0) continue;
    if (const double now = Level(link); now > was * (1 + 1e-12)) {  // others took less since
      heap_.emplace_back(now, id);
      std::push_heap(heap_.begin(), heap_.end(), later);
      continue;
    }
    level_ = std::max(level_, was);
    for (const OnLink& entry : link.flows) {
      const Flow& flow = flows_[entry.flow];
      if (!flow.filled) Freeze(entry.flow, was * flow.pull);
    }
  }
}

}  // namespace jaxcoll::sim
