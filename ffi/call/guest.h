// How another engine of this process uses the links to the other processes: as a guest of the one
// that owns them (comm/reactor.h), on its thread. The proxy of GPUs is one (gpu/proxy/proxy.h).
//
// A guest sends parcels: a label, and up to kSlotBytes. Each is delivered exactly once, and no
// order between two may be assumed. A parcel takes a slot of the peer's window until the peer's
// guest has seen it: guests must take what comes at once.
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

// What a parcel is: the guest's business.
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
  // Asks for a link to the process. Empty, or why there is none any more.
  virtual std::string Want(int process) = 0;
  // A label alone. It waits for the link if need be.
  virtual void Send(int process, const ParcelLabel& label) = 0;
  // False if there is no slot, or no link, now. Else `write` has put `bytes` into the parcel.
  virtual bool Send(int process, const ParcelLabel& label, size_t bytes,
                    const std::function<void(std::byte*)>& write) = 0;
  // In order among themselves; rare.
  virtual void Tell(int process, std::string_view message) = 0;

  // Parcels from a device's memory. Whether the link to the process takes it; nothing while the
  // link is being made, and no when it has ended.
  virtual std::optional<bool> TakesDmabuf(int process) = 0;
  // All of the dma-buf `fd`, which has the address `memory`; the descriptor may be closed. The loan
  // ends under the same lock, before the memory does. An error says why the link refuses it.
  virtual StatusOr<std::unique_ptr<Link::Loan>> Lend(int process, int fd,
                                                     std::span<const std::byte> memory) = 0;
  // As the other, of bytes that lie in what was lent to that process. They must stay until the
  // peer's guest has seen the parcel.
  virtual bool Send(int process, const ParcelLabel& label, Link::Loan& loan,
                    std::span<const std::byte> bytes) = 0;
};

// What a guest's other threads reach its carrier by.
class CarrierAccess {
 public:
  virtual ~CarrierAccess() = default;
  // Takes the reactor's lock, so not from within a guest's function.
  virtual void Use(const std::function<void(Carrier&)>& use) = 0;
};

class Guest {
 public:
  virtual ~Guest() = default;
  // Without the lock. Null: the reactor, and with it every link, is gone.
  virtual void OnInvited(CarrierAccess* access) = 0;
  // Looks for what there is to send. Whether it did anything.
  virtual bool Step(Carrier& carrier) = 0;
  // What is wrong with it, if the peer must have broken the protocol; else null.
  virtual const char* OnParcel(int process, const ParcelLabel& label,
                               std::span<const std::byte> bytes) = 0;
  virtual const char* OnTold(int process, std::string_view message) = 0;
  virtual void OnLost(int process, const std::string& why) = 0;
  // The process has ended in good order. All that it sent has come.
  virtual void OnLeft(int process, const std::string& why) = 0;
  // How long the thread may sleep when nothing happens and no message comes.
  virtual std::chrono::microseconds MaySleep() = 0;
  // Whether something must still be sent before the process may end.
  virtual bool Busy() = 0;
  // The process ends: what is under way fails, here and elsewhere. Step is called once more.
  virtual void OnStop() = 0;
  virtual std::string Dump() = 0;  // lines for people
};

}  // namespace jaxcoll
