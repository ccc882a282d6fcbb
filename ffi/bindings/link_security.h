// Python's description of how a link is protected.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "transport/crypto.h"
#include "transport/link.h"

namespace jaxcoll {

// Raises ValueError without a whole key: no job may run over an unprotected link.
inline TcpSecurity SecurityOf(const nanobind::bytes& link_key, bool client, bool encrypt) {
  if (link_key.size() != crypto::kSecretBytes) {
    throw nanobind::value_error("a link key has 32 bytes");
  }
  return {std::string(link_key.c_str(), link_key.size()), client, encrypt};
}

}  // namespace jaxcoll
