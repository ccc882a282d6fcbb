// The interface by which another engine of this process uses the reactor's links to other processes
// (comm/reactor.h), on the reactor's thread. Such an engine is a guest of the reactor. The GPUs'
// proxy is one (gpu/proxy/proxy.h).
//
// A guest sends parcels: a label, and up to kSlotBytes. Each is delivered exactly once, in no
// defined order. A parcel occupies a slot of the peer's window until the peer's guest has read it,
// so guests must read parcels at once.
//
// Thread rule: a guest's functions are called under the reactor's lock, and a Carrier's only from
// within them, or by a CarrierAccess.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "call/interprocess.h"
#include "transport/link.h"

namespace jaxcoll {

// A parcel's label, which the guest alone interprets.
struct ParcelLabel {
  uint64_t key = 0;
  uint64_t word = 0;
  uint32_t numbers[5] = {};
  uint8_t kind = 0;
  friend bool operator==(const ParcelLabel&, const ParcelLabel&) = default;
};

class Carrier {
 public:
  virtual ~Carrier() = default;
  // Requests a link to the process. Returns empty, or the reason why the link has ended.
  virtual std::string Want(int process) = 0;
  // Sends only a label, once the link exists.
  virtual void Send(int process, const ParcelLabel& label) = 0;
  // False if there is currently no slot or no link. Otherwise `write` has written `bytes` into the
  // parcel.
  virtual bool Send(int process, const ParcelLabel& label, size_t bytes,
                    const std::function<void(std::byte*)>& write) = 0;
  // In order among themselves; rare.
  virtual void Tell(int process, std::string_view message) = 0;

  // Parcels from device memory. Whether the link to the process can send from it; nullopt while the
  // link is being made, false when it has ended.
  virtual std::optional<bool> TakesDmabuf(int process) = 0;
  // All of the dma-buf `fd`, which has the address `memory`; the descriptor may be closed. The loan
  // ends under the same lock, before the memory does. An error says why the link refuses it.
  virtual StatusOr<std::unique_ptr<Link::Loan>> Lend(int process, int fd,
                                                     std::span<const std::byte> memory) = 0;
  // Like the other overload, with bytes in memory that was lent to that process. They must not
  // change until the peer's guest has read the parcel.
  virtual bool Send(int process, const ParcelLabel& label, Link::Loan& loan,
                    std::span<const std::byte> bytes) = 0;
};

// The handle by which a guest's other threads reach its carrier.
class CarrierAccess {
 public:
  virtual ~CarrierAccess() = default;
  // Takes the reactor's lock, so not from within a guest's function.
  virtual void Use(const std::function<void(Carrier&)>& use) = 0;
};

class Guest {
 public:
  virtual ~Guest() = default;
  // Without the lock. Null: the reactor, and with it every link, is destroyed.
  virtual void OnInvited(CarrierAccess* access) = 0;
  // Sends available data; returns whether it did anything.
  virtual bool Step(Carrier& carrier) = 0;
  // The fault in it, if the peer must have broken the protocol; else null.
  virtual const char* OnParcel(int process, const ParcelLabel& label,
                               std::span<const std::byte> bytes) = 0;
  virtual const char* OnTold(int process, std::string_view message) = 0;
  virtual void OnLost(int process, const std::string& why) = 0;
  // The peer process has ended normally, and all its messages have arrived.
  virtual void OnLeft(int process, const std::string& why) = 0;
  // How long the thread may sleep when nothing happens and no message comes.
  virtual std::chrono::microseconds MaySleep() = 0;
  // Whether something must still be sent before the process may end.
  virtual bool Busy() = 0;
  // This process ends: calls in flight fail, here and in peers. Step is called once more.
  virtual void OnStop() = 0;
  virtual std::string Dump() = 0;  // lines for people
};

}  // namespace jaxcoll
