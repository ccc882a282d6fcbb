#include "transport/rdma/verbs.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "transport/link_error.h"

namespace jaxcoll::verbs {
namespace {

constexpr const char* kInstall =
    "install libibverbs1 and ibverbs-providers (Debian) or rdma-core (others)";

// "16 MiB", "no limit"
std::string LockedMemoryLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
  if (limit.rlim_cur == RLIM_INFINITY) return "no limit";
  return std::to_string(limit.rlim_cur >> 10) + " KiB";
}

Status RegistrationFailed(const std::string& device, const std::string& what, int error) {
  std::string message =
      "registering " + what + " with RDMA device " + device + " failed: " + std::strerror(error);
  if (error == ENOMEM || error == EAGAIN || error == EPERM) {
    message += "; a process may lock " + LockedMemoryLimit() +
               " of memory here (`ulimit -l`): raise it to unlimited for this user, e.g. in "
               "/etc/security/limits.conf or the container's settings";
  }
  return Status(StatusCode::kUnavailable, message);
}

}  // namespace

StatusOr<Library> LoadFrom(const char* file) {
  void* const handle = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const why = ::dlerror();
    return Status(StatusCode::kUnavailable, std::string("libibverbs cannot be loaded (") +
                                                (why == nullptr ? file : why) + "); " + kInstall);
  }
  Library library{};
  std::string missing;
  const auto find = [&](auto& function, const char* name, const char* version) {
    void* const symbol = ::dlvsym(handle, name, version);
    if (symbol == nullptr) missing += std::string(missing.empty() ? "" : ", ") + name;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  // The versions whose layouts verbs_abi.h declares.
  constexpr const char* kVersion = "IBVERBS_1.1";
  find(library.get_device_list, "ibv_get_device_list", kVersion);
  find(library.free_device_list, "ibv_free_device_list", kVersion);
  find(library.get_device_name, "ibv_get_device_name", kVersion);
  find(library.open_device, "ibv_open_device", kVersion);
  find(library.close_device, "ibv_close_device", kVersion);
  find(library.query_port, "ibv_query_port", kVersion);
  find(library.alloc_pd, "ibv_alloc_pd", kVersion);
  find(library.dealloc_pd, "ibv_dealloc_pd", kVersion);
  find(library.reg_mr, "ibv_reg_mr", kVersion);
  find(library.dereg_mr, "ibv_dereg_mr", kVersion);
  find(library.create_comp_channel, "ibv_create_comp_channel", "IBVERBS_1.0");
  find(library.destroy_comp_channel, "ibv_destroy_comp_channel", "IBVERBS_1.0");
  find(library.create_cq, "ibv_create_cq", kVersion);
  find(library.destroy_cq, "ibv_destroy_cq", kVersion);
  find(library.get_cq_event, "ibv_get_cq_event", kVersion);
  find(library.ack_cq_events, "ibv_ack_cq_events", kVersion);
  find(library.create_qp, "ibv_create_qp", kVersion);
  find(library.modify_qp, "ibv_modify_qp", kVersion);
  find(library.destroy_qp, "ibv_destroy_qp", kVersion);
  find(library.get_async_event, "ibv_get_async_event", kVersion);
  find(library.ack_async_event, "ibv_ack_async_event", kVersion);
  find(library.fork_init, "ibv_fork_init", kVersion);
  find(library.wc_status_str, "ibv_wc_status_str", kVersion);
  find(library.event_type_str, "ibv_event_type_str", kVersion);
  if (!missing.empty()) {
    ::dlclose(handle);
    return Status(StatusCode::kUnavailable,
                  std::string(file) + " lacks " + missing + "; " + kInstall);
  }
  library.reg_dmabuf_mr = reinterpret_cast<decltype(library.reg_dmabuf_mr)>(
      ::dlvsym(handle, "ibv_reg_dmabuf_mr", "IBVERBS_1.12"));
  return library;
}

namespace {
std::atomic<const Library*> for_tests{nullptr};
}

void UseForTests(const Library* library) { for_tests = library; }

StatusOr<const Library*> Load() {
  if (const Library* const library = for_tests) return library;
  static const StatusOr<Library>* const loaded = [] {
    auto* const library = new StatusOr<Library>(LoadFrom("libibverbs.so.1"));
    // For kernels before 5.12, where a fork would take registered pages away from the parent. It
    // fails only where that cannot be had; our own memory is kept out of children in any case.
    if (library->ok()) (*library)->fork_init();
    return library;
  }();
  if (!loaded->ok()) return loaded->status();
  return &**loaded;
}

// --- devices ------------------------------------------------------------------------------------

