#include "transport/tcp_socket.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace jaxcoll {
namespace {

std::span<const std::byte> BytesOf(const FrameHeader& header) {
  return std::as_bytes(std::span(&header, 1));
}

iovec Piece(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};  // sendmsg only reads
}

bool WouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS; }

}  // namespace

TcpSocket::TcpSocket(int fd, const FrameRules& rules, std::span<std::byte> window)
    : fd_(fd), rules_(rules), window_(window) {
  Send(rules_.Hello(), {}, 0);
}

size_t TcpSocket::Write(std::span<const iovec> pieces) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces.data());
  message.msg_iovlen = pieces.size();
  while (true) {
    const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<size_t>(sent);
    if (errno == EINTR) continue;
    // Any other error is the end, but of sending only: what the peer sent before can still be read,
    // and reading will find the end, too.
    if (!WouldBlock(errno)) StopSending();
    return 0;
  }
}

bool TcpSocket::Send(const FrameHeader& header, std::span<const std::byte> payload,
                     uint64_t token) {
  return Send(header, payload, token, kMaxCopiedBytes);
}

void TcpSocket::SendCopy(const FrameHeader& header, std::span<const std::byte> payload) {
  Send(header, payload, 0, payload.size());
}

bool TcpSocket::Send(const FrameHeader& header, std::span<const std::byte> payload, uint64_t token,
                     size_t max_copied_bytes) {
  if (broken_) return true;
  size_t sent = 0;
  const size_t total = sizeof(header) + payload.size();
  if (outgoing_.empty()) {
    const std::array pieces = {Piece(BytesOf(header)), Piece(payload)};
    sent = Write(pieces);
    if (sent == total || broken_) return true;
  }
  queued_bytes_ += total - sent;
  outgoing_.push_back({header, payload, {}, true, token, sent});
  Outgoing& frame = outgoing_.back();
  const size_t payload_sent = sent < sizeof(header) ? 0 : sent - sizeof(header);
  if (payload.size() - payload_sent > max_copied_bytes) return false;
  CopyRest(frame);
  return true;
}

// Only the rest is kept: as if the payload had been that, of which nothing is sent.
void TcpSocket::CopyRest(Outgoing& frame) {
  const size_t payload_sent =
      frame.sent < sizeof(FrameHeader) ? 0 : frame.sent - sizeof(FrameHeader);
  const auto rest = frame.payload.subspan(payload_sent);
  frame.copy.assign(rest.begin(), rest.end());
  frame.payload = frame.copy;
  frame.sent -= payload_sent;
  frame.report = false;
}

void TcpSocket::Detach(uint64_t token) {
  for (Outgoing& frame : outgoing_) {
    if (frame.report && frame.token == token) CopyRest(frame);
  }
}

bool TcpSocket::Flush(std::vector<uint64_t>& sent_tokens) {
  bool did_something = false;
  while (!outgoing_.empty()) {
    std::array<iovec, 64> pieces;
    size_t piece_count = 0;
    size_t offered = 0;
    for (const Outgoing& frame : outgoing_) {
      if (piece_count + 2 > pieces.size()) break;
      const size_t header_sent = std::min(frame.sent, sizeof(FrameHeader));
      const auto header = BytesOf(frame.header).subspan(header_sent);
      const auto payload = frame.payload.subspan(frame.sent - header_sent);
      if (!header.empty()) pieces[piece_count++] = Piece(header);
      if (!payload.empty()) pieces[piece_count++] = Piece(payload);
      offered += header.size() + payload.size();
    }
    const size_t taken = Write(std::span(pieces).first(piece_count));
    did_something |= taken > 0;
    if (broken_) break;  // nothing is queued any more
    queued_bytes_ -= taken;
    for (size_t left = taken; left > 0;) {
      Outgoing& frame = outgoing_.front();
      const size_t missing = sizeof(FrameHeader) + frame.payload.size() - frame.sent;
      if (left < missing) {
        frame.sent += left;
        break;
      }
      left -= missing;
      if (frame.report) sent_tokens.push_back(frame.token);
      outgoing_.pop_front();
    }
    if (taken < offered) break;
  }
  return did_something;
}

size_t TcpSocket::Read() {
  std::array<iovec, 2> pieces;
  size_t piece_count = 0;
  if (target_) {
    pieces[piece_count++] = {target_->data(), target_->size()};  // the buffer is empty now
  } else {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  }
  end_ -= begin_;
  begin_ = 0;
  pieces[piece_count++] = {buffer_.data() + end_, buffer_.size() - end_};

  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = piece_count;
  while (true) {
    const ssize_t received = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT);
    if (received < 0 && errno == EINTR) continue;
    if (received < 0 && WouldBlock(errno)) return 0;
    if (received <= 0) {
      ended_ = true;
      end_errno_ = received < 0 ? errno : 0;
      StopSending();
      return 0;
    }
    auto count = static_cast<size_t>(received);
    if (target_) {
      const size_t direct = std::min(count, target_->size());
      target_ = target_->subspan(direct);
      count -= direct;
    }
    end_ += count;
    return static_cast<size_t>(received);
  }
}

bool TcpSocket::Receive(LinkSink& sink, int peer, int& budget) {
  bool did_something = false;
  size_t received = 0;
  while (violation_.empty()) {
    // All that the buffer holds, before the next system call.
    while (budget > 0) {
      if (!target_) {
        if (end_ - begin_ < sizeof(FrameHeader)) break;
        std::memcpy(&header_, buffer_.data() + begin_, sizeof(FrameHeader));
        violation_ = rules_.Violation(header_);
        if (!violation_.empty()) return true;
        begin_ += sizeof(FrameHeader);
        if (header_.kind == FrameKind::kTell) {
          message_.resize(header_.bytes);
          target_ = std::as_writable_bytes(std::span(message_));
        } else if (header_.kind == FrameKind::kPut) {
          target_ = window_.subspan(header_.offset, header_.bytes);
        } else {
          target_ = std::span<std::byte>();
        }
      }
      const size_t count = std::min(target_->size(), end_ - begin_);
      if (count > 0) std::memcpy(target_->data(), buffer_.data() + begin_, count);
      begin_ += count;
      target_ = target_->subspan(count);
      if (!target_->empty()) break;
      target_.reset();
      did_something = true;
      if (header_.kind != FrameKind::kHello) --budget;
      Deliver(sink, peer);
    }
    if (ended_ || budget <= 0 || received >= kMaxBytesPerReceive) break;
    const size_t count = Read();
    if (count == 0) break;
    received += count;
    did_something = true;
  }
  return did_something;
}

void TcpSocket::Deliver(LinkSink& sink, int peer) {
  switch (header_.kind) {
    case FrameKind::kHello:
      rules_.greeted = true;
      break;
    case FrameKind::kPut:
      sink.OnNotice(peer, header_.notice);
      break;
    case FrameKind::kTell:
      sink.OnTold(peer, message_);
      break;
  }
}

void TcpSocket::StopSending() {
  broken_ = true;
  outgoing_.clear();
  queued_bytes_ = 0;
}

void TcpSocket::Shutdown() {
  ::shutdown(fd_.get(), SHUT_WR);
  for (int i = 0; i < 64; ++i) {
    if (::recv(fd_.get(), nullptr, size_t{1} << 20, MSG_DONTWAIT | MSG_TRUNC) <= 0) break;
  }
}

}  // namespace jaxcoll
