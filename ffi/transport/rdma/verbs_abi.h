// What libibverbs' binary interface looks like, as far as it is used here: the layouts that
// IBVERBS_1.1 has had since 2006 and cannot change. Declared here so that a build needs no header
// of rdma-core; tests/cpp/transport/verbs_test.cc compares them with that header where there is
// one.
//
// Names follow the header's without their prefix: ibv_send_wr is SendWr.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jaxcoll::verbs {

// Opaque: only pointers to them are passed on.
struct Device;
struct Pd;
struct Srq;

union Gid {
  uint8_t raw[16];
  struct {
    uint64_t subnet_prefix;  // big-endian, both
    uint64_t interface_id;
  } global;
};

struct Sge {
  uint64_t addr;
  uint32_t length;
  uint32_t lkey;
};

enum WrOpcode : uint32_t { kWrRdmaWrite = 0, kWrRdmaWriteWithImm = 1 };
enum SendFlags : uint32_t { kSendSignaled = 1 << 1, kSendSolicited = 1 << 2, kSendInline = 1 << 3 };

struct SendWr {
  uint64_t wr_id;
  SendWr* next;
  Sge* sg_list;
  int num_sge;
  uint32_t opcode;
  uint32_t send_flags;
  uint32_t imm_data;  // big-endian
  union {
    struct {
      uint64_t remote_addr;
      uint32_t rkey;
    } rdma;
    uint64_t others[4];
  } wr;
  uint64_t others[7];  // of other kinds of queue pairs and requests
};

struct RecvWr {
  uint64_t wr_id;
  RecvWr* next;
  Sge* sg_list;
  int num_sge;
};

enum WcStatus : uint32_t {
  kWcSuccess = 0,
  kWcLocProtErr = 4,
  kWcWrFlushErr = 5,
  kWcRemInvReqErr = 9,
  kWcRemAccessErr = 10,
  kWcRemOpErr = 11,
  kWcRetryExcErr = 12,
  kWcRnrRetryExcErr = 13,
};
enum WcOpcode : uint32_t { kWcRecvRdmaWithImm = (1 << 7) + 1 };

// opcode, byte_len, imm_data and wc_flags mean something only if status is kWcSuccess.
struct Wc {
  uint64_t wr_id;
  uint32_t status;
  uint32_t opcode;
  uint32_t vendor_err;
  uint32_t byte_len;
  uint32_t imm_data;  // big-endian
  uint32_t qp_num;
  uint32_t src_qp;
  uint32_t wc_flags;
  uint16_t pkey_index;
  uint16_t slid;
  uint8_t sl;
  uint8_t dlid_path_bits;
};

struct Context;

struct CompChannel {
  Context* context;
  int fd;
  int refcnt;
};

// Only the first member of it is read.
struct Cq {
  Context* context;
};

// Only its beginning.
struct Qp {
  Context* context;
  void* qp_context;
  Pd* pd;
  Cq* send_cq;
  Cq* recv_cq;
  Srq* srq;
  uint32_t handle;
  uint32_t qp_num;
};

struct Mr {
  Context* context;
  Pd* pd;
  void* addr;
  size_t length;
  uint32_t handle;
  uint32_t lkey;
  uint32_t rkey;
};

enum AccessFlags : int { kAccessLocalWrite = 1 << 0, kAccessRemoteWrite = 1 << 1 };

// What posts and polls does not go through the library's symbols but through these.
struct ContextOps {
  void* before_poll_cq[11];
  int (*poll_cq)(Cq* cq, int num_entries, Wc* wc);
  int (*req_notify_cq)(Cq* cq, int solicited_only);
  void* before_post_send[12];
  int (*post_send)(Qp* qp, SendWr* wr, SendWr** bad_wr);
  int (*post_recv)(Qp* qp, RecvWr* wr, RecvWr** bad_wr);
  void* after_post_recv[5];
};

// Only its beginning.
struct Context {
  Device* device;
  ContextOps ops;
  int cmd_fd;
  int async_fd;
  int num_comp_vectors;
};

