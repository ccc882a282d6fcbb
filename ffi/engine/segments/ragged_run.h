// ragged_all_to_all between processes.
//
// Only a sender knows where a block comes from and goes to, and only its receiver how large it may
// be. So a call has three steps, each between all pairs of processes:
//
//   1. A header, in pieces of up to kEagerBytes: offset in the output and rows of every block that
//      one process's ranks have for the other's.
//   2. Who has all headers, and finds that they fit its own tables, is ready for the blocks and
//      tells everyone. Who finds that they do not sends everyone the fault: the call fails on every
//      process, for none has everybody's readiness, and the next call may succeed.
//   3. The blocks, back to back as one stream per pair of processes, cut into messages of a slot;
//      no stream, no message.
//
// A call is done when everyone is ready and every stream has ended, so no process returns a result
// of a call that another one refuses. Nothing is written before step 2 is passed, and every address
// comes from a header that was checked: a peer that lies writes inside the output or not at all.
// Where blocks overlap, the last sender's stands, as within one process, in whatever order they
// come.
//
// Thread rule: that of Run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/segments/ragged.h"
#include "engine/segments/run.h"

namespace jaxcoll {

// The ranks of a group and the processes that they live in.
class RaggedPlan final : public RunPlan, public std::enable_shared_from_this<RaggedPlan> {
 public:
  // `process` must have some of the ranks, but not all.
  RaggedPlan(RaggedShape shape, const std::vector<int>& process_of_rank, int process,
             size_t message_bytes);
  std::unique_ptr<Run> MakeRun(MemberBuffers buffers, Wire& wire) const override;

  const RaggedShape& shape() const { return shape_; }
  size_t message_bytes() const { return message_bytes_; }  // of the largest piece of a stream
  const std::vector<int32_t>& members() const { return members_; }
  // The ranks of each other process.
  const std::vector<std::vector<int32_t>>& peers() const { return peers_; }
  int64_t world_size() const { return static_cast<int64_t>(of_rank_.size()); }
  std::string Describe(const RaggedFault& fault) const { return Text(fault, shape_, of_rank_); }

 private:
  const RaggedShape shape_;
  const size_t message_bytes_;
  std::vector<int32_t> members_;
  std::vector<std::vector<int32_t>> peers_;
  std::vector<std::string> of_rank_;  // " (process 1)"
};

class RaggedRun final : public Run {
 public:
  RaggedRun(std::shared_ptr<const RaggedPlan> plan, const MemberBuffers& buffers, Wire& wire);

  void Begin() override;
  bool done() const override;
  const Status& status() const override { return status_; }

  bool OnReady(const MessageId& id) override;
  Taken OnData(const MessageId& id, const std::byte* message, size_t bytes,
               std::optional<uint64_t> handle) override;
  void OnSent(int32_t segment, int32_t op) override;
  // Headers are small, and nobody is ahead by more than the calls that it has launched.
  bool Hold(int32_t, int32_t) override { return false; }
  bool OnRequest(const MessageId&) override { return false; }

  MessageKey Key(int32_t op) const override;
  size_t MessageBytes(int32_t segment, int32_t op) const override;
  void Write(int32_t segment, int32_t op, std::byte* message) const override;

  std::vector<int32_t> WaitingFor() const override;

 private:
  // What a message is; an op is a peer and one of these.
  enum Part : int32_t { kHeader, kRefusal, kRows, kParts };

  // One block of a header, as it travels.
  struct Entry {
    int64_t output_offset;
    int64_t rows;
  };
  // What goes to, or comes from, one peer: blocks in the order sender, receiver, update.
  struct Stream {
    std::vector<Entry> entries;
    std::vector<size_t> begins;    // of each block in the stream, in bytes; then its end
    std::vector<bool> header_had;  // by piece
    std::vector<bool> rows_had;    // by piece
    int64_t header_left = 0;       // pieces
    int64_t rows_left = 0;
    size_t bytes() const { return begins.empty() ? 0 : begins.back(); }
  };
  struct Peer {
    Stream out, in;
    bool ready = false;         // it has all headers, and waits for its blocks
    bool refusal_left = false;  // has yet to be sent
  };
  // Rows of a member's output and the block that they come from.
  struct Visible {
    int64_t begin, end;
    int64_t block;  // sender * updates per peer + update
  };

  const RaggedShape& shape() const { return plan_->shape(); }
  int64_t updates() const { return shape().updates_per_peer; }
  RaggedRank RankOf(size_t member) const;
  size_t Pieces(const Stream& stream, Part part) const;
  void MeasureRows(Stream& stream);
  std::optional<RaggedFault> CheckOwn() const;
  std::optional<RaggedFault> CheckHeaders() const;
  void Refuse(const RaggedFault& fault);
  void JudgeIfComplete();
  void FindVisible();
  void CopyLocal();
  // Writes part of a block: `bytes` of it from its byte `first` on.
  void Scatter(size_t member, int64_t block, const Entry& entry, size_t first,
               const std::byte* from, size_t bytes) const;
  // Calls visit(block of the stream, first byte in the block, bytes) for a piece of the stream.
  template <typename Visit>
  void ForBlocks(const Stream& stream, int32_t piece, const Visit& visit) const;

  const std::shared_ptr<const RaggedPlan> plan_;
  Wire& wire_;
  std::vector<RaggedRank> ranks_;              // by member
  std::vector<Peer> peers_;                    // as the plan's
  std::vector<std::vector<Visible>> visible_;  // by member, in order, disjoint
  bool ready_ = false;                         // all headers fit
  bool refused_ = false;                       // by a peer
  std::optional<RaggedFault> fault_;
  Status status_;
};

}  // namespace jaxcoll
