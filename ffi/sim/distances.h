// Distances, counted in links, from the nodes that forward to one of them.
//
// A search starts at the node aimed at and goes backwards, a level at a time, only as far as it is
// asked: neighbours on a ring of a hundred thousand hosts cost a step each. It keeps nodes that
// forward and no others, since every path between two endpoints runs over those. Nodes that no
// path of forwarding nodes joins are in different parts; a search stays in its part, so that a
// server's own switch costs one entry, whatever the size of the network.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sim/network.h"

namespace jaxcoll::sim {

// The nodes that forward, in parts, and the links between them. Links that have failed are in it.
struct Fabric {
  explicit Fabric(const Network& network);

  std::vector<int32_t> part;       // by node; -1: does not forward
  std::vector<int32_t> place;      // by node: its number within its part
  std::vector<int32_t> part_size;  // by part
  Adjacency in;                    // by node: links to it from nodes that forward
  Adjacency out;                   // by node: links from it to nodes that forward
};

// The distances to one node. Its search goes on where it stopped.
class Field {
 public:
  static constexpr int32_t kUnknown = 0x3fffffff;

  Field(const Network& network, const Fabric& fabric, int32_t root);

  // The distance from a node of the root's part; kUnknown where it is more than `most`, or where no
  // working path leads to the root.
  int32_t At(int32_t node, int32_t most);
  // As far as it has been found. All distances below one that was found are found, too.
  int32_t Known(int32_t node) const;
  int32_t root() const { return root_; }
  size_t bytes() const;

 private:
  bool Enter(int32_t node, int32_t distance);
  void Expand();
  void GrowTable();

  const Network& network_;
  const Fabric& fabric_;
  const int32_t root_;
  int32_t level_ = 0;  // complete up to here
  std::vector<int32_t> frontier_;
  // By place. A table with open addressing while few are known, then an entry for each.
  std::vector<std::pair<int32_t, int32_t>> table_;
  size_t entries_ = 0;
  std::vector<int32_t> all_;
};

// Fields that are kept, up to a budget of memory; what is forgotten is found again. Which one goes
// is drawn: of a cycle that does not fit, most stays, where forgetting the oldest would keep none.
class FieldCache {
 public:
  FieldCache(const Network& network, const Fabric& fabric, size_t most_bytes)
      : network_(network), fabric_(fabric), most_bytes_(most_bytes) {}

  std::shared_ptr<Field> Of(int32_t root);
  // A field that has been searched may have grown.
  void Account(const Field& field);
  void Clear();
  size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::shared_ptr<Field> field;
    size_t bytes = 0;
    size_t place = 0;  // in roots_
  };
  void ForgetOne();

  const Network& network_;
  const Fabric& fabric_;
  const size_t most_bytes_;
  size_t bytes_ = 0;
  uint64_t draws_ = 0;
  std::unordered_map<int32_t, Entry> entries_;
  std::vector<int32_t> roots_;
};

}  // namespace jaxcoll::sim
