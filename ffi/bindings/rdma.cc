#include "transport/rdma/rdma.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/environment.h"
#include "bindings/bindings.h"
#include "bindings/link_security.h"
#include "bindings/rdma_half.h"
#include "comm/peer.h"
#include "comm/reactor.h"
#include "transport/rdma/ports.h"

namespace nb = nanobind;

namespace jaxcoll {
namespace {

RdmaConfig ConfigFromSettings() {
  const Settings& settings = CurrentSettings();
  RdmaConfig config;
  config.devices = settings.rdma_devices;
  config.gid_index = settings.rdma_gid_index;
  config.service_level = settings.rdma_service_level;
  config.traffic_class = settings.rdma_traffic_class;
  config.register_bytes = settings.rdma_register_bytes;
  config.deadline_s = settings.timeout_s;
  return config;
}

}  // namespace

void BindRdma(nb::module_& m) {
  nb::class_<RdmaHalf>(m, "RdmaHalf", "This process's side of an rdma link that is being made.")
      .def(
          "offer",
          [](const RdmaHalf& half) {
            if (half.link == nullptr) throw nb::value_error("this half has become a link");
            const std::string offer = half.link->Offer();
            return nb::bytes(offer.data(), offer.size());
          },
          "What the peer must know, and nobody else may: it can write to this process with it.");
  m.def(
      "comm_rdma_fabrics",
      [] {
        const RdmaConfig config = ConfigFromSettings();
        if (const std::string why = WhyNoRdma(config, kWindowBytes); !why.empty()) {
          throw nb::value_error(why.c_str());
        }
        std::vector<std::string> fabrics;
        for (const RdmaPort& port : FindRdmaPorts(config, NumaNodeOfThisThread()).usable) {
          if (std::find(fabrics.begin(), fabrics.end(), port.Fabric()) == fabrics.end()) {
            fabrics.push_back(port.Fabric());
          }
        }
        return fabrics;
      },
      "The fabrics of the RDMA ports that this process can use; ValueError says why none.");
  m.def(
      "comm_rdma_ports",
      [] {
        std::vector<std::string> ports;
        for (const RdmaPort& port :
             FindRdmaPorts(ConfigFromSettings(), NumaNodeOfThisThread()).usable) {
          ports.push_back(port.Name() + " (" + port.Fabric() + ", GID " +
                          std::to_string(port.gid_index) + ": " + GidText(port.gid) + ")");
        }
        return ports;
      },
      "The RDMA ports that rdma would use, for people.");
  m.def(
      "comm_rdma_left_out",
      [] { return FindRdmaPorts(ConfigFromSettings(), NumaNodeOfThisThread()).left_out; },
      "Those that it would not, and why.");
  m.def(
      "comm_prepare_rdma",
      [](const nb::bytes& client_offer) {
        auto link = RdmaLink::Prepare(ConfigFromSettings(), kWindowBytes,
                                      {client_offer.c_str(), client_offer.size()});
        if (!link.ok()) throw nb::value_error(link.status().message().c_str());
        return RdmaHalf{std::move(*link)};
      },
      nb::arg("client_offer"),
      "Memory and queue pairs of a link; for its server the client's offer, for its client b''.");
  m.def(
      "comm_add_rdma_link",
      [](int peer, RdmaHalf& half, int socket, const nb::bytes& offer, std::string description,
         const nb::bytes& link_key, bool client, bool encrypt) {
        const TcpSecurity security = SecurityOf(link_key, client, encrypt);
        const std::string peer_offer(offer.c_str(), offer.size());
        std::unique_ptr<RdmaLink> link = std::move(half.link);
        nb::gil_scoped_release release;
        Reactor* const reactor = Reactor::Get();
        if (reactor == nullptr || link == nullptr) return;
        const Status joined =
            link->Join(peer, socket, peer_offer, security, std::move(description));
        if (joined.ok()) {
          reactor->AddLink(peer, std::move(link));
        } else {
          reactor->LinkFailed(peer, joined.message());
        }
      },
      nb::arg("peer"), nb::arg("half"), nb::arg("socket"), nb::arg("offer"), nb::arg("description"),
      nb::arg("link_key"), nb::arg("client"), nb::arg("encrypt"),
      "Takes over the socket and uses up `half`.");
}

}  // namespace jaxcoll
