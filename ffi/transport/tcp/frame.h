// The format of the stream sockets of a tcp link: frames, each a header and `bytes` of payload.
//
// The first frame of every socket is a hello, which must agree with our own: the same window size,
// the same number of sockets, listed in the same order.
//
// For sending, a frame is cut into records, each with a tag (seal.h) unless the link is plain:
//
//   head    size of what follows up to the tag, never encrypted | header | payload if it has
//           kJoinedBytes at most | tag
//   piece   up to RecordSeal::kPieceBytes of a larger payload | tag
//
// Only the size, which is bounded, is used before a head's tag has been checked. Pieces are
// received at the place that the checked header names, and are checked there before anything is
// delivered: altered bytes land in memory that no thread reads yet.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "transport/link.h"
#include "transport/link_error.h"

namespace jaxcoll {

enum class FrameKind : uint32_t {
  kHello = 1,  // offset: window bytes; notice: index of the socket, number of sockets
  kPut = 2,    // the payload belongs to the window, at `offset`
  kTell = 3,   // on the first socket only, so that there is an order; offset: puts sent so far
  kEnd = 4,    // the sender ends the link, the payload says why; nothing follows
};

struct FrameHeader {
  uint32_t magic;
  FrameKind kind;
  uint64_t bytes;
  uint64_t offset;
  Notice notice;
};
static_assert(sizeof(FrameHeader) == 72, "no padding: it would go over the wire");
static_assert(std::endian::native == std::endian::little, "headers are sent as they lie in memory");

constexpr uint32_t kFrameMagic = 0x314c434a;  // "JCL1"

// A payload up to this size goes with its header: it costs a copy, and saves a record.
constexpr size_t kJoinedBytes = 4096;
constexpr size_t kHeadBytesMax = sizeof(FrameHeader) + kJoinedBytes;

// The size goes twice, the second time inverted: were a bit of it flipped that makes it larger, the
// check of the tag would wait for bytes that do not come.
using HeadSize = uint32_t;
constexpr HeadSize WriteHeadSize(size_t size) {
  return static_cast<HeadSize>(size | (~size & 0xffff) << 16);
}
// 0 if it is none.
constexpr size_t ReadHeadSize(HeadSize written) {
  const size_t size = written & 0xffff;
  const bool right = size >= sizeof(FrameHeader) && size <= kHeadBytesMax;
  return right && WriteHeadSize(size) == written ? size : 0;
}

// The rest of a head whose header says `bytes`.
constexpr size_t JoinedBytes(uint64_t bytes) { return bytes <= kJoinedBytes ? bytes : 0; }

// The state that this side expects on one socket.
struct FrameRules {
  uint64_t window_bytes = 0;
  uint64_t socket_index = 0;
  uint64_t socket_count = 0;
  bool greeted = false;  // the hello has come

  FrameHeader Hello() const {
    return {kFrameMagic, FrameKind::kHello, 0, window_bytes, {socket_index, socket_count}};
  }

  // Empty, or what is wrong with the header. Nothing of a header may be used before this.
  std::string Violation(const FrameHeader& header) const {
    const auto number = [](uint64_t value) { return std::to_string(value); };
    if (header.magic != kFrameMagic) return "a frame starts with " + number(header.magic);
    if ((header.kind == FrameKind::kHello) == greeted) {
      return greeted ? "a second hello" : "its first frame is not a hello";
    }
    switch (header.kind) {
      case FrameKind::kHello: {
        const FrameHeader own = Hello();
        if (std::memcmp(&header, &own, sizeof(own)) == 0) return "";
        return "its hello says: window of " + number(header.offset) + " bytes, socket " +
               number(header.notice[0]) + " of " + number(header.notice[1]) + "; here: window of " +
               number(window_bytes) + " bytes, socket " + number(socket_index) + " of " +
               number(socket_count);
      }
      case FrameKind::kPut:
        if (header.offset <= window_bytes && header.bytes <= window_bytes - header.offset)
          return "";
        return "a put of " + number(header.bytes) + " bytes at " + number(header.offset) +
               " into a window of " + number(window_bytes);
      case FrameKind::kTell:
        if (socket_index != 0) return "a message on socket " + number(socket_index);
        if (header.bytes > kMaxTellBytes) {
          return "a message of " + number(header.bytes) + " bytes";
        }
        return "";
      case FrameKind::kEnd:
        if (header.bytes <= kJoinedBytes) return "";
        return "a reason of " + number(header.bytes) + " bytes";
    }
    return "a frame of kind " + number(static_cast<uint32_t>(header.kind));
  }
};

}  // namespace jaxcoll
