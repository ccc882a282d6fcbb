// The parts of the rdma transport that need no device: the library's binary interface, choosing
// ports, and what is said when something is missing.

#include "transport/rdma/verbs.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "transport/rdma/offer.h"
#include "transport/rdma/ports.h"
#include "transport/rdma/rdma.h"

// Last: some of the header's functions are macros.
#if __has_include(<infiniband/verbs.h>)
#include <infiniband/verbs.h>
#define JAXCOLL_HAS_VERBS_HEADER 1
#endif

namespace jaxcoll {
namespace {

namespace fs = std::filesystem;

#ifdef JAXCOLL_HAS_VERBS_HEADER
#define SAME_SIZE(ours, theirs) static_assert(sizeof(verbs::ours) == sizeof(theirs))
#define SAME_PLACE(ours, our_member, theirs, their_member)                            \
  static_assert(offsetof(verbs::ours, our_member) == offsetof(theirs, their_member)); \
  static_assert(sizeof(verbs::ours::our_member) == sizeof(theirs::their_member))
#define SAME(ours, theirs, member) SAME_PLACE(ours, member, theirs, member)
#define SAME_VALUE(ours, theirs) \
  static_assert(static_cast<int64_t>(verbs::ours) == static_cast<int64_t>(theirs))

SAME_SIZE(Gid, ibv_gid);
SAME_SIZE(Sge, ibv_sge);
SAME(Sge, ibv_sge, addr);
SAME(Sge, ibv_sge, length);
SAME(Sge, ibv_sge, lkey);
SAME_SIZE(SendWr, ibv_send_wr);
SAME(SendWr, ibv_send_wr, wr_id);
SAME(SendWr, ibv_send_wr, next);
SAME(SendWr, ibv_send_wr, sg_list);
SAME(SendWr, ibv_send_wr, num_sge);
SAME(SendWr, ibv_send_wr, opcode);
SAME(SendWr, ibv_send_wr, send_flags);
SAME(SendWr, ibv_send_wr, imm_data);
SAME(SendWr, ibv_send_wr, wr);
SAME(SendWr, ibv_send_wr, wr.rdma.rkey);
SAME_SIZE(RecvWr, ibv_recv_wr);
SAME(RecvWr, ibv_recv_wr, num_sge);
SAME_SIZE(Wc, ibv_wc);
SAME(Wc, ibv_wc, status);
SAME(Wc, ibv_wc, opcode);
SAME(Wc, ibv_wc, vendor_err);
SAME(Wc, ibv_wc, byte_len);
SAME(Wc, ibv_wc, imm_data);
SAME(Wc, ibv_wc, qp_num);
SAME(Wc, ibv_wc, wc_flags);
SAME_SIZE(CompChannel, ibv_comp_channel);
SAME(CompChannel, ibv_comp_channel, fd);
SAME(Cq, ibv_cq, context);
SAME(Qp, ibv_qp, context);
SAME(Qp, ibv_qp, qp_num);
SAME_SIZE(Mr, ibv_mr);
SAME(Mr, ibv_mr, lkey);
SAME(Mr, ibv_mr, rkey);
SAME_SIZE(ContextOps, ibv_context_ops);
SAME(ContextOps, ibv_context_ops, poll_cq);
SAME(ContextOps, ibv_context_ops, req_notify_cq);
SAME(ContextOps, ibv_context_ops, post_send);
SAME(ContextOps, ibv_context_ops, post_recv);
SAME(Context, ibv_context, ops);
SAME(Context, ibv_context, async_fd);
SAME_SIZE(QpCap, ibv_qp_cap);
SAME(QpCap, ibv_qp_cap, max_inline_data);
SAME_SIZE(QpInitAttr, ibv_qp_init_attr);
SAME(QpInitAttr, ibv_qp_init_attr, cap);
SAME(QpInitAttr, ibv_qp_init_attr, qp_type);
SAME(QpInitAttr, ibv_qp_init_attr, sq_sig_all);
SAME_SIZE(AhAttr, ibv_ah_attr);
SAME(AhAttr, ibv_ah_attr, grh.sgid_index);
SAME(AhAttr, ibv_ah_attr, grh.hop_limit);
SAME(AhAttr, ibv_ah_attr, grh.traffic_class);
SAME(AhAttr, ibv_ah_attr, dlid);
SAME(AhAttr, ibv_ah_attr, sl);
SAME(AhAttr, ibv_ah_attr, is_global);
SAME(AhAttr, ibv_ah_attr, port_num);
SAME_SIZE(QpAttr, ibv_qp_attr);
SAME(QpAttr, ibv_qp_attr, path_mtu);
SAME(QpAttr, ibv_qp_attr, rq_psn);
SAME(QpAttr, ibv_qp_attr, sq_psn);
SAME(QpAttr, ibv_qp_attr, dest_qp_num);
SAME(QpAttr, ibv_qp_attr, qp_access_flags);
SAME(QpAttr, ibv_qp_attr, ah_attr);
SAME(QpAttr, ibv_qp_attr, pkey_index);
SAME(QpAttr, ibv_qp_attr, max_rd_atomic);
SAME(QpAttr, ibv_qp_attr, max_dest_rd_atomic);
SAME(QpAttr, ibv_qp_attr, min_rnr_timer);
SAME(QpAttr, ibv_qp_attr, port_num);
SAME(QpAttr, ibv_qp_attr, timeout);
SAME(QpAttr, ibv_qp_attr, retry_cnt);
SAME(QpAttr, ibv_qp_attr, rnr_retry);
static_assert(sizeof(verbs::PortAttr) >= sizeof(ibv_port_attr));
SAME(PortAttr, ibv_port_attr, state);
SAME(PortAttr, ibv_port_attr, active_mtu);
SAME(PortAttr, ibv_port_attr, lid);
SAME(PortAttr, ibv_port_attr, link_layer);
SAME_SIZE(AsyncEvent, ibv_async_event);
SAME(AsyncEvent, ibv_async_event, element);
SAME(AsyncEvent, ibv_async_event, event_type);

SAME_VALUE(kWrRdmaWrite, IBV_WR_RDMA_WRITE);
SAME_VALUE(kWrRdmaWriteWithImm, IBV_WR_RDMA_WRITE_WITH_IMM);
SAME_VALUE(kSendSignaled, IBV_SEND_SIGNALED);
SAME_VALUE(kSendSolicited, IBV_SEND_SOLICITED);
SAME_VALUE(kSendInline, IBV_SEND_INLINE);
SAME_VALUE(kWcSuccess, IBV_WC_SUCCESS);
SAME_VALUE(kWcLocProtErr, IBV_WC_LOC_PROT_ERR);
SAME_VALUE(kWcWrFlushErr, IBV_WC_WR_FLUSH_ERR);
SAME_VALUE(kWcRemInvReqErr, IBV_WC_REM_INV_REQ_ERR);
SAME_VALUE(kWcRemAccessErr, IBV_WC_REM_ACCESS_ERR);
SAME_VALUE(kWcRemOpErr, IBV_WC_REM_OP_ERR);
SAME_VALUE(kWcRetryExcErr, IBV_WC_RETRY_EXC_ERR);
SAME_VALUE(kWcRnrRetryExcErr, IBV_WC_RNR_RETRY_EXC_ERR);
SAME_VALUE(kWcRecvRdmaWithImm, IBV_WC_RECV_RDMA_WITH_IMM);
SAME_VALUE(kAccessLocalWrite, IBV_ACCESS_LOCAL_WRITE);
SAME_VALUE(kAccessRemoteWrite, IBV_ACCESS_REMOTE_WRITE);
SAME_VALUE(kQptRc, IBV_QPT_RC);
SAME_VALUE(kQpsInit, IBV_QPS_INIT);
SAME_VALUE(kQpsRtr, IBV_QPS_RTR);
SAME_VALUE(kQpsRts, IBV_QPS_RTS);
SAME_VALUE(kQpsErr, IBV_QPS_ERR);
SAME_VALUE(kQpState, IBV_QP_STATE);
SAME_VALUE(kQpAccessFlags, IBV_QP_ACCESS_FLAGS);
SAME_VALUE(kQpPkeyIndex, IBV_QP_PKEY_INDEX);
SAME_VALUE(kQpPort, IBV_QP_PORT);
SAME_VALUE(kQpAv, IBV_QP_AV);
SAME_VALUE(kQpPathMtu, IBV_QP_PATH_MTU);
SAME_VALUE(kQpTimeout, IBV_QP_TIMEOUT);
SAME_VALUE(kQpRetryCnt, IBV_QP_RETRY_CNT);
SAME_VALUE(kQpRnrRetry, IBV_QP_RNR_RETRY);
SAME_VALUE(kQpRqPsn, IBV_QP_RQ_PSN);
SAME_VALUE(kQpMaxQpRdAtomic, IBV_QP_MAX_QP_RD_ATOMIC);
SAME_VALUE(kQpMinRnrTimer, IBV_QP_MIN_RNR_TIMER);
SAME_VALUE(kQpSqPsn, IBV_QP_SQ_PSN);
SAME_VALUE(kQpMaxDestRdAtomic, IBV_QP_MAX_DEST_RD_ATOMIC);
SAME_VALUE(kQpDestQpn, IBV_QP_DEST_QPN);
SAME_VALUE(kLinkLayerInfiniband, IBV_LINK_LAYER_INFINIBAND);
SAME_VALUE(kLinkLayerEthernet, IBV_LINK_LAYER_ETHERNET);
SAME_VALUE(kPortActive, IBV_PORT_ACTIVE);
SAME_VALUE(kEventCqErr, IBV_EVENT_CQ_ERR);
SAME_VALUE(kEventQpFatal, IBV_EVENT_QP_FATAL);
SAME_VALUE(kEventQpReqErr, IBV_EVENT_QP_REQ_ERR);
SAME_VALUE(kEventQpAccessErr, IBV_EVENT_QP_ACCESS_ERR);
SAME_VALUE(kEventDeviceFatal, IBV_EVENT_DEVICE_FATAL);
SAME_VALUE(kEventPortActive, IBV_EVENT_PORT_ACTIVE);
SAME_VALUE(kEventPortErr, IBV_EVENT_PORT_ERR);
#endif

TEST(VerbsTest, TheDeclarationsAreThoseOfTheHeader) {
#ifndef JAXCOLL_HAS_VERBS_HEADER
  GTEST_SKIP() << "no infiniband/verbs.h here (Debian: libibverbs-dev); nothing was compared";
#endif
  // Compared while this file was compiled.
}

TEST(VerbsTest, ALibraryThatIsMissingOrAnotherOneIsAReasonAndNoCrash) {
  const auto missing = verbs::LoadFrom("libjaxcoll_no_such_library.so");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), StatusCode::kUnavailable);
  EXPECT_NE(missing.status().message().find("libjaxcoll_no_such_library.so"), std::string::npos);
  EXPECT_NE(missing.status().message().find("install libibverbs1"), std::string::npos);
  const auto other = verbs::LoadFrom("libc.so.6");
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.status().message().find("libc.so.6 lacks ibv_get_device_list"), std::string::npos)
      << other.status().message();
}

