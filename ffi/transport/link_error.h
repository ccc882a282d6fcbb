// What a link says when it ends, and the limits that all transports share.
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

inline Status PeerIsGone(int peer, const std::string& description, int error) {
  return Status(StatusCode::kUnavailable,
                PeerName(peer, description) + " is gone" +
                    (error == 0 ? std::string() : std::string(": ") + std::strerror(error)));
}

inline Status PeerBrokeProtocol(int peer, const std::string& description, const std::string& how) {
  return Status(StatusCode::kInternal, PeerName(peer, description) + " broke the protocol: " + how);
}

}  // namespace jaxcoll
