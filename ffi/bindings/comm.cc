#include <nanobind/stl/string.h>
#include <nanobind/stl/unordered_map.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/log.h"
#include "bindings/bindings.h"
#include "bindings/link_security.h"
#include "comm/peer.h"
#include "comm/reactor.h"
#include "transport/crypto.h"
#include "transport/link.h"
#include "transport/shm/segment.h"

namespace nb = nanobind;

namespace jaxcoll {
namespace {

Reactor& Started() {
  Reactor* const reactor = Reactor::Get();
  if (reactor == nullptr) throw nb::value_error("comm_start has not been called");
  return *reactor;
}

void Add(int peer, StatusOr<std::unique_ptr<Link>> link) {
  if (link.ok()) {
    Started().AddLink(peer, std::move(*link));
  } else {
    Started().LinkFailed(peer, link.status().message());
  }
}

}  // namespace

// The reactor's mutex is never taken with the interpreter's lock held: its thread calls Python.
void BindComm(nb::module_& m) {
  m.def(
      "comm_start",
      [](int process, std::unordered_map<int64_t, int> process_of_device, nb::callable want) {
        if (Reactor::Get() != nullptr) throw nb::value_error("comm_start was called before");
        int last = process;
        for (const auto& [device, owner] : process_of_device) last = std::max(last, owner);
        SetLogProcess(process, last + 1);
        // Never destroyed: the reactor may outlive the interpreter.
        auto* const callable = new nb::callable(std::move(want));
        nb::gil_scoped_release release;
        Reactor::Start(process, std::move(process_of_device), [callable](int peer) {
          std::string failure;
          {
            nb::gil_scoped_acquire acquire;
            try {
              (*callable)(peer);
              return;
            } catch (const std::exception& e) {  // on the reactor's thread nobody else catches it
              failure = e.what();
            }
          }
          Started().LinkFailed(peer, failure);
        });
      },
      nb::arg("process"), nb::arg("process_of_device"), nb::arg("want"),
      "Starts the engine between processes, once. `want(peer)` is called when it needs a link; it\n"
      "must return at once, and comm_add_*_link or comm_link_failed must follow.");
  m.def(
      "comm_started", [] { return Reactor::Get() != nullptr; },
      "Whether comm_start has been called.");
  m.def(
      "comm_wants_listing",
      [](const std::string& program) { return Started().WantsListing(program); },
      nb::call_guard<nb::gil_scoped_release>(), nb::arg("program"),
      "Whether comm_add_listing should follow for the program of this fingerprint.");
  m.def(
      "comm_add_listing",
      [](const std::string& program, std::string name, std::vector<std::string> lines) {
        nb::gil_scoped_release release;
        Started().AddListing(program, {std::move(name), std::move(lines)});
      },
      nb::arg("program"), nb::arg("name"), nb::arg("lines"),
      "Registers the text of a program, line by line. Where processes run different programs, an\n"
      "error names the first line in which these differ; the text behind its\n"
      "last \" @ \" says where it stands.");
  m.def(
      "comm_end_build",
      [] {
        if (Reactor* const reactor = Reactor::Get()) reactor->EndBuild();
      },
      nb::call_guard<nb::gil_scoped_release>(),
      "The calling thread begins or has ended to compile or load an executable: the next\n"
      "instructions that it instantiates belong to another one.");
  m.def(
      "comm_bell", [] { return Started().bell(); },
      "The eventfd that wakes this process's engine; it stays the engine's.");
  m.def(
      "comm_make_segment",
      [] {
        StatusOr<int> segment = MakeShmSegment(kWindowBytes);
        if (!segment.ok()) throw nb::value_error(segment.status().message().c_str());
        // The link will map this one and the peer's. If there is no room for them the peer is to
        // be told so, which it can be only now.
        ShmSegment own, peers;
        for (ShmSegment* mapped : {&own, &peers}) {
          if (const Status status = mapped->Map(*segment); !status.ok()) {
            close(*segment);
            throw nb::value_error(status.message().c_str());
          }
        }
        return *segment;
      },
      "A memfd for one link: what the peer writes for this process.");
  m.def(
      "comm_add_shm_link",
      [](int peer, int socket, int own_segment, int peer_segment, int peer_bell,
         std::string description) {
        nb::gil_scoped_release release;
        Add(peer, MakeShmLink(peer, socket, own_segment, peer_segment, Started().bell(), peer_bell,
                              std::move(description)));
      },
      nb::arg("peer"), nb::arg("socket"), nb::arg("own_segment"), nb::arg("peer_segment"),
      nb::arg("peer_bell"), nb::arg("description"), "Takes over the descriptors.");
  m.def(
      "comm_add_tcp_link",
      [](int peer, const std::vector<int>& sockets, std::string description,
         const nb::bytes& link_key, bool client, bool encrypt) {
        const TcpSecurity security = SecurityOf(link_key, client, encrypt);
        nb::gil_scoped_release release;
        Add(peer, MakeTcpLink(peer, sockets, kWindowBytes, security, std::move(description)));
      },
      nb::arg("peer"), nb::arg("sockets"), nb::arg("description"), nb::arg("link_key"),
      nb::arg("client"), nb::arg("encrypt"), "Takes over the descriptors.");
  m.def(
      "comm_no_crypto",
      [] {
        const StatusOr<const crypto::LibCrypto*> library = crypto::Load();
        return library.ok() ? std::string() : library.status().message();
      },
      "Why nothing can be authenticated here, so neither tcp nor rdma can be used; else empty.");
  m.def(
      "comm_link_failed",
      [](int peer, const std::string& reason) {
        nb::gil_scoped_release release;
        Started().LinkFailed(peer, reason);
      },
      nb::arg("peer"), nb::arg("reason"),
      "The link cannot be made: fails everything that waits for the peer.");
  m.def(
      "comm_refuse",
      [](const std::string& reason) {
        nb::gil_scoped_release release;
        Started().Refuse(reason);
      },
      nb::arg("reason"), "Ends all links: this process takes part in nothing any more.");
  m.def(
      "comm_dump",
      [] {
        Reactor* const reactor = Reactor::Get();
        return reactor == nullptr ? std::string() : reactor->Dump();
      },
      nb::call_guard<nb::gil_scoped_release>(),
      "This process's calls with others, for people; empty before comm_start.");
  m.def(
      "comm_stop",
      [](const std::string& words) {
        if (Reactor* const reactor = Reactor::Get()) reactor->Stop(words);
      },
      nb::call_guard<nb::gil_scoped_release>(), nb::arg("words") = "",
      "Fails what is pending, sends what is queued (3 s at most) and ends the thread. `words` "
      "tell\n"
      "the peers how it came to that, e.g. \"has raised ValueError\".");
  m.attr("comm_window_bytes") = kWindowBytes;
}

}  // namespace jaxcoll
