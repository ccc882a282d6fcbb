#include "gpu/abi/cause.h"

#include <cstdio>

#include "gpu/abi/device_table.h"

namespace jaxcoll::cuda {
namespace {

std::string TagText(uint64_t tag) {
  return std::to_string(tag >> 32) + "." + std::to_string(tag & 0xffffffffu);
}

// Where a message stands in a schedule, for a reader of the schedule.
std::string WhereInSchedule(const Cause& cause) {
  return " (channel " + std::to_string(cause.channel) + ", message " +
         std::to_string(cause.sequence) + ", slice " + std::to_string(cause.slice) + ", op " +
         std::to_string(cause.op) + ", wants " + TagText(cause.expected) + ", sees " +
         TagText(cause.seen) + ")";
}

}  // namespace

std::string Describe(const Cause& cause, const std::vector<std::string>& members,
                     const std::string& call, double timeout_s) {
  const auto member = [&](int rank) {
    return rank >= 0 && rank < static_cast<int>(members.size()) ? members[rank]
                                                                : "rank " + std::to_string(rank);
  };
  const auto rows = [&](const char* of) {
    return "rows [" + std::to_string(cause.first) + ", " +
           std::to_string(cause.first + cause.rows) + ") of " + of + " of " +
           std::to_string(cause.total) + " rows";
  };
  char text[160];
  const std::string head = call + ": " + member(cause.rank) + " ";
  switch (cause.kind) {
    case Cause::kDeadline:
      std::snprintf(text, sizeof(text), " for %g s (JAXCOLL_TIMEOUT_S)", timeout_s);
      switch (cause.wait) {
        case TableWait::kArrived:
          return head + "waited for a message from " + member(cause.peer) + text +
                 WhereInSchedule(cause);
        case TableWait::kFree:
          return head + "waited for room for a message to " + member(cause.peer) + text +
                 WhereInSchedule(cause);
        case TableWait::kWorker:
        case TableWait::kWorkerSlice:
          return head + "waited for its own worker " + std::to_string(cause.peer) + text +
                 WhereInSchedule(cause);
        case TableWait::kBegun:
          return head + "waited for " + member(cause.peer) + " to begin this call" + text;
        case TableWait::kDone:
          return head + "waited for " + member(cause.peer) + " to end its part of a call" + text;
        default:
          return head + "waited for " + member(cause.peer) + text + "; it was at step " +
                 std::to_string(cause.seen) + " of this call site, " +
                 std::to_string(cause.expected) + " expected";
      }
    case Cause::kMismatch:
      std::snprintf(text, sizeof(text), " (fingerprints %08llx and %08llx)",
                    static_cast<unsigned long long>(cause.expected_fingerprint),
                    static_cast<unsigned long long>(cause.seen_fingerprint));
      return head + "met " + member(cause.peer) +
             " at another call: shapes, dtypes or ops differ between the ranks, or they run "
             "different programs" +
             text;
    case Cause::kLaunch:
      return head + "met " + member(cause.peer) +
             " at another launch of this call: one of them has made a call that the other has not" +
             (cause.wait == TableWait::kBegun ? "" : WhereInSchedule(cause));
    case Cause::kMoved:
      return head + "runs as partition " + std::to_string(cause.entry) +
             ": this program was lowered for a mesh of the same shape with its devices in another "
             "order; call jax.clear_caches(), or pass jax.shard_map its mesh";
    case Cause::kRaggedRows:
      return head + "gets from " + member(cause.peer) + ", entry " + std::to_string(cause.entry) +
             ", " + rows("an operand or output");
    case Cause::kRaggedSizes:
      return head + "expects " + std::to_string(cause.total) + " rows in recv_sizes where " +
             member(cause.peer) + " sends " + std::to_string(cause.rows) + ", entry " +
             std::to_string(cause.entry) + " of its send_sizes";
    default:
      return head + "stopped";
  }
}

}  // namespace jaxcoll::cuda