TEST(VerbsTest, WithoutAUsableDeviceThereIsAReason) {
  RdmaConfig config;
  config.devices = "no_such_device";
  EXPECT_NE(WhyNoRdma(config, 4096), "");
  EXPECT_FALSE(RdmaLink::Prepare(config, 4096, "").ok());
}

// --- dma-buf ------------------------------------------------------------------------------------

struct DmabufCall {
  verbs::Pd* pd;
  uint64_t offset;
  size_t length;
  uint64_t iova;
  int fd;
  int access;
} dmabuf_call;
int deregistered = 0;
verbs::Mr fake_mr = {nullptr, nullptr, nullptr, 0, 0, 11, 22};

// A library of a device that takes dma-bufs: no device here does.
class DmabufTest : public testing::Test {
 protected:
  DmabufTest() {
    library.close_device = [](verbs::Context*) { return 0; };
    library.alloc_pd = [](verbs::Context*) { return reinterpret_cast<verbs::Pd*>(8); };
    library.dealloc_pd = [](verbs::Pd*) { return 0; };
    library.dereg_mr = [](verbs::Mr*) { return ++deregistered, 0; };
    library.reg_dmabuf_mr = [](verbs::Pd* pd, uint64_t offset, size_t length, uint64_t iova, int fd,
                               int access) -> verbs::Mr* {
      dmabuf_call = {pd, offset, length, iova, fd, access};
      if (fd >= 0) return &fake_mr;
      errno = EOPNOTSUPP;
      return nullptr;
    };
    auto device = std::make_shared<verbs::OpenDevice>(library, &context, "fake_0");
    auto made = verbs::Domain::Make(device);
    domain = std::move(*made);
  }

