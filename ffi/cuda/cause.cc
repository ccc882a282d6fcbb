#include "cuda/cause.h"

#include <cstdio>

namespace jaxcoll::cuda {

std::string Describe(const CauseRecord& cause, const std::vector<std::string>& members,
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
    case CauseRecord::kDeadline:
      std::snprintf(text, sizeof(text),
                    " for %g s (JAXCOLL_TIMEOUT_S); it was at step %u of this call site, %u "
                    "expected",
                    timeout_s, cause.seen_count, cause.expected_count);
      return head + "waited for " + member(cause.peer) + text;
    case CauseRecord::kMismatch:
      std::snprintf(text, sizeof(text), " (fingerprints %08x and %08x)", cause.expected_fingerprint,
                    cause.seen_fingerprint);
      return head + "met " + member(cause.peer) +
             " at another call: shapes, dtypes or ops differ between the ranks, or they run "
             "different programs" +
             text;
    case CauseRecord::kMoved:
      return head + "runs as partition " + std::to_string(cause.entry) +
             ": this program was lowered for a mesh of the same shape with its devices in another "
             "order; call jax.clear_caches(), or pass jax.shard_map its mesh";
    case CauseRecord::kRaggedRows:
      return head + "gets from " + member(cause.peer) + ", entry " + std::to_string(cause.entry) +
             ", " + rows("an operand or output");
    case CauseRecord::kRaggedSizes:
      return head + "expects " + std::to_string(cause.total) + " rows in recv_sizes where " +
             member(cause.peer) + " sends " + std::to_string(cause.rows) + ", entry " +
             std::to_string(cause.entry) + " of its send_sizes";
    default:
      return head + "stopped";
  }
}

}  // namespace jaxcoll::cuda
