#include "transport/tcp/socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "transport/link_error.h"

namespace jaxcoll {
namespace {

iovec Piece(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};  // sendmsg only reads
}

bool WouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS; }

// Removes from the front what has been sent; returns how much is left to be removed elsewhere.
size_t Consume(std::span<const std::byte>& bytes, size_t count) {
  const size_t taken = std::min(count, bytes.size());
  bytes = bytes.subspan(taken);
  return count - taken;
}

// "127.0.0.1:80"; empty for a socket that has no such address.
std::string AddressText(int fd, int (*get)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  char text[INET6_ADDRSTRLEN] = "";
  if (get(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "";
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    return std::string(text) + ":" + std::to_string(ntohs(v4.sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    return "[" + std::string(text) + "]:" + std::to_string(ntohs(v6.sin6_port));
  }
  return "";
}

// A peer's words go into exceptions and logs.
std::string Printable(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c < ' ' || c > '~') c = '?';
  }
  return result;
}

}  // namespace

StatusOr<std::unique_ptr<TcpSocket>> TcpSocket::Make(Fd& fd, const FrameRules& rules,
                                                     std::span<std::byte> window,
                                                     const TcpSecurity& security) {
  auto out = RecordSeal::Make(security, rules.socket_index, /*sends=*/true);
  if (!out.ok()) return out.status();
  auto in = RecordSeal::Make(security, rules.socket_index, /*sends=*/false);
  if (!in.ok()) return in.status();
  return std::unique_ptr<TcpSocket>(
      new TcpSocket(fd, rules, window, std::move(*out), std::move(*in)));
}

TcpSocket::TcpSocket(Fd& fd, const FrameRules& rules, std::span<std::byte> window,
                     std::unique_ptr<RecordSeal> out, std::unique_ptr<RecordSeal> in)
    : fd_(std::move(fd)), rules_(rules), window_(window), out_(std::move(out)), in_(std::move(in)) {
  Send(rules_.Hello(), {}, 0);
}

std::string TcpSocket::Name() const {
  std::string name = "socket " + std::to_string(rules_.socket_index);
  const std::string own = AddressText(fd_.get(), ::getsockname);
  const std::string peer = AddressText(fd_.get(), ::getpeername);
  if (!own.empty() && !peer.empty()) name += " (" + own + " to " + peer + ")";
  return name;
}

Status TcpSocket::Trouble(int peer, const std::string& description) const {
  if (!failed_check_.empty()) return AlteredOnTheWay(peer, description, failed_check_);
  if (!violation_.empty()) return PeerBrokeProtocol(peer, description, violation_);
  if (farewell_) return PeerEndedLink(peer, description, *farewell_);
  if (!crypto_trouble_.empty()) {
    return Status(StatusCode::kInternal, PeerName(peer, description) + ": " + crypto_trouble_);
  }
  return Status();
}

// --- out ----------------------------------------------------------------------------------------

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
  if (header.kind == FrameKind::kPut) ++puts_queued_;
  const bool idle = queued_bytes() == 0;
  waiting_bytes_ += sizeof(header) + payload.size();
  waiting_.push_back({header, payload, {}, true, token});
  if (idle) WriteAll(nullptr);
  if (broken_) return true;
  // Only this frame can be left of what is lent, if the socket was idle; else all of it is.
  if (!waiting_.empty()) {
    Waiting& frame = waiting_.back();
    const size_t in_batch = idle && batch_.lent ? batch_.piece.size() : 0;
    if (frame.payload.size() + in_batch > max_copied_bytes) return false;
    if (in_batch > 0) CopyPiece();
    frame.copy.assign(frame.payload.begin(), frame.payload.end());
    frame.payload = frame.copy;
    frame.report = false;
    return true;
  }
  if (!batch_.lent) {
    batch_.reports.reset();
    return true;
  }
  if (batch_.piece.size() > max_copied_bytes) return false;
  CopyPiece();
  return true;
}

// The piece in flight no longer needs its source.
void TcpSocket::CopyPiece() {
  batch_.copy.assign(batch_.piece.begin(), batch_.piece.end());
  batch_.piece = batch_.copy;
  batch_.lent = false;
  batch_.reports.reset();
}