  verbs::Library library{};
  verbs::Context context{};
  std::unique_ptr<verbs::Domain> domain;
};

TEST_F(DmabufTest, IsRegisteredAsToldAndDeregisteredOnce) {
  deregistered = 0;
  {
    const auto region =
        verbs::Region::RegisterDmabuf(*domain, 5, 4096, 8192, 0x7000, verbs::kAccessRemoteWrite);
    ASSERT_TRUE(region.ok()) << region.status().message();
    EXPECT_EQ((*region)->lkey(), 11u);
    EXPECT_EQ((*region)->rkey(), 22u);
    EXPECT_EQ(dmabuf_call.pd, domain->pd());
    EXPECT_EQ(dmabuf_call.offset, 4096u);
    EXPECT_EQ(dmabuf_call.length, 8192u);
    EXPECT_EQ(dmabuf_call.iova, 0x7000u);
    EXPECT_EQ(dmabuf_call.fd, 5);
    EXPECT_EQ(dmabuf_call.access, int{verbs::kAccessRemoteWrite});
    EXPECT_EQ(deregistered, 0);
  }
  EXPECT_EQ(deregistered, 1);
}

TEST_F(DmabufTest, ARefusalOrAnOldLibraryIsAReason) {
  const auto refused = verbs::Region::RegisterDmabuf(*domain, -1, 0, 4096, 0, 0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().message(),
            "registering a dma-buf with RDMA device fake_0 failed: Operation not supported");
  library.reg_dmabuf_mr = nullptr;
  const auto old = verbs::Region::RegisterDmabuf(*domain, 5, 0, 4096, 0, 0);
  ASSERT_FALSE(old.ok());
  EXPECT_NE(old.status().message().find("needs rdma-core 34"), std::string::npos);
}

