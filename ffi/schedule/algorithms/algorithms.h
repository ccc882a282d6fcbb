// Every algorithm: the layout it needs, and the ops of one rank on one channel's share of the
// chunks. The table in schedule.cc gives them their names.
//
// They are called for two ranks or more; alone, a rank copies. Rank `root`, 0 where there is none,
// must have an end of a message as large as any: see LargestMessage in schedule/world.h.
#pragma once

#include "schedule/op_list_builder.h"

namespace jaxcoll {

// direct.cc
Layout DirectAllReduceLayout(const ScheduleSpec& spec);
void DirectAllReduce(OpListBuilder& b);
Layout Direct2AllReduceLayout(const ScheduleSpec& spec);
void Direct2AllReduce(OpListBuilder& b);
Layout DirectReduceScatterLayout(const ScheduleSpec& spec);
void DirectReduceScatter(OpListBuilder& b);
Layout DirectReduceLayout(const ScheduleSpec& spec);
void DirectReduce(OpListBuilder& b);
void DirectAllGather(OpListBuilder& b);
void DirectAllToAll(OpListBuilder& b);
void DirectBroadcast(OpListBuilder& b);
void DirectPermute(OpListBuilder& b);

// ring.cc
Layout RingAllReduceLayout(const ScheduleSpec& spec);
void RingAllReduce(OpListBuilder& b);
Layout RingReduceScatterLayout(const ScheduleSpec& spec);
void RingReduceScatter(OpListBuilder& b);
void RingAllGather(OpListBuilder& b);

// recursive_doubling.cc
Layout RecursiveDoublingAllReduceLayout(const ScheduleSpec& spec);
void RecursiveDoublingAllReduce(OpListBuilder& b);
void RecursiveDoublingAllGather(OpListBuilder& b);

// recursive_halving.cc
Layout HalvingDoublingAllReduceLayout(const ScheduleSpec& spec);
void HalvingDoublingAllReduce(OpListBuilder& b);
Layout RecursiveHalvingReduceScatterLayout(const ScheduleSpec& spec);
void RecursiveHalvingReduceScatter(OpListBuilder& b);

// bruck.cc
void BruckAllGather(OpListBuilder& b);
Layout BruckAllToAllLayout(const ScheduleSpec& spec);
void BruckAllToAll(OpListBuilder& b);

// binomial.cc
void BinomialBroadcast(OpListBuilder& b);
Layout BinomialReduceLayout(const ScheduleSpec& spec);
void BinomialReduce(OpListBuilder& b);

// double_tree.cc
Layout DoubleTreeAllReduceLayout(const ScheduleSpec& spec);
void DoubleTreeAllReduce(OpListBuilder& b);

// hierarchical.cc
Layout HierarchicalAllReduceLayout(const ScheduleSpec& spec);
void HierarchicalAllReduce(OpListBuilder& b);
Layout HierarchicalHalvingAllReduceLayout(const ScheduleSpec& spec);
void HierarchicalHalvingAllReduce(OpListBuilder& b);
Layout HierarchicalTreeAllReduceLayout(const ScheduleSpec& spec);
void HierarchicalTreeAllReduce(OpListBuilder& b);

// hierarchical_all_gather.cc
Layout HierarchicalAllGatherLayout(const ScheduleSpec& spec);
void HierarchicalAllGather(OpListBuilder& b);

// hierarchical_all_to_all.cc
Layout HierarchicalAllToAllLayout(const ScheduleSpec& spec);
void HierarchicalAllToAll(OpListBuilder& b);

// bucket.cc
Layout BucketAllReduceLayout(const ScheduleSpec& spec);
void BucketAllReduce(OpListBuilder& b);
Layout BucketReduceScatterLayout(const ScheduleSpec& spec);
void BucketReduceScatter(OpListBuilder& b);
Layout BucketAllGatherLayout(const ScheduleSpec& spec);
void BucketAllGather(OpListBuilder& b);

// swing.cc
Status CheckSwing(const ScheduleSpec& spec);
Layout SwingAllReduceLayout(const ScheduleSpec& spec);
void SwingAllReduce(OpListBuilder& b);
Layout SwingReduceScatterLayout(const ScheduleSpec& spec);
void SwingReduceScatter(OpListBuilder& b);
Layout SwingAllGatherLayout(const ScheduleSpec& spec);
void SwingAllGather(OpListBuilder& b);
Status CheckSwingLatency(const ScheduleSpec& spec);
Layout SwingLatencyAllReduceLayout(const ScheduleSpec& spec);
void SwingLatencyAllReduce(OpListBuilder& b);

// bine.cc
void BineBroadcast(OpListBuilder& b);
Layout BineReduceLayout(const ScheduleSpec& spec);
void BineReduce(OpListBuilder& b);
Layout BineAllReduceLayout(const ScheduleSpec& spec);
void BineAllReduce(OpListBuilder& b);
Layout BineLatencyAllReduceLayout(const ScheduleSpec& spec);
void BineLatencyAllReduce(OpListBuilder& b);
Layout BineReduceScatterLayout(const ScheduleSpec& spec);
void BineReduceScatter(OpListBuilder& b);
void BineAllGather(OpListBuilder& b);

// pat.cc
void PatAllGather(OpListBuilder& b);
Layout PatReduceScatterLayout(const ScheduleSpec& spec);
void PatReduceScatter(OpListBuilder& b);

}  // namespace jaxcoll
