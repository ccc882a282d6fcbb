// Whether CUDA can be used here. The query itself needs no driver.
#pragma once

#include <string>

namespace jaxcoll::cuda {

struct DriverInfo {
  bool driver = false;                          // a driver that this build's runtime can use
  std::string problem;                          // why there is none
  int runtime_version = 0, driver_version = 0;  // 13000 is 13.0
  int devices = 0;
};
DriverInfo GetDriverInfo();

}  // namespace jaxcoll::cuda
