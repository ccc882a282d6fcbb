#include "sim/distances.h"

#include <algorithm>
#include <numeric>

namespace jaxcoll::sim {
namespace {

constexpr int32_t kEmpty = -1;
// Below this size of a part, an entry for each node is as small as a table.
constexpr int32_t kSmallPart = 64;
// A field takes about this beside its entries, with its place in the cache.
constexpr size_t kFieldBytes = sizeof(Field) + 96;

int32_t Top(std::vector<int32_t>& parent, int32_t node) {
  while (parent[node] != node) node = parent[node] = parent[parent[node]];
  return node;
}

size_t Slot(int32_t place, size_t mask) {
  return (static_cast<uint32_t>(place) * 0x9e3779b97f4a7c15u >> 20) & mask;
}

}  // namespace

Fabric::Fabric(const Network& network)
    : part(network.node_names.size(), -1), place(network.node_names.size(), 0) {
  const int32_t nodes = network.node_count();
  std::vector<int32_t> parent(nodes);
  std::iota(parent.begin(), parent.end(), 0);
  for (const NetworkLink& link : network.links) {
    if (!network.forwards[link.from] || !network.forwards[link.to]) continue;
    parent[Top(parent, link.from)] = Top(parent, link.to);
  }
  for (int32_t node = 0; node < nodes; ++node) {
    if (!network.forwards[node]) continue;
    const int32_t top = Top(parent, node);
    if (part[top] < 0) {
      part[top] = static_cast<int32_t>(part_size.size());
      part_size.push_back(0);
    }
    part[node] = part[top];
    place[node] = part_size[part[node]]++;
  }
  in = LinksIn(network, [&](const NetworkLink& link) { return network.forwards[link.from] != 0; });
  out = LinksOut(network, [&](const NetworkLink& link) { return network.forwards[link.to] != 0; });
}

Field::Field(const Network& network, const Fabric& fabric, int32_t root)
    : network_(network), fabric_(fabric), root_(root), frontier_{root} {
  const int32_t size = fabric.part_size[fabric.part[root]];
  if (size <= kSmallPart) {
    all_.assign(size, kUnknown);
  } else {
    table_.assign(16, {kEmpty, 0});
  }
  Enter(root, 0);
}

int32_t Field::Known(int32_t node) const {
  const int32_t place = fabric_.place[node];
  if (!all_.empty()) return all_[place];
  const size_t mask = table_.size() - 1;
  for (size_t slot = Slot(place, mask);; slot = (slot + 1) & mask) {
    if (table_[slot].first == place) return table_[slot].second;
    if (table_[slot].first == kEmpty) return kUnknown;
  }
}

int32_t Field::At(int32_t node, int32_t most) {
  int32_t known = Known(node);
  while (known == kUnknown && level_ < most && !frontier_.empty()) {
    Expand();
    known = Known(node);
  }
  return known <= most ? known : kUnknown;
}

bool Field::Enter(int32_t node, int32_t distance) {
  const int32_t place = fabric_.place[node];
  if (all_.empty() && 2 * (entries_ + 1) > table_.size()) GrowTable();
  if (!all_.empty()) {
    if (all_[place] != kUnknown) return false;
    all_[place] = distance;
    return true;
  }
  const size_t mask = table_.size() - 1;
  size_t slot = Slot(place, mask);
  while (table_[slot].first != kEmpty) {
    if (table_[slot].first == place) return false;
    slot = (slot + 1) & mask;
  }
  table_[slot] = {place, distance};
  ++entries_;
  return true;
}

void Field::GrowTable() {
  const auto size = static_cast<size_t>(fabric_.part_size[fabric_.part[root_]]);
  const auto known = std::exchange(table_, {});
  if (known.size() * 2 * sizeof(known[0]) >= size * sizeof(int32_t)) {
    all_.assign(size, kUnknown);
    for (const auto& [place, distance] : known) {
      if (place != kEmpty) all_[place] = distance;
    }
    return;
  }
  table_.assign(known.size() * 2, {kEmpty, 0});
  const size_t mask = table_.size() - 1;
  for (const auto& entry : known) {
    if (entry.first == kEmpty) continue;
    size_t slot = Slot(entry.first, mask);
    while (table_[slot].first != kEmpty) slot = (slot + 1) & mask;
    table_[slot] = entry;
  }
}

void Field::Expand() {
  std::vector<int32_t> next;
  ++level_;
  for (int32_t node : frontier_) {
    for (const int32_t* link = fabric_.in.First(node); link != fabric_.in.Last(node); ++link) {
      if (network_.links[*link].bytes_per_ps <= 0) continue;
      const int32_t from = network_.links[*link].from;
      if (Enter(from, level_)) next.push_back(from);
    }
  }
  frontier_.swap(next);
}

size_t Field::bytes() const {
  return kFieldBytes + table_.capacity() * sizeof(table_[0]) +
         (all_.capacity() + frontier_.capacity()) * sizeof(int32_t);
}

std::shared_ptr<Field> FieldCache::Of(int32_t root) {
  if (auto known = entries_.find(root); known != entries_.end()) return known->second.field;
  while (bytes_ > most_bytes_ && !roots_.empty()) ForgetOne();
  auto field = std::make_shared<Field>(network_, fabric_, root);
  entries_[root] = {field, field->bytes(), roots_.size()};
  roots_.push_back(root);
  bytes_ += field->bytes();
  return field;
}

void FieldCache::Account(const Field& field) {
  const auto known = entries_.find(field.root());
  if (known == entries_.end() || known->second.field.get() != &field) return;
  bytes_ += field.bytes() - known->second.bytes;
  known->second.bytes = field.bytes();
}

void FieldCache::ForgetOne() {
  const size_t place = Mix(draws_++, 0) % roots_.size();
  const auto entry = entries_.find(roots_[place]);
  bytes_ -= entry->second.bytes;
  roots_[place] = roots_.back();
  entries_[roots_[place]].place = place;
  roots_.pop_back();
  entries_.erase(entry);
}

void FieldCache::Clear() {
  entries_.clear();
  roots_.clear();
  bytes_ = 0;
}

}  // namespace jaxcoll::sim
