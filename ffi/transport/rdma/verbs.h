// libibverbs, loaded at first use: a build never needs it, and a machine without it only lacks this
// transport.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/status.h"
#include "transport/rdma/verbs_abi.h"

namespace jaxcoll::verbs {

// The library's functions, as in its manual pages.
struct Library {
  Device** (*get_device_list)(int* count);
  void (*free_device_list)(Device** list);
  const char* (*get_device_name)(Device* device);
  Context* (*open_device)(Device* device);
  int (*close_device)(Context* context);
  int (*query_port)(Context* context, uint8_t port, PortAttr* attr);
  Pd* (*alloc_pd)(Context* context);
  int (*dealloc_pd)(Pd* pd);
  Mr* (*reg_mr)(Pd* pd, void* address, size_t length, int access);
  int (*dereg_mr)(Mr* mr);
  CompChannel* (*create_comp_channel)(Context* context);
  int (*destroy_comp_channel)(CompChannel* channel);
  Cq* (*create_cq)(Context* context, int cqe, void* cq_context, CompChannel* channel, int vector);
  int (*destroy_cq)(Cq* cq);
  int (*get_cq_event)(CompChannel* channel, Cq** cq, void** cq_context);
  void (*ack_cq_events)(Cq* cq, unsigned count);
  Qp* (*create_qp)(Pd* pd, QpInitAttr* attr);
  int (*modify_qp)(Qp* qp, QpAttr* attr, int mask);
  int (*destroy_qp)(Qp* qp);
  int (*get_async_event)(Context* context, AsyncEvent* event);
  void (*ack_async_event)(AsyncEvent* event);
  int (*fork_init)();
  const char* (*wc_status_str)(uint32_t status);
  const char* (*event_type_str)(uint32_t event);
  // Since rdma-core 34; else null.
  Mr* (*reg_dmabuf_mr)(Pd* pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access);
};

// The library, or the reason why it cannot be used and the package to install. Loaded once, never
// unloaded.
StatusOr<const Library*> Load();
// For tests: from the file of that name, each time anew.
StatusOr<Library> LoadFrom(const char* file);
// For tests: what Load() returns from here on; null: the system's again.
void UseForTests(const Library* library);

// An open device, one per process and device, shared by all links.
//
// Thread rule: any thread. Its events are read by whoever looks first and remembered for all.
class OpenDevice {
 public:
  static StatusOr<std::shared_ptr<OpenDevice>> Open(const std::string& name);
  OpenDevice(const Library& library, Context* context, std::string name);
  OpenDevice(const OpenDevice&) = delete;
  OpenDevice& operator=(const OpenDevice&) = delete;
  ~OpenDevice();

  const Library& library() const { return library_; }
  Context* context() const { return context_; }
  const std::string& name() const { return name_; }
  int event_fd() const { return context_->async_fd; }

  struct Trouble {
    std::string fatal;       // of the device or the queue pair; empty: none
    bool port_down = false;  // which may pass
  };
  // Reads what the device has reported; what is known of the queue pair and its port.
  Trouble Look(uint32_t qp_num, int port);
  // The queue pair is about to be destroyed; its number may be given out again.
  void Forget(uint32_t qp_num);

 private:
  const Library& library_;
  Context* const context_;
  const std::string name_;
  const int pid_;

  std::mutex mutex_;
  std::string device_trouble_;
  std::map<uint32_t, std::string> qp_trouble_;
  std::map<int, bool> port_down_;
};

// The scope of memory keys: the queue pairs of one domain, and they alone, take its keys.
class Domain {
 public:
  static StatusOr<std::unique_ptr<Domain>> Make(std::shared_ptr<OpenDevice> device);
  Domain(std::shared_ptr<OpenDevice> device, Pd* pd);
  Domain(const Domain&) = delete;
  Domain& operator=(const Domain&) = delete;
  ~Domain();

  const std::shared_ptr<OpenDevice>& device() const { return device_; }
  Pd* pd() const { return pd_; }

 private:
  const std::shared_ptr<OpenDevice> device_;
  Pd* const pd_;
};

// Memory that the NIC may read, and with kAccessRemoteWrite peers may write. The owner must keep
// the memory until this object is destroyed: were it freed and mapped anew before, the NIC would go
// on with the old pages.
class Region {
 public:
  // `access` 0 lets the NIC read, and nobody write.
  static StatusOr<std::unique_ptr<Region>> Register(const Domain& domain, void* address,
                                                    size_t bytes, int access);
  // Registers a device's memory: `fd` is a dma-buf, `offset` where the region begins in it. Peers
  // address it from `iova` on.
  static StatusOr<std::unique_ptr<Region>> RegisterDmabuf(const Domain& domain, int fd,
                                                          uint64_t offset, size_t bytes,
                                                          uint64_t iova, int access);
  Region(const Library& library, Mr* mr) : library_(library), mr_(mr) {}
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() { library_.dereg_mr(mr_); }

  uint32_t lkey() const { return mr_->lkey; }
  uint32_t rkey() const { return mr_->rkey; }

 private:
  const Library& library_;
  Mr* const mr_;
};

}  // namespace jaxcoll::verbs
