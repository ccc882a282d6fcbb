// One call in a group that spans processes: what the engine between processes drives.
//
// A RunPlan is bound to a call site, a Run to one of its calls. A run consists of messages between
// this process's ranks and those of others; what they mean is the run's affair, how they travel the
// wire's.
//
// Thread rule: a Run is under the reactor's lock, like the Wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/scratch_pool.h"
#include "schedule/world.h"

namespace jaxcoll {

// A message of up to this size is sent at once, whether or not its receiver waits for it: a process
// that has not begun the call keeps a copy of it. A longer one must have been asked for.
inline constexpr size_t kEagerBytes = 16 << 10;

// This process's buffers of one call, [vector * members + member].
struct MemberBuffers {
  std::vector<const std::byte*> inputs;
  std::vector<std::byte*> outputs;
};

// Names a message of one slice.
struct MessageId {
  int32_t slice = 0;
  MessageKey key;
  friend auto operator<=>(const MessageId&, const MessageId&) = default;
};

class Run;

// How a run reaches the ranks of other processes.
class Wire {
 public:
  virtual ~Wire() = default;
  virtual void SendReady(Run& run, int32_t rank, const MessageId& id) = 0;
  // Takes the message from Run::Write, at once or later; then calls OnSent. Or calls Hold.
  virtual void SendData(Run& run, int32_t rank, int32_t slice, int32_t op) = 0;
  // Whether a message may stay in its slot for a while, and when it need not any more.
  virtual bool MayKeep(int32_t rank) = 0;
  virtual void Release(int32_t rank, uint64_t handle) = 0;
  virtual ScratchPool& scratch() = 0;
};

class Run {
 public:
  Run() = default;
  virtual ~Run() = default;
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  virtual void Begin() = 0;
  virtual bool done() const = 0;
  // The result of a run that is done. An error is the call's alone; every process ends the call
  // with one.
  virtual const Status& status() const = 0;

  // From the wire. Messages that the call does not have are the peer's error: they return false.
  virtual bool OnReady(const MessageId& id) = 0;
  // `message` is valid until the call returns, or until Release(*handle) if it was kept; without a
  // handle it cannot be.
  enum class Taken { kAtOnce, kKept, kUnknown };
  virtual Taken OnData(const MessageId& id, const std::byte* message, size_t bytes,
                       std::optional<uint64_t> handle) = 0;
  virtual void OnSent(int32_t slice, int32_t op) = 0;
  // A small message that its receiver has yet to want: whether it stays here until the receiver
  // has been sent a request and is ready; then the run calls SendData again.
  virtual bool Hold(int32_t slice, int32_t op) = 0;
  virtual bool OnRequest(const MessageId& id) = 0;

  // For SendData; `op` is the run's own number for the message.
  virtual MessageKey Key(int32_t op) const = 0;
  virtual size_t MessageBytes(int32_t slice, int32_t op) const = 0;
  virtual void Write(int32_t slice, int32_t op, std::byte* message) const = 0;
  // The message where it lies, if it does in one piece; null: it must be written. It stays as it is
  // until OnSent.
  virtual const std::byte* Contiguous(int32_t /*slice*/, int32_t /*op*/) const { return nullptr; }
  // The whole input or output that this is a piece of; empty: it is in neither.
  virtual std::span<const std::byte> ArrayOf(int32_t /*slice*/, int32_t /*op*/) const { return {}; }

  // The ranks whose messages or readiness it waits for.
  virtual std::vector<int32_t> WaitingFor() const = 0;
};

// Immutable; shared by the runs of a call site.
class RunPlan {
 public:
  virtual ~RunPlan() = default;
  virtual std::unique_ptr<Run> MakeRun(MemberBuffers buffers, Wire& wire) const = 0;
};

}  // namespace jaxcoll