void TcpSocket::Detach(uint64_t token) {
  if (batch_.lent && batch_.token == token) CopyPiece();
  if (batch_.reports == token) batch_.reports.reset();
  for (Waiting& frame : waiting_) {
    if (!frame.report || frame.token != token) continue;
    frame.copy.assign(frame.payload.begin(), frame.payload.end());
    frame.payload = frame.copy;
    frame.report = false;
  }
}

bool TcpSocket::Flush(std::vector<uint64_t>& sent_tokens) {
  return queued_bytes() > 0 && WriteAll(&sent_tokens);
}

bool TcpSocket::WriteAll(std::vector<uint64_t>* sent) {
  bool any = false;
  while (batch_.size() > 0 || NextBatch()) {
    const size_t before = batch_.size();
    const bool whole = WriteBatch();
    if (broken_) return true;  // nothing is queued any more
    any |= batch_.size() < before;
    if (!whole) break;
    batch_.lent = false;
    // Send itself says so of the frame that it was called for.
    if (batch_.reports && sent != nullptr) sent->push_back(*batch_.reports);
    batch_.reports.reset();
  }
  return any;
}

bool TcpSocket::NextBatch() {
  batch_.memory.clear();
  batch_.heads = batch_.piece = batch_.tag = {};
  batch_.lent = false;
  bool sealed = true;
  while (sealed && !waiting_.empty() && batch_.memory.size() < kMaxHeadsBytes) {
    Waiting& frame = waiting_.front();
    if (!frame.head_sealed) sealed = SealHead(frame);
    if (!sealed) break;
    if (frame.payload.empty()) {
      waiting_.pop_front();
      continue;
    }
    sealed = SealPiece(frame);
    break;
  }
  if (!sealed) {
    crypto_trouble_ = "libcrypto failed to seal what is sent to it";
    StopSending();
    return false;
  }
  batch_.heads = batch_.memory;
  return batch_.size() > 0;
}

bool TcpSocket::SealHead(Waiting& frame) {
  const size_t joined = JoinedBytes(frame.payload.size());
  const size_t size = sizeof(FrameHeader) + joined;
  const HeadSize written_size = WriteHeadSize(size);
  const size_t at = batch_.memory.size();
  const size_t record_bytes = sizeof(HeadSize) + size;
  batch_.memory.resize(at + record_bytes + out_->tag_bytes());
  std::byte* const record = batch_.memory.data() + at;
  std::memcpy(record, &written_size, sizeof(HeadSize));
  std::memcpy(record + sizeof(HeadSize), &frame.header, sizeof(FrameHeader));
  if (joined > 0) {
    std::memcpy(record + sizeof(HeadSize) + sizeof(FrameHeader), frame.payload.data(), joined);
    frame.payload = {};
  }
  frame.head_sealed = true;
  waiting_bytes_ -= size;
  return out_->Seal({record, record_bytes}, sizeof(HeadSize), record + sizeof(HeadSize),
                    record + record_bytes);
}

bool TcpSocket::SealPiece(Waiting& frame) {
  const auto piece =
      frame.payload.first(std::min<size_t>(frame.payload.size(), out_->piece_bytes()));
  if (out_->encrypts()) {
    encrypted_.resize(RecordSeal::kPieceBytes);
    batch_.piece = std::span(encrypted_).first(piece.size());
  } else {
    batch_.piece = piece;
    batch_.lent = frame.report;
    batch_.token = frame.token;
  }
  if (!out_->Seal(piece, 0, encrypted_.data(), batch_.tag_memory.data())) return false;
  batch_.tag = std::span(batch_.tag_memory).first(out_->tag_bytes());
  frame.payload = frame.payload.subspan(piece.size());
  waiting_bytes_ -= piece.size();
  if (!frame.payload.empty()) return true;
  if (frame.report) batch_.reports = frame.token;
  batch_.copy = std::move(frame.copy);
  waiting_.pop_front();
  return true;
}

// Whether the kernel took all of the batch.
bool TcpSocket::WriteBatch() {
  std::array<iovec, 3> pieces;
  size_t piece_count = 0;
  for (const auto& bytes : {batch_.heads, batch_.piece, batch_.tag}) {
    if (!bytes.empty()) pieces[piece_count++] = Piece(bytes);
  }
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = piece_count;
  while (true) {
    const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      // Any other error is the end, but of sending only: what the peer sent before can still be
      // read, and reading will find the end, too.
      if (!WouldBlock(errno)) StopSending();
      return false;
    }
    Consume(batch_.tag, Consume(batch_.piece, Consume(batch_.heads, static_cast<size_t>(sent))));
    return batch_.size() == 0;
  }
}

