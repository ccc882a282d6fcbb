// The extents of a ragged_all_to_all between processes (engine/ragged.h), as a SliceRun fills and
// uses them. A process counts as one rank of the schedule, and its chunk for another is a stream:
// the blocks that its ranks have for the other's, back to back, in the order sender, receiver,
// update. One process's pair of streams with another is as many messages as of single ranks.
//
// Slices 0 to header_slices() - 1 carry the extents: offset in the output and rows of every
// block of the stream, in pieces of kEagerBytes. The slices behind them carry the stream, in
// pieces of a slot. How many there are, each process knows once its table is complete; a stream
// that is shorter than others has empty pieces at its end.
//
// Thread rule: that of Run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/ragged.h"
#include "engine/slices/run.h"
#include "engine/slices/slice_ops.h"

namespace jaxcoll {

// The ranks of a group and the processes that they live in: known before any call.
class RaggedProcesses {
 public:
  // `process` must have some of the ranks, but not all.
  RaggedProcesses(const RaggedShape& shape, const std::vector<int>& process_of_rank, int process,
                  size_t message_bytes);

  // Compiles the direct all_to_all of the processes, each named by its first rank.
  StatusOr<SliceOps> Ops() const;

  const RaggedShape& shape() const { return shape_; }
  size_t message_bytes() const { return message_bytes_; }  // of the largest piece of a stream
  const std::vector<int32_t>& members() const { return members_; }
  // The ranks of each other process.
  const std::vector<std::vector<int32_t>>& peers() const { return peers_; }
  int32_t PeerOf(int32_t rank) const { return peer_of_rank_[rank]; }  // not of a member
  int64_t world_size() const { return static_cast<int64_t>(of_rank_.size()); }
  int32_t header_slices() const { return header_slices_; }  // equal on all processes
  std::string Describe(const RaggedFault& fault) const { return Text(fault, shape_, of_rank_); }

 private:
  const RaggedShape shape_;
  const size_t message_bytes_;
  std::vector<int32_t> members_;
  std::vector<std::vector<int32_t>> peers_;
  std::vector<int32_t> peer_of_rank_;
  std::vector<std::string> of_rank_;  // " (process 1)"
  std::vector<int32_t> first_ranks_;  // of all processes, in the order of the schedule's ranks
  int32_t index_ = 0;                 // this process in it
  int32_t header_slices_ = 1;
};

// The table of one call. Slices and peers that it is asked for must exist.
class RaggedTable {
 public:
  RaggedTable(const RaggedProcesses& group, const MemberBuffers& buffers);

  // With what this process's ranks know, before the first slice begins.
  std::optional<RaggedFault> FillOwn();
  // Once all headers have come. Then the slices that carry blocks are known, and CopyOwn() must
  // be called: it moves what does not leave the process.
  std::optional<RaggedFault> Complete();
  void CopyOwn() const;

  bool IsHeader(int32_t slice) const { return slice < group_.header_slices(); }
  int32_t slice_count() const { return slice_count_; }  // as far as known
  // As far as the peer's readiness is concerned: it may have all headers before this process has.
  int32_t SlicesTo(int32_t peer) const;
  size_t MessageBytes(int32_t slice, int32_t peer, bool sent) const;
  void Write(int32_t slice, int32_t peer, std::byte* message) const;
  void Take(int32_t slice, int32_t peer, const std::byte* message);

 private:
  // One block of a header, as it travels.
  struct Entry {
    int64_t output_offset;
    int64_t rows;
  };
  struct Stream {
    std::vector<Entry> entries;
    std::vector<size_t> begins = {0};  // of each block in the stream, in bytes; then its end
  };
  struct Peer {
    Stream sent, received;
  };
  // Rows of a member's output and the block that they come from.
  struct Visible {
    int64_t begin, end;
    int64_t block;  // sender * updates per peer + update
  };

  const RaggedShape& shape() const { return group_.shape(); }
  int64_t updates() const { return shape().updates_per_peer; }
  int32_t RowSlices(const Stream& stream) const;
  void Measure(Stream& stream) const;
  void FindVisible();
  // Writes part of a block: `bytes` of it from its byte `first` on.
  void Scatter(size_t member, int64_t block, int64_t output_offset, size_t first,
               const std::byte* from, size_t bytes) const;
  // Calls visit(block of the stream, first byte in the block, bytes) for the piece of the stream
  // that a slice carries.
  template <typename Visit>
  void ForBlocks(const Stream& stream, int32_t slice, const Visit& visit) const;

  const RaggedProcesses& group_;
  std::vector<RaggedRank> ranks_;              // by member
  std::vector<Peer> peers_;                    // as the group's
  std::vector<std::vector<Visible>> visible_;  // by member, in order, disjoint
  int32_t slice_count_;
};

}  // namespace jaxcoll
