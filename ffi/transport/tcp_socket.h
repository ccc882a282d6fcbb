// One stream socket of a tcp link: frames out, frames in.
//
// Out: a frame is offered to the kernel at once, and what it does not take waits here, the payload
// where it lies. In: the payload goes from the kernel to its place without a copy of ours; headers
// come through a small buffer, many at a time.
//
// Thread rule: that of the link. Nothing here blocks.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/fd.h"
#include "transport/link.h"
#include "transport/tcp_frame.h"

namespace jaxcoll {

class TcpSocket {
 public:
  TcpSocket(int fd, const FrameRules& rules, std::span<std::byte> window);

  // Sends what the kernel takes. True if `payload` may be reused at once; else Flush will say.
  bool Send(const FrameHeader& header, std::span<const std::byte> payload, uint64_t token);
  // As Send, of a payload that is free afterwards.
  void SendCopy(const FrameHeader& header, std::span<const std::byte> payload);
  // Copies the rest of the payload of the frame with this token, if it waits here.
  void Detach(uint64_t token);
  // Sends more of what waits. Tokens of frames that are through, and that Send did not settle, are
  // appended to `sent`. Returns whether anything moved.
  bool Flush(std::vector<uint64_t>& sent);
  size_t queued_bytes() const { return queued_bytes_; }

  // Receives at most `budget` frames, and reduces it by their number; about kMaxBytesPerReceive.
  // Returns whether anything came. `peer` is passed on to the sink, which may call Send.
  bool Receive(LinkSink& sink, int peer, int& budget);
  // A frame is known to lie in the buffer: no descriptor will announce it.
  bool HasUnread() const { return !target_ && end_ - begin_ >= sizeof(FrameHeader); }

  int fd() const { return fd_.get(); }
  bool ended() const { return ended_; }         // and all that came before is delivered
  int end_errno() const { return end_errno_; }  // 0: closed in order
  const std::string& violation() const { return violation_; }  // empty: none so far
  void StopSending();                                          // what is queued is dropped
  // Sends the end. Discards what has come: a socket closed with unread bytes resets the connection,
  // and what the kernel has yet to send would be lost.
  void Shutdown();

 private:
  static constexpr size_t kMaxBytesPerReceive = size_t{4} << 20;  // then it is another link's turn
  // Small: of a payload that follows a header, this much is copied.
  static constexpr size_t kBufferBytes = 8192;
  static constexpr size_t kMaxCopiedBytes = 4096;  // a smaller rest is copied: the source is free

  struct Outgoing {
    FrameHeader header;
    std::span<const std::byte> payload;
    std::vector<std::byte> copy;  // what payload lies in, or empty
    bool report;                  // the token, once sent
    uint64_t token;
    size_t sent = 0;  // of header and payload
  };

  bool Send(const FrameHeader& header, std::span<const std::byte> payload, uint64_t token,
            size_t max_copied_bytes);
  static void CopyRest(Outgoing& frame);
  // Returns what the kernel took; 0 if it is full or the socket broken.
  size_t Write(std::span<const iovec> pieces);
  // Reads once. Returns the bytes that came; 0 if none.
  size_t Read();
  void Deliver(LinkSink& sink, int peer);

  const Fd fd_;
  FrameRules rules_;
  const std::span<std::byte> window_;

  std::deque<Outgoing> outgoing_;
  size_t queued_bytes_ = 0;
  bool broken_ = false;  // for sending; what came before is still to be read

  // Of the frame whose payload is coming in; `target_` is unset while a header is.
  FrameHeader header_{};
  std::optional<std::span<std::byte>> target_;  // what is missing of it
  std::string message_;                         // the target, for what is told
  std::array<std::byte, kBufferBytes> buffer_;  // [begin_, end_): read, not yet looked at
  size_t begin_ = 0;
  size_t end_ = 0;
  bool ended_ = false;
  int end_errno_ = 0;
  std::string violation_;
};

}  // namespace jaxcoll
