// One stream socket of a tcp link: frames out, frames in (frame.h).
//
// Sending: frames are queued, with their payload in place. The next write to the kernel is a batch:
// heads of frames, then a piece of a large payload. It is sealed when it is assembled, in the order
// of sending. Without encryption a piece is sent in place; otherwise from a buffer here, since a
// source is never modified. In: pieces go from the kernel to their place without a copy of ours,
// and are checked, or decrypted, there; heads come through a small buffer, many at a time.
//
// Thread rule: that of the link. Nothing here blocks.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transport/fd.h"
#include "transport/link.h"
#include "transport/tcp/frame.h"
#include "transport/tcp/seal.h"

namespace jaxcoll {

class TcpSocket {
 public:
  // Takes over the descriptor, unless it fails: where there is no libcrypto.
  static StatusOr<std::unique_ptr<TcpSocket>> Make(Fd& fd, const FrameRules& rules,
                                                   std::span<std::byte> window,
                                                   const TcpSecurity& security);

  // Sends what the kernel takes. True if `payload` may be reused at once; else Flush will say.
  bool Send(const FrameHeader& header, std::span<const std::byte> payload, uint64_t token);
  // As Send, of a payload that is free afterwards.
  void SendCopy(const FrameHeader& header, std::span<const std::byte> payload);
  // Copies the rest of the payload of the frame with this token, if it waits here.
  void Detach(uint64_t token);
  // Sends more of what waits. Tokens of frames that have been sent, and that Send did not settle,
  // are appended to `sent`. Returns whether anything moved.
  bool Flush(std::vector<uint64_t>& sent);
  size_t queued_bytes() const { return waiting_bytes_ + batch_.size(); }
  uint64_t puts_queued() const { return puts_queued_; }  // in all, sent or not

  // Receives at most `budget` frames, and reduces it by their number; about kMaxBytesPerReceive.
  // Returns whether anything came. `peer` is passed on to the sink, which may call Send.
  bool Receive(LinkSink& sink, int peer, int& budget);
  // The buffer contains a frame, which no descriptor will announce.
  bool HasUnread() const;
  uint64_t puts_received() const { return puts_received_; }
  // The peer's last report of how many puts it had sent on all sockets of the link.
  uint64_t puts_told() const { return puts_told_; }

  int fd() const { return fd_.get(); }
  bool ended() const { return ended_; }         // and all that came before is delivered
  int end_errno() const { return end_errno_; }  // 0: closed in order
  // The stream has ended within a frame: where. Else empty.
  std::string cut() const;
  // The link must end: data was altered or invalid, or the peer ended it. `Trouble` has the reason.
  bool has_trouble() const {
    return farewell_ || !failed_check_.empty() || !violation_.empty() || !crypto_trouble_.empty();
  }
  Status Trouble(int peer, const std::string& description) const;
  void StopSending();  // what is queued is dropped
  // Drops queued data and sends the peer the reason for the end, if the stream still permits it.
  bool SayEnd(std::string_view why);
  // Sends the end. Discards what has come: a socket closed with unread bytes resets the connection,
  // and what the kernel has yet to send would be lost.
  void Shutdown();

 private:
  static constexpr size_t kMaxBytesPerReceive = size_t{4} << 20;  // then it is another link's turn
  // Small: of a payload that follows a header, this much is copied.
  static constexpr size_t kBufferBytes = 8192;
  static constexpr size_t kMaxCopiedBytes = 4096;  // a smaller rest is copied: the source is free
  static constexpr size_t kMaxHeadsBytes = size_t{32} << 10;  // heads that go by one system call
  static constexpr size_t kPiecesPerRead = 4;
  static_assert(sizeof(HeadSize) + kHeadBytesMax + crypto::kTagBytes <= kBufferBytes);

  // A frame that has not been sealed as a whole.
  struct Waiting {
    FrameHeader header;
    std::span<const std::byte> payload;  // what is not sealed
    std::vector<std::byte> copy;         // the buffer of `payload`, or empty
    bool report;                         // the token, once sent
    uint64_t token;
    bool head_sealed = false;
  };
  // The bytes that are sealed and not sent: `heads`, then `piece`, then `tag`; each only the rest.
  struct Batch {
    std::vector<std::byte> memory;  // of heads
    std::span<const std::byte> heads;
    std::span<const std::byte> piece;
    crypto::Tag tag_memory;
    std::span<const std::byte> tag;
    std::vector<std::byte> copy;      // of `piece`, or of the payload that it is from
    bool lent = false;                // `piece` is in the source of `token`
    std::optional<uint64_t> reports;  // the token, once all is sent
    uint64_t token = 0;

    size_t size() const { return heads.size() + piece.size() + tag.size(); }
  };
  // A large payload that is coming in, cut in pieces, each followed by its tag.
  struct Incoming {
    std::span<std::byte> payload;
    size_t stream_bytes = 0;    // of pieces and tags, that have come
    size_t checked_pieces = 0;  // the first ones
    std::array<crypto::Tag, kPiecesPerRead> tags;
  };

  TcpSocket(Fd& fd, const FrameRules& rules, std::span<std::byte> window,
            std::unique_ptr<RecordSeal> out, std::unique_ptr<RecordSeal> in);

  bool Send(const FrameHeader& header, std::span<const std::byte> payload, uint64_t token,
            size_t max_copied_bytes);
  // Seals what goes next. False if nothing waits.
  bool NextBatch();
  bool SealHead(Waiting& frame);
  bool SealPiece(Waiting& frame);
  bool WriteBatch();
  // Writes until the kernel is full or nothing is left; whether anything was taken.
  bool WriteAll(std::vector<uint64_t>* sent);
  void CopyPiece();

  // Reads once. Returns the bytes that came; 0 if none.
  size_t Read();
  // The buffer contains a complete head, or its size is wrong.
  bool HeadWaits() const;
  bool TakeHead(LinkSink& sink, int peer);
  void TakePieces();
  size_t PieceCount() const;
  // Calls `visit` with what is missing of the pieces and tags that there is room for now; it
  // returns whether to go on.
  template <typename Visit>
  void ForEachMissing(const Visit& visit);
  void Deliver(LinkSink& sink, int peer, std::string_view message);
  void FailCheck();
  std::string Name() const;  // the socket, for people: number and addresses

  const Fd fd_;
  FrameRules rules_;
  const std::span<std::byte> window_;
  const std::unique_ptr<RecordSeal> out_;
  const std::unique_ptr<RecordSeal> in_;

  std::deque<Waiting> waiting_;
  Batch batch_;
  std::vector<std::byte> encrypted_;  // a piece
  size_t waiting_bytes_ = 0;          // headers and payloads, without what the batch has
  uint64_t puts_queued_ = 0;
  bool broken_ = false;  // for sending; what came before is still to be read

  FrameHeader header_{};  // of what is coming in
  std::optional<Incoming> incoming_;
  std::string message_;                         // the payload, for messages
  std::array<std::byte, kBufferBytes> buffer_;  // [begin_, end_): read, not yet looked at
  size_t begin_ = 0;
  size_t end_ = 0;
  uint64_t frames_received_ = 0;
  uint64_t puts_received_ = 0;
  uint64_t puts_told_ = 0;
  bool ended_ = false;
  int end_errno_ = 0;
  std::string violation_;       // empty: none so far
  std::string failed_check_;    // which record; empty: none so far
  std::string crypto_trouble_;  // empty: none so far
  std::optional<std::string> farewell_;
};

}  // namespace jaxcoll