struct QpCap {
  uint32_t max_send_wr;
  uint32_t max_recv_wr;
  uint32_t max_send_sge;
  uint32_t max_recv_sge;
  uint32_t max_inline_data;
};

enum QpType : uint32_t { kQptRc = 2 };

struct QpInitAttr {
  void* qp_context;
  Cq* send_cq;
  Cq* recv_cq;
  Srq* srq;
  QpCap cap;
  uint32_t qp_type;
  int sq_sig_all;
};

struct GlobalRoute {
  Gid dgid;
  uint32_t flow_label;
  uint8_t sgid_index;
  uint8_t hop_limit;
  uint8_t traffic_class;
};

struct AhAttr {
  GlobalRoute grh;
  uint16_t dlid;
  uint8_t sl;
  uint8_t src_path_bits;
  uint8_t static_rate;
  uint8_t is_global;
  uint8_t port_num;
};

enum QpState : uint32_t { kQpsInit = 1, kQpsRtr = 2, kQpsRts = 3, kQpsErr = 6 };

struct QpAttr {
  uint32_t qp_state;
  uint32_t cur_qp_state;
  uint32_t path_mtu;
  uint32_t path_mig_state;
  uint32_t qkey;
  uint32_t rq_psn;
  uint32_t sq_psn;
  uint32_t dest_qp_num;
  uint32_t qp_access_flags;
  QpCap cap;
  AhAttr ah_attr;
  AhAttr alt_ah_attr;
  uint16_t pkey_index;
  uint16_t alt_pkey_index;
  uint8_t en_sqd_async_notify;
  uint8_t sq_draining;
  uint8_t max_rd_atomic;
  uint8_t max_dest_rd_atomic;
  uint8_t min_rnr_timer;
  uint8_t port_num;
  uint8_t timeout;
  uint8_t retry_cnt;
  uint8_t rnr_retry;
  uint8_t alt_port_num;
  uint8_t alt_timeout;
  uint32_t rate_limit;
};

enum QpAttrMask : int {
  kQpState = 1 << 0,
  kQpAccessFlags = 1 << 3,
  kQpPkeyIndex = 1 << 4,
  kQpPort = 1 << 5,
  kQpAv = 1 << 7,
  kQpPathMtu = 1 << 8,
  kQpTimeout = 1 << 9,
  kQpRetryCnt = 1 << 10,
  kQpRnrRetry = 1 << 11,
  kQpRqPsn = 1 << 12,
  kQpMaxQpRdAtomic = 1 << 13,
  kQpMinRnrTimer = 1 << 15,
  kQpSqPsn = 1 << 16,
  kQpMaxDestRdAtomic = 1 << 17,
  kQpDestQpn = 1 << 20,
};

enum LinkLayer : uint8_t { kLinkLayerInfiniband = 1, kLinkLayerEthernet = 2 };
enum PortState : uint32_t { kPortActive = 4 };

// The library's symbol fills it up to `flags`.
struct PortAttr {
  uint32_t state;
  uint32_t max_mtu;
  uint32_t active_mtu;
  int gid_tbl_len;
  uint32_t port_cap_flags;
  uint32_t max_msg_sz;
  uint32_t bad_pkey_cntr;
  uint32_t qkey_viol_cntr;
  uint16_t pkey_tbl_len;
  uint16_t lid;
  uint16_t sm_lid;
  uint8_t lmc;
  uint8_t max_vl_num;
  uint8_t sm_sl;
  uint8_t subnet_timeout;
  uint8_t init_type_reply;
  uint8_t active_width;
  uint8_t active_speed;
  uint8_t phys_state;
  uint8_t link_layer;
  uint8_t flags;
  uint16_t port_cap_flags2;
};

enum EventType : uint32_t {
  kEventCqErr = 0,
  kEventQpFatal = 1,
  kEventQpReqErr = 2,
  kEventQpAccessErr = 3,
  kEventDeviceFatal = 8,
  kEventPortActive = 9,
  kEventPortErr = 10,
};

struct AsyncEvent {
  union {
    Cq* cq;
    Qp* qp;
    int port_num;
  } element;
  uint32_t event_type;
};

}  // namespace jaxcoll::verbs