// --- ports --------------------------------------------------------------------------------------

// A folder that looks like /sys/class/infiniband.
class RdmaPortsTest : public testing::Test {
 protected:
  RdmaPortsTest() {
    std::string name = (fs::temp_directory_path() / "jaxcoll_ports_XXXXXX").string();
    folder = ::mkdtemp(name.data());
  }
  ~RdmaPortsTest() override { fs::remove_all(folder); }

  void Write(const fs::path& path, const std::string& text) {
    fs::create_directories((folder / path).parent_path());
    std::ofstream(folder / path) << text << '\n';
  }
  void AddPort(const std::string& device, int port, const std::string& layer,
               const std::string& state = "4: ACTIVE") {
    const fs::path at = fs::path(device) / "ports" / std::to_string(port);
    Write(at / "state", state);
    Write(at / "link_layer", layer);
  }
  void AddGid(const std::string& device, int port, int index, const std::string& gid,
              const std::string& type) {
    const fs::path at = fs::path(device) / "ports" / std::to_string(port);
    Write(at / "gids" / std::to_string(index), gid);
    if (!type.empty()) Write(at / "gid_attrs" / "types" / std::to_string(index), type);
  }
  // As a driver fills the table of a port with an IPv4 and an IPv6 address.
  void AddRoce(const std::string& device, const std::string& node = "") {
    AddPort(device, 1, "Ethernet");
    AddGid(device, 1, 0, "fe80:0000:0000:0000:0cef:feff:fe93:d76b", "IB/RoCE v1");
    AddGid(device, 1, 1, "fe80:0000:0000:0000:0cef:feff:fe93:d76b", "RoCE v2");
    AddGid(device, 1, 2, "0000:0000:0000:0000:0000:ffff:0a4d:0001", "IB/RoCE v1");
    AddGid(device, 1, 3, "0000:0000:0000:0000:0000:ffff:0a4d:0001", "RoCE v2");
    AddGid(device, 1, 10, "0000:0000:0000:0000:0000:ffff:0a4d:0002", "RoCE v2");
    AddGid(device, 1, 4, "0000:0000:0000:0000:0000:0000:0000:0000", "");
    if (!node.empty()) Write(fs::path(device) / "device" / "numa_node", node);
  }
  RdmaPorts Find(const std::string& devices = "", int gid_index = -1, int node = -1) {
    RdmaConfig config;
    config.devices = devices;
    config.gid_index = gid_index;
    config.sysfs = folder;
    return FindRdmaPorts(config, node);
  }
  static std::vector<std::string> Names(const RdmaPorts& ports) {
    std::vector<std::string> names;
    for (const RdmaPort& port : ports.usable) names.push_back(port.Name());
    return names;
  }

