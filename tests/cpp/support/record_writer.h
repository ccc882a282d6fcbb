// What a peer would send over one socket, byte by byte, also if it were broken or meant harm.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/link_pair.h"
#include "transport/tcp/frame.h"
#include "transport/tcp/seal.h"

namespace jaxcoll {

class RecordWriter {
 public:
  RecordWriter(LinkKind kind, bool client, uint64_t socket_index = 0)
      : RecordWriter(TestSecurity(kind, client), socket_index) {}
  RecordWriter(const TcpSecurity& security, uint64_t socket_index) {
    auto seal = RecordSeal::Make(security, socket_index, /*sends=*/true);
    EXPECT_TRUE(seal.ok()) << seal.status().message();
    seal_ = std::move(*seal);
  }

  // The records of a frame. `payload` need not be what the header says.
  std::string Frame(const FrameHeader& header, std::string_view payload = "") {
    std::string head(reinterpret_cast<const char*>(&header), sizeof(header));
    if (payload.size() <= kJoinedBytes) head += std::exchange(payload, "");
    const HeadSize size = WriteHeadSize(head.size());
    std::string bytes = Record(
        std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + head, sizeof(size));
    while (!payload.empty()) {
      const size_t count = std::min<size_t>(payload.size(), seal_->piece_bytes());
      bytes += Record(std::string(payload.substr(0, count)), 0);
      payload.remove_prefix(count);
    }
    return bytes;
  }
  // A frame of zeros as long as the header says, if it can be.
  std::string Whole(const FrameHeader& header, char fill = 0) {
    const uint64_t most = std::max<uint64_t>(kMaxTellBytes, uint64_t{1} << 20);
    return Frame(header, std::string(std::min(header.bytes, most), fill));
  }

 private:
  std::string Record(std::string record, size_t clear_bytes) {
    std::string tag(seal_->tag_bytes(), '\0');
    auto* const at = reinterpret_cast<std::byte*>(record.data());
    EXPECT_TRUE(seal_->Seal({at, record.size()}, clear_bytes, at + clear_bytes,
                            reinterpret_cast<std::byte*>(tag.data())));
    return record + tag;
  }

  std::unique_ptr<RecordSeal> seal_;
};

}  // namespace jaxcoll