void TcpSocket::StopSending() {
  broken_ = true;
  waiting_.clear();
  batch_ = {};
  waiting_bytes_ = 0;
}

bool TcpSocket::SayEnd(std::string_view why) {
  const bool within_frame =
      batch_.size() > 0 || (!waiting_.empty() && waiting_.front().head_sealed);
  if (broken_ || within_frame) return false;
  waiting_.clear();
  waiting_bytes_ = 0;
  why = why.substr(0, kJoinedBytes);
  SendCopy({kFrameMagic, FrameKind::kEnd, why.size(), 0, {}}, std::as_bytes(std::span(why)));
  const bool said = !broken_ && queued_bytes() == 0;
  StopSending();
  return said;
}

void TcpSocket::Shutdown() {
  ::shutdown(fd_.get(), SHUT_WR);
  for (int i = 0; i < 64; ++i) {
    if (::recv(fd_.get(), nullptr, size_t{1} << 20, MSG_DONTWAIT | MSG_TRUNC) <= 0) break;
  }
}

// --- in -----------------------------------------------------------------------------------------

bool TcpSocket::HeadWaits() const {
  HeadSize written;
  if (end_ - begin_ < sizeof(written)) return false;
  std::memcpy(&written, buffer_.data() + begin_, sizeof(written));
  const size_t size = ReadHeadSize(written);
  return size == 0 || end_ - begin_ >= sizeof(written) + size + in_->tag_bytes();
}

bool TcpSocket::HasUnread() const { return !incoming_ && HeadWaits(); }

std::string TcpSocket::cut() const {
  if (!ended_ || (!incoming_ && begin_ == end_)) return "";
  return Name() + " was cut off within frame " + std::to_string(frames_received_);
}

size_t TcpSocket::PieceCount() const {
  const size_t piece_bytes = in_->piece_bytes();
  return incoming_->payload.size() / piece_bytes + (incoming_->payload.size() % piece_bytes != 0);
}

template <typename Visit>
void TcpSocket::ForEachMissing(const Visit& visit) {
  const size_t piece_bytes = in_->piece_bytes();
  const size_t step = piece_bytes + in_->tag_bytes();
  const size_t first = incoming_->checked_pieces;
  const size_t last = std::min(PieceCount(), first + kPiecesPerRead);
  for (size_t i = first; i < last; ++i) {
    const auto piece = incoming_->payload.subspan(
        i * piece_bytes, std::min(piece_bytes, incoming_->payload.size() - i * piece_bytes));
    const auto tag = std::span(incoming_->tags[i % kPiecesPerRead]).first(in_->tag_bytes());
    const size_t come = std::max(incoming_->stream_bytes, i * step) - i * step;
    if (come < piece.size() && !visit(piece.subspan(come))) return;
    const size_t tag_come = std::max(come, piece.size()) - piece.size();
    if (tag_come < tag.size() && !visit(tag.subspan(tag_come))) return;
  }
}

size_t TcpSocket::Read() {
  std::array<iovec, 2 * kPiecesPerRead + 1> pieces;
  size_t piece_count = 0;
  size_t direct_bytes = 0;
  bool buffer_too = true;
  if (incoming_) {  // the buffer is empty now
    ForEachMissing([&](std::span<std::byte> bytes) {
      pieces[piece_count++] = {bytes.data(), bytes.size()};
      direct_bytes += bytes.size();
      return true;
    });
    buffer_too = incoming_->checked_pieces + kPiecesPerRead >= PieceCount();
    begin_ = end_ = 0;
  } else {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (buffer_too) pieces[piece_count++] = {buffer_.data() + end_, buffer_.size() - end_};

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
    const auto count = static_cast<size_t>(received);
    const size_t direct = std::min(count, direct_bytes);
    if (incoming_) incoming_->stream_bytes += direct;
    end_ += count - direct;
    return count;
  }
}