  fs::path folder;
};

using Strings = std::vector<std::string>;

TEST_F(RdmaPortsTest, NoFolderNoPorts) {
  EXPECT_TRUE(Find().usable.empty());
  RdmaConfig config;
  config.sysfs = folder / "none";
  EXPECT_TRUE(FindRdmaPorts(config, -1).usable.empty());
}

TEST_F(RdmaPortsTest, RoceTakesTheRoutableAddressOfVersion2) {
  AddRoce("mlx5_0");
  const RdmaPorts ports = Find();
  ASSERT_EQ(Names(ports), Strings{"mlx5_0:1"});
  EXPECT_TRUE(ports.usable[0].ethernet);
  EXPECT_EQ(ports.usable[0].gid_index, 3);
  EXPECT_EQ(GidText(ports.usable[0].gid), "0000:0000:0000:0000:0000:ffff:0a4d:0001");
  EXPECT_EQ(ports.usable[0].Fabric(), "RoCE");
}

TEST_F(RdmaPortsTest, TheGidIndexCanBeSet) {
  AddRoce("mlx5_0");
  EXPECT_EQ(Find("", 10).usable.at(0).gid_index, 10);
  const RdmaPorts none = Find("", 4);
  EXPECT_TRUE(none.usable.empty());
  EXPECT_EQ(none.left_out,
            Strings{"mlx5_0:1: entry 4 of its GID table, JAXCOLL_IB_GID_INDEX, is not in use"});
}

TEST_F(RdmaPortsTest, InfinibandPortsOfOneSubnetAreOfOneFabric) {
  AddPort("mlx5_0", 1, "InfiniBand");
  AddGid("mlx5_0", 1, 0, "fe80:0000:0000:0000:0002:c903:00a1:b2c3", "IB/RoCE v1");
  AddPort("mlx5_0", 2, "InfiniBand");
  AddGid("mlx5_0", 2, 0, "fec0:0000:0000:0001:0002:c903:00a1:b2c4", "IB/RoCE v1");
  const RdmaPorts ports = Find("", 7);  // JAXCOLL_IB_GID_INDEX is for RoCE
  ASSERT_EQ(Names(ports), (Strings{"mlx5_0:1", "mlx5_0:2"}));
  EXPECT_EQ(ports.usable[0].Fabric(), "InfiniBand fe80:0000:0000:0000");
  EXPECT_EQ(ports.usable[1].Fabric(), "InfiniBand fec0:0000:0000:0001");
}

TEST_F(RdmaPortsTest, PortsThatAreDownOrHaveNoAddressAreLeftOutWithTheReason) {
  AddPort("mlx5_0", 1, "Ethernet", "1: DOWN");
  AddPort("mlx5_1", 1, "Ethernet");
  const RdmaPorts ports = Find();
  EXPECT_TRUE(ports.usable.empty());
  EXPECT_EQ(ports.left_out,
            (Strings{"mlx5_0:1: its state is 1: DOWN",
                     "mlx5_1:1: its GID table is empty: does its network interface have an "
                     "address?"}));
}

TEST_F(RdmaPortsTest, IWarpIsLeftOut) {
  AddRoce("irdma0");
  Write("irdma0/node_type", "4: RNIC");
  AddRoce("mlx5_0");
  Write("mlx5_0/node_type", "1: CA");
  EXPECT_EQ(Names(Find()), Strings{"mlx5_0:1"});
  EXPECT_EQ(Find().left_out, Strings{"irdma0:1: it is neither InfiniBand nor RoCE (4: RNIC)"});
}

