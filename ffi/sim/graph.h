// All ranks' programs of one schedule, packed for the simulator: the dependencies, and the bytes
// that every op moves as a function of the block size. About 30 bytes per op, where an OpList takes
// several hundred, so that rings of thousands of ranks fit.
//
// A graph is immutable: several threads may use it at once, for any size, network and seed.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "schedule/schedule.h"
#include "sim/extents.h"

namespace jaxcoll::sim {

class Graph {
 public:
  // Ops are numbered rank after rank, within a rank channel after channel, in program order: a
  // chain is the ops of one rank and channel, which start one after the other.
  struct Node {
    uint32_t chain = 0;
    uint32_t mate = kNone;      // transfers: the op at the other end
    uint32_t extent = 0;        // what it moves, see Bytes
    uint32_t dependencies = 0;  // ops that must complete before it starts
    uint32_t first_dependent = 0;
    uint32_t step : 29 = 0;
    uint32_t kind : 3 = 0;  // OpKind
  };
  struct Chain {
    int32_t rank = 0;
    int32_t channel = 0;
    uint32_t begin = 0, end = 0;
  };
  static constexpr uint32_t kNone = 0xffffffff;

  // `program_of` gives rank r's program; it is called from several threads.
  // Fails where a message has one end only, or its ends differ in length; and where the ranks take
  // more than `most_bytes`: at once if a few of them tell, otherwise when those packed exceed it.
  static StatusOr<Graph> Build(int32_t world_size,
                               const std::function<StatusOr<OpList>(int32_t)>& program_of,
                               uint64_t most_bytes = UINT64_MAX);
  static StatusOr<Graph> Build(const ScheduleSpec& spec, uint64_t most_bytes = UINT64_MAX);

  int32_t world_size() const { return world_size_; }
  uint32_t op_count() const { return static_cast<uint32_t>(nodes_.size()); }
  const Node& node(uint32_t op) const { return nodes_[op]; }
  const std::vector<Chain>& chains() const { return chains_; }
  const Chain& chain_of(uint32_t op) const { return chains_[nodes_[op].chain]; }
  OpKind kind(uint32_t op) const { return static_cast<OpKind>(nodes_[op].kind); }
  std::span<const uint32_t> dependents(uint32_t op) const {
    const uint32_t end =
        op + 1 < op_count() ? nodes_[op + 1].first_dependent : static_cast<uint32_t>(edges_.size());
    return {edges_.data() + nodes_[op].first_dependent, edges_.data() + end};
  }
  // Sources of a reduce; 1 for other ops.
  int32_t arity(uint32_t op) const { return extents_.arity(nodes_[op].extent); }
  int32_t input_blocks() const { return input_blocks_; }
  int32_t output_blocks() const { return output_blocks_; }
  int32_t scratch_blocks() const { return scratch_blocks_; }  // of the rank that has most
  // Memory of the packed form.
  size_t bytes() const;

  // By extent: the bytes it covers in blocks of `block_elements` elements. Chunks are cut at
  // elements, as the engines do.
  std::vector<int64_t> ExtentBytes(int64_t block_elements, int64_t element_bytes) const;

 private:
  friend class GraphBuilder;
  int32_t world_size_ = 0;
  int32_t chunks_per_block_ = 1, input_blocks_ = 1, output_blocks_ = 1, scratch_blocks_ = 0;
  std::vector<Node> nodes_;
  std::vector<uint32_t> edges_;
  std::vector<Chain> chains_;
  ExtentTable extents_;
};

}  // namespace jaxcoll::sim
