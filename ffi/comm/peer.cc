#include "comm/peer.h"

#include <utility>

namespace jaxcoll {

void Peer::Connect(std::unique_ptr<Link> link) {
  link_ = std::move(link);
  state_ = State::kUp;
  description_ = link_->Describe();
  for (size_t i = 0; i < kSmallSlots; ++i) {
    free_small_.push_back(static_cast<uint32_t>(i * kEagerBytes));
  }
  for (size_t i = 0; i < kLargeSlots; ++i) {
    free_large_.push_back(static_cast<uint32_t>(kSmallSlots * kEagerBytes + i * kSlotBytes));
  }
  for (const NoticeFields& fields : std::exchange(unsent_, {})) Send(fields);
  for (const std::string& message : std::exchange(untold_, {})) Tell(message);
}

void Peer::Disconnect(std::string reason) {
  link_.reset();
  state_ = State::kDown;
  down_reason_ = std::move(reason);
  unsent_.clear();
  in_transit.clear();
  untold_.clear();
  waiting_small_.clear();
  waiting_large_.clear();
  free_small_.clear();
  free_large_.clear();
  taken_.clear();
}

void Peer::Retire(std::string reason) {
  retired_link_ = std::move(link_);
  Disconnect(std::move(reason));
}

void Peer::ForgetLinks() {
  link_.reset();
  retired_link_.reset();
}

void Peer::Send(const NoticeFields& fields) {
  if (link_ != nullptr) {
    link_->Put({}, 0, Encode(fields), 0);
  } else if (state_ != State::kDown) {
    unsent_.push_back(fields);
  }
}

void Peer::Tell(std::string_view message) {
  if (link_ != nullptr) {
    link_->Tell(message);
  } else if (state_ != State::kDown) {
    untold_.emplace_back(message);
  }
}

uint32_t Peer::TakeSlot(bool small) {
  std::vector<uint32_t>& free = small ? free_small_ : free_large_;
  const uint32_t offset = free.back();
  free.pop_back();
  taken_.insert(offset);
  return offset;
}

bool Peer::ReturnSlot(uint32_t offset) {
  if (taken_.erase(offset) == 0) return false;
  (offset < kSmallSlots * kEagerBytes ? free_small_ : free_large_).push_back(offset);
  return true;
}

std::byte* Peer::mirror() {
  if (std::byte* const staging = link_->staging(); staging != nullptr) return staging;
  // Not cleared: only the slots that are used become memory.
  if (mirror_ == nullptr) mirror_ = std::make_unique_for_overwrite<std::byte[]>(kWindowBytes);
  return mirror_.get();
}

}  // namespace jaxcoll
