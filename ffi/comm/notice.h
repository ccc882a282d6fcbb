// The notices of a transport, by which the engines of two processes talk.
#pragma once

#include <bit>
#include <cstdint>
#include <iterator>

#include "call/guest.h"
#include "engine/slices/run.h"
#include "transport/link.h"

namespace jaxcoll {

// Names one call in every process: `key` hashes what the call is and which of several equal call
// sites makes it, `number` counts that call site's calls.
struct CallId {
  uint64_t key = 0;
  uint32_t number = 0;
  friend auto operator<=>(const CallId&, const CallId&) = default;
};

enum class NoticeKind : uint8_t {
  kReady = 1,    // the receiver of a message waits for it
  kData = 2,     // a message lies at `offset`
  kCredit = 3,   // what lies at `offset` is not needed any more; `bytes` of it were put aside
  kRequest = 4,  // a small message stays with its sender until its receiver waits for it
  kTaken = 5,    // `bytes` that had been put aside are needed no more
  kParcel = 6,   // of the guests; its bytes, if any, lie at `offset`
};

struct NoticeFields {
  NoticeKind kind = NoticeKind::kReady;
  uint8_t unused[3] = {};
  uint32_t sequence = 0;
  uint64_t key = 0;
  uint32_t number = 0;
  uint32_t slice = 0;
  uint32_t source = 0;
  uint32_t destination = 0;
  uint32_t offset = 0;
  uint32_t bytes = 0;
  uint32_t channel = 0;  // several of each rank, in some schedules: more than 16 bits
  uint32_t unused2 = 0;

  CallId call() const { return {key, number}; }
  MessageId message() const {
    return {static_cast<int32_t>(slice),
            {static_cast<int32_t>(source), static_cast<int32_t>(destination),
             static_cast<int32_t>(channel), static_cast<int32_t>(sequence)}};
  }
};
static_assert(sizeof(NoticeFields) == sizeof(Notice));

inline Notice Encode(const NoticeFields& fields) { return std::bit_cast<Notice>(fields); }
inline NoticeFields Decode(const Notice& notice) { return std::bit_cast<NoticeFields>(notice); }

inline NoticeFields Labelled(const ParcelLabel& label) {
  NoticeFields fields;
  fields.kind = NoticeKind::kParcel;
  fields.unused[0] = label.kind;
  fields.key = label.key;
  fields.source = static_cast<uint32_t>(label.word);
  fields.destination = static_cast<uint32_t>(label.word >> 32);
  fields.sequence = label.numbers[0];
  fields.number = label.numbers[1];
  fields.slice = label.numbers[2];
  fields.channel = label.numbers[3];
  fields.unused2 = label.numbers[4];
  return fields;
}
inline ParcelLabel LabelOf(const NoticeFields& fields) {
  ParcelLabel label;
  label.kind = fields.unused[0];
  label.key = fields.key;
  label.word = uint64_t{fields.destination} << 32 | fields.source;
  const uint32_t numbers[] = {fields.sequence, fields.number, fields.slice, fields.channel,
                              fields.unused2};
  for (size_t i = 0; i < std::size(numbers); ++i) label.numbers[i] = numbers[i];
  return label;
}

inline NoticeFields About(NoticeKind kind, const CallId& call, const MessageId& id) {
  NoticeFields fields;
  fields.kind = kind;
  fields.key = call.key;
  fields.number = call.number;
  fields.slice = static_cast<uint32_t>(id.slice);
  fields.source = static_cast<uint32_t>(id.key.source);
  fields.destination = static_cast<uint32_t>(id.key.destination);
  fields.channel = static_cast<uint32_t>(id.key.channel);
  fields.sequence = static_cast<uint32_t>(id.key.sequence);
  return fields;
}

}  // namespace jaxcoll