bool TcpSocket::Receive(LinkSink& sink, int peer, int& budget) {
  bool did_something = false;
  size_t received = 0;
  while (!has_trouble()) {
    // All that the buffer holds, before the next system call.
    while (budget > 0 && !has_trouble()) {
      if (!incoming_) {
        if (!HeadWaits()) break;
        did_something = true;
        const bool greeted = rules_.greeted;
        const bool whole = TakeHead(sink, peer);
        if (whole && greeted) --budget;
        continue;
      }
      ForEachMissing([&](std::span<std::byte> bytes) {
        const size_t count = std::min(bytes.size(), end_ - begin_);
        if (count > 0) std::memcpy(bytes.data(), buffer_.data() + begin_, count);
        begin_ += count;
        incoming_->stream_bytes += count;
        return count == bytes.size();
      });
      TakePieces();
      if (has_trouble() || incoming_->checked_pieces < PieceCount()) break;
      incoming_.reset();
      did_something = true;
      --budget;
      Deliver(sink, peer, message_);
    }
    if (ended_ || budget <= 0 || received >= kMaxBytesPerReceive || has_trouble()) {
      break;
    }
    const size_t count = Read();
    if (count == 0) break;
    received += count;
    did_something = true;
  }
  return did_something;
}

// Whether the frame is whole, and has been delivered.
bool TcpSocket::TakeHead(LinkSink& sink, int peer) {
  HeadSize written;
  std::byte* const record = buffer_.data() + begin_;
  std::memcpy(&written, record, sizeof(written));
  const size_t size = ReadHeadSize(written);
  if (size == 0 && in_->tag_bytes() == 0) {
    violation_ = "a frame starts with " + std::to_string(written);
    return false;
  }
  const size_t record_bytes = sizeof(written) + size;
  if (size == 0 || !in_->Open({record, record_bytes}, sizeof(written), record + record_bytes)) {
    FailCheck();
    return false;
  }
  std::memcpy(&header_, record + sizeof(written), sizeof(header_));
  violation_ = rules_.Violation(header_);
  if (violation_.empty() && size != sizeof(header_) + JoinedBytes(header_.bytes)) {
    violation_ = "the head of a frame has " + std::to_string(size) + " bytes, its payload " +
                 std::to_string(header_.bytes);
  }
  if (!violation_.empty()) return false;
  begin_ += record_bytes + in_->tag_bytes();
  const std::span<const std::byte> joined(record + sizeof(written) + sizeof(header_),
                                          JoinedBytes(header_.bytes));
  if (joined.size() < header_.bytes) {
    incoming_.emplace();
    if (header_.kind == FrameKind::kTell) {
      message_.resize(header_.bytes);
      incoming_->payload = std::as_writable_bytes(std::span(message_));
    } else {
      incoming_->payload = window_.subspan(header_.offset, header_.bytes);
    }
    return false;
  }
  if (header_.kind == FrameKind::kPut && !joined.empty()) {
    std::memcpy(window_.data() + header_.offset, joined.data(), joined.size());
  }
  Deliver(sink, peer, {reinterpret_cast<const char*>(joined.data()), joined.size()});
  return true;
}

// Checks the pieces that have come as a whole.
void TcpSocket::TakePieces() {
  const size_t piece_bytes = in_->piece_bytes();
  const size_t count = PieceCount();
  while (incoming_->checked_pieces < count) {
    const size_t i = incoming_->checked_pieces;
    const auto piece = incoming_->payload.subspan(
        i * piece_bytes, std::min(piece_bytes, incoming_->payload.size() - i * piece_bytes));
    const size_t end = i * (piece_bytes + in_->tag_bytes()) + piece.size() + in_->tag_bytes();
    if (incoming_->stream_bytes < end) return;
    if (!in_->Open(piece, 0, incoming_->tags[i % kPiecesPerRead].data())) return FailCheck();
    ++incoming_->checked_pieces;
  }
}

void TcpSocket::FailCheck() {
  failed_check_ = "frame " + std::to_string(frames_received_) + " of " + Name();
}

void TcpSocket::Deliver(LinkSink& sink, int peer, std::string_view message) {
  ++frames_received_;
  switch (header_.kind) {
    case FrameKind::kHello:
      rules_.greeted = true;
      break;
    case FrameKind::kPut:
      ++puts_received_;
      sink.OnNotice(peer, header_.notice);
      break;
    case FrameKind::kTell:
      puts_told_ = header_.offset;
      sink.OnTold(peer, message);
      break;
    case FrameKind::kEnd:
      farewell_ = Printable(message);
      break;
  }
}

}  // namespace jaxcoll
