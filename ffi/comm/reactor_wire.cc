// The messages of calls on their way out: the Wire of each call's run, and the links that it takes.
#include <utility>

#include "comm/reactor.h"
#include "comm/reactor_internal.h"

namespace jaxcoll {

Peer& Reactor::CallWire::PeerOf(int32_t rank) {
  return reactor_.PeerOf(call_.group->process_of_rank[rank]);
}

void Reactor::CallWire::SendReady(Run&, int32_t rank, const MessageId& id) {
  PeerOf(rank).Send(About(NoticeKind::kReady, call_.id, id));
}

void Reactor::CallWire::SendData(Run& run, int32_t rank, int32_t slice, int32_t op) {
  Peer& peer = PeerOf(rank);
  const bool small = run.MessageBytes(slice, op) <= kEagerBytes;
  peer.waiting(small).push_back({call_.id, slice, op});
  reactor_.Pump(peer, small);
}

void Reactor::Pump(Peer& peer, bool small) {
  auto& waiting = peer.waiting(small);
  while (peer.link() != nullptr && !waiting.empty() && peer.HasSlot(small)) {
    const Peer::Waiting next = waiting.front();
    waiting.pop_front();
    const auto it = calls_.find(next.call);
    if (it == calls_.end()) continue;  // it has failed
    Run& run = *it->second->run;
    if (small && peer.ahead_bytes > seams_.ahead_bytes && run.Hold(next.slice, next.op)) {
      peer.Send(About(NoticeKind::kRequest, next.call, {next.slice, run.Key(next.op)}));
      continue;
    }
    const size_t bytes = run.MessageBytes(next.slice, next.op);
    const uint32_t offset = peer.TakeSlot(small);
    std::byte* const remote = peer.link()->remote_window();
    const std::byte* message = remote == nullptr ? run.Contiguous(next.slice, next.op) : nullptr;
    const uint64_t token = message != nullptr ? next_token_++ : 0;
    if (message == nullptr) {
      std::byte* const slot = (remote != nullptr ? remote : peer.mirror()) + offset;
      run.Write(next.slice, next.op, slot);
      message = slot;
    }
    NoticeFields fields = About(NoticeKind::kData, next.call, {next.slice, run.Key(next.op)});
    fields.offset = offset;
    fields.bytes = static_cast<uint32_t>(bytes);
    Link::Loan* const loan =
        token == 0 ? nullptr : LoanFor(*it->second, peer, run.ArrayOf(next.slice, next.op));
    const std::span<const std::byte> source(message, bytes);
    const bool sent = loan == nullptr
                          ? peer.link()->Put(source, offset, Encode(fields), token)
                          : peer.link()->PutFrom(*loan, source, offset, Encode(fields), token);
    // The slot stays ours until the peer returns it, so a mirror needs no OnSent.
    if (sent || token == 0) {
      Sent(it, next.slice, next.op);
    } else {
      peer.in_transit.emplace(token, next);
      ++it->second->unsent;
    }
  }
}

void Reactor::Sent(std::map<CallId, std::unique_ptr<Call>>::iterator it, int32_t slice,
                   int32_t op) {
  Call* const call = it->second.get();
  ++call->moves;
  const bool inner = std::exchange(call->in_run, true);
  call->run->OnSent(slice, op);
  call->in_run = inner;
  if (!inner) FinishIfDone(it->first);
}

Link::Loan* Reactor::LoanFor(Call& call, Peer& peer, std::span<const std::byte> array) {
  if (array.empty()) return nullptr;
  const auto [it, fresh] = call.loans.try_emplace({peer.process(), array.data()});
  if (fresh) it->second = peer.link()->Borrow(array);
  return it->second.get();
}

// The buffers of a call that has failed go back to XLA: no link may read them any more.
void Reactor::Detach(Call& call) {
  if (call.unsent == 0) return;
  for (const auto& [process, peer] : peers_) {
    std::erase_if(peer->in_transit, [&](const auto& put) {
      if (put.second.call != call.id) return false;
      if (peer->link() != nullptr) peer->link()->Detach(put.first);
      return true;
    });
  }
}

bool Reactor::CallWire::MayKeep(int32_t rank) {
  Peer& peer = PeerOf(rank);
  if (!peer.MayKeep()) return false;
  peer.Kept();
  return true;
}

void Reactor::CallWire::Release(int32_t rank, uint64_t handle) {
  Peer& peer = PeerOf(rank);
  peer.Unkept();
  NoticeFields fields;
  fields.kind = NoticeKind::kCredit;
  fields.offset = static_cast<uint32_t>(handle);
  peer.Send(fields);
}

}  // namespace jaxcoll
