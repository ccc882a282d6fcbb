// The messages of a link when it ends, and the limits that all transports share.
#pragma once

#include <cstring>
#include <string>

#include "base/status.h"

namespace jaxcoll {

constexpr size_t kMaxTellBytes = size_t{64} << 10;

inline Status SystemError(const std::string& what, int error) {
  return Status(StatusCode::kInternal, what + " failed: " + std::strerror(error));
}

inline std::string PeerName(int peer, const std::string& description) {
  return "peer process " + std::to_string(peer) + " (" + description + ")";
}

// `cut`: what is known of the way it ended; empty: in order.
inline Status PeerIsGone(int peer, const std::string& description, int error,
                         const std::string& cut = "") {
  return Status(StatusCode::kUnavailable,
                PeerName(peer, description) + " is gone" +
                    (error == 0 ? std::string() : std::string(": ") + std::strerror(error)) +
                    (cut.empty() ? std::string() : "; " + cut));
}

inline Status PeerBrokeProtocol(int peer, const std::string& description, const std::string& how) {
  return Status(StatusCode::kInternal, PeerName(peer, description) + " broke the protocol: " + how);
}

// A check failed: `where` says which.
inline Status AlteredOnTheWay(int peer, const std::string& description, const std::string& where) {
  return Status(StatusCode::kInternal,
                PeerName(peer, description) + ": " + where +
                    " failed its check: it was altered on the way, or does not come from that peer;"
                    " nothing of it was used. Look at the network between the two hosts: a NIC, a "
                    "switch or a proxy that changes what passes, or an attacker");
}

// The peer said why, in a frame that was checked.
inline Status PeerEndedLink(int peer, const std::string& description, const std::string& why) {
  return Status(StatusCode::kUnavailable,
                PeerName(peer, description) + " has ended the link: " + why);
}

}  // namespace jaxcoll