TEST_F(RdmaPortsTest, JaxcollIbHcaSelectsOrExcludes) {
  AddRoce("mlx5_0");
  AddRoce("mlx5_1");
  AddRoce("mlx5_10");
  EXPECT_EQ(Names(Find("mlx5_1")), Strings{"mlx5_1:1"});
  EXPECT_EQ(Names(Find("mlx5_1:1,mlx5_10")), (Strings{"mlx5_1:1", "mlx5_10:1"}));
  EXPECT_EQ(Names(Find("mlx5_1:2")), Strings{});
  EXPECT_EQ(Names(Find("^mlx5_1")), (Strings{"mlx5_0:1", "mlx5_10:1"}));
  EXPECT_EQ(
      Find("mlx5_1:1,mlx5_9,mlx5_0:2").left_out,
      (Strings{"mlx5_0:1: JAXCOLL_IB_HCA leaves it out", "mlx5_10:1: JAXCOLL_IB_HCA leaves it out",
               "mlx5_9: JAXCOLL_IB_HCA names it, but this host has no such port",
               "mlx5_0:2: JAXCOLL_IB_HCA names it, but this host has no such port"}));
}

TEST_F(RdmaPortsTest, TheNearestComeFirst) {
  AddRoce("mlx5_0", "0");
  AddRoce("mlx5_1", "1");
  AddRoce("mlx5_2", "1");
  EXPECT_EQ(Names(Find("", -1, 1)), (Strings{"mlx5_1:1", "mlx5_2:1", "mlx5_0:1"}));
  EXPECT_EQ(Names(Find("", -1, 0)), (Strings{"mlx5_0:1", "mlx5_1:1", "mlx5_2:1"}));
}

TEST(RdmaRetriesTest, AreATenthOfTheDeadlineWithinWhatFabricsNeed) {
  for (const double deadline_s : {0.5, 5.0, 20.0, 60.0, 300.0, 3600.0}) {
    const RdmaRetries retries = RetriesFor(deadline_s);
    const double all_s = 4.096e-6 * (1 << retries.ack_timeout) * (1 + retries.retry_count);
    EXPECT_GE(retries.ack_timeout, 14);
    EXPECT_LE(retries.ack_timeout, 20);
    if (retries.ack_timeout > 14) {
      EXPECT_LE(all_s, deadline_s / 10) << deadline_s;
    }
    EXPECT_LT(retries.rnr_retry_count, 7) << "7 is for ever";
  }
  EXPECT_GT(RetriesFor(300).ack_timeout, RetriesFor(20).ack_timeout);
}

// --- offers -------------------------------------------------------------------------------------

TEST(RdmaOfferTest, ComesBackAsItWasAndNothingElseIsTaken) {
  RdmaOffer offer{4096, 0x10000, 0x20000, {}};
  RailAddress rail{};
  std::snprintf(rail.device, sizeof(rail.device), "%s", "mlx5_0:1");
  std::snprintf(rail.fabric, sizeof(rail.fabric), "%s", "Ro\nCE");
  rail.mtu = 5;
  rail.qp_num = 17;
  rail.rkey = 99;
  offer.rails = {rail, RailAddress{}};
  const std::string text = offer.Encode();
  const auto read = RdmaOffer::Decode(text, 2);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->window, 0x10000u);
  ASSERT_EQ(read->rails.size(), 2u);
  EXPECT_STREQ(read->rails[0].device, "mlx5_0:1");
  EXPECT_STREQ(read->rails[0].fabric, "Ro?CE");
  EXPECT_EQ(read->rails[0].rkey, 99u);
  EXPECT_EQ(read->rails[1].mtu, 1) << "0 is no mtu";

  EXPECT_FALSE(RdmaOffer::Decode(text, 1).ok());
  EXPECT_FALSE(RdmaOffer::Decode(text + "x", 2).ok());
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(RdmaOffer::Decode(text.substr(0, size), 2).ok());
  }
  std::string other = text;
  other[0] ^= 1;
  EXPECT_FALSE(RdmaOffer::Decode(other, 2).ok());
}

}  // namespace
}  // namespace jaxcoll