StatusOr<std::shared_ptr<OpenDevice>> OpenDevice::Open(const std::string& name) {
  const StatusOr<const Library*> loaded = Load();
  if (!loaded.ok()) return loaded.status();
  const Library& library = **loaded;

  static std::mutex& mutex = *new std::mutex;
  static auto& open = *new std::map<std::pair<int, std::string>, std::weak_ptr<OpenDevice>>;
  std::lock_guard lock(mutex);
  // By process: what was opened before a fork is of no use after it.
  std::weak_ptr<OpenDevice>& known = open[{::getpid(), name}];
  if (std::shared_ptr<OpenDevice> device = known.lock()) return device;

  int count = 0;
  Device** const list = library.get_device_list(&count);
  if (list == nullptr) return SystemError("ibv_get_device_list", errno);
  Context* context = nullptr;
  int error = ENODEV;
  for (int i = 0; i < count; ++i) {
    if (name != library.get_device_name(list[i])) continue;
    context = library.open_device(list[i]);
    error = errno;
  }
  library.free_device_list(list);
  if (context == nullptr) {
    return Status(StatusCode::kUnavailable,
                  "RDMA device " + name + " cannot be opened: " + std::strerror(error) +
                      "; are /dev/infiniband/uverbs* there (in a container, too), may this user "
                      "open them, and is its provider library installed?");
  }
  // Whoever looks for events must not wait for one.
  const int flags = ::fcntl(context->async_fd, F_GETFL);
  ::fcntl(context->async_fd, F_SETFL, flags | O_NONBLOCK);
  auto device = std::make_shared<OpenDevice>(library, context, name);
  known = device;
  return device;
}

OpenDevice::OpenDevice(const Library& library, Context* context, std::string name)
    : library_(library), context_(context), name_(std::move(name)), pid_(::getpid()) {}

OpenDevice::~OpenDevice() {
  if (::getpid() == pid_) library_.close_device(context_);
}

OpenDevice::Trouble OpenDevice::Look(uint32_t qp_num, int port) {
  std::lock_guard lock(mutex_);
  for (AsyncEvent event; library_.get_async_event(context_, &event) == 0;) {
    const std::string what = library_.event_type_str(event.event_type);
    switch (event.event_type) {
      case kEventDeviceFatal:
      case kEventCqErr:
        device_trouble_ = what;
        break;
      case kEventQpFatal:
      case kEventQpReqErr:
      case kEventQpAccessErr:
        qp_trouble_[event.element.qp->qp_num] = what;
        break;
      case kEventPortErr:
      case kEventPortActive:
        port_down_[event.element.port_num] = event.event_type == kEventPortErr;
        break;
      default:
        break;
    }
    library_.ack_async_event(&event);
  }
  Trouble trouble;
  trouble.fatal = device_trouble_;
  const auto qp = qp_trouble_.find(qp_num);
  if (trouble.fatal.empty() && qp != qp_trouble_.end()) trouble.fatal = qp->second;
  const auto down = port_down_.find(port);
  trouble.port_down = down != port_down_.end() && down->second;
  return trouble;
}

void OpenDevice::Forget(uint32_t qp_num) {
  std::lock_guard lock(mutex_);
  qp_trouble_.erase(qp_num);
}

// --- memory -------------------------------------------------------------------------------------

StatusOr<std::unique_ptr<Domain>> Domain::Make(std::shared_ptr<OpenDevice> device) {
  Pd* const pd = device->library().alloc_pd(device->context());
  if (pd == nullptr) return SystemError("ibv_alloc_pd on " + device->name(), errno);
  return std::make_unique<Domain>(std::move(device), pd);
}

Domain::Domain(std::shared_ptr<OpenDevice> device, Pd* pd) : device_(std::move(device)), pd_(pd) {}

Domain::~Domain() { device_->library().dealloc_pd(pd_); }

StatusOr<std::unique_ptr<Region>> Region::Register(const Domain& domain, void* address,
                                                   size_t bytes, int access) {
  const Library& library = domain.device()->library();
  Mr* const mr = library.reg_mr(domain.pd(), address, bytes, access);
  if (mr == nullptr) {
    return RegistrationFailed(domain.device()->name(),
                              std::to_string((bytes + 1023) >> 10) + " KiB of memory", errno);
  }
  return std::make_unique<Region>(library, mr);
}

StatusOr<std::unique_ptr<Region>> Region::RegisterDmabuf(const Domain& domain, int fd,
                                                         uint64_t offset, size_t bytes,
                                                         uint64_t iova, int access) {
  const Library& library = domain.device()->library();
  if (library.reg_dmabuf_mr == nullptr) {
    return Status(StatusCode::kUnavailable,
                  "device memory cannot be registered: this libibverbs has no ibv_reg_dmabuf_mr, "
                  "which needs rdma-core 34");
  }
  Mr* const mr = library.reg_dmabuf_mr(domain.pd(), offset, bytes, iova, fd, access);
  if (mr == nullptr) return RegistrationFailed(domain.device()->name(), "a dma-buf", errno);
  return std::make_unique<Region>(library, mr);
}

}  // namespace jaxcoll::verbs
