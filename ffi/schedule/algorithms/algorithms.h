// Every algorithm: the layout it needs, and the ops of one rank on one channel's share of the
// chunks. The table in schedule.cc gives them their names.
//
// They are called for two ranks or more; alone, a rank copies. Rank `root`, 0 where there is none,
// must have an end of a message as large as any: see LargestMessage in schedule/world.h.
#pragma once

#include "schedule/program_builder.h"

namespace jaxcoll {

// direct.cc
Layout DirectAllReduceLayout(const ScheduleSpec& spec);
void DirectAllReduce(ProgramBuilder& b);
Layout Direct2AllReduceLayout(const ScheduleSpec& spec);
void Direct2AllReduce(ProgramBuilder& b);
Layout DirectReduceScatterLayout(const ScheduleSpec& spec);
void DirectReduceScatter(ProgramBuilder& b);
Layout DirectReduceLayout(const ScheduleSpec& spec);
void DirectReduce(ProgramBuilder& b);
void DirectAllGather(ProgramBuilder& b);
void DirectAllToAll(ProgramBuilder& b);
void DirectBroadcast(ProgramBuilder& b);
void DirectPermute(ProgramBuilder& b);

// ring.cc
Layout RingAllReduceLayout(const ScheduleSpec& spec);
void RingAllReduce(ProgramBuilder& b);
Layout RingReduceScatterLayout(const ScheduleSpec& spec);
void RingReduceScatter(ProgramBuilder& b);
void RingAllGather(ProgramBuilder& b);

// recursive_doubling.cc
Layout RecursiveDoublingAllReduceLayout(const ScheduleSpec& spec);
void RecursiveDoublingAllReduce(ProgramBuilder& b);
void RecursiveDoublingAllGather(ProgramBuilder& b);

// recursive_halving.cc
Layout HalvingDoublingAllReduceLayout(const ScheduleSpec& spec);
void HalvingDoublingAllReduce(ProgramBuilder& b);
Layout RecursiveHalvingReduceScatterLayout(const ScheduleSpec& spec);
void RecursiveHalvingReduceScatter(ProgramBuilder& b);

// bruck.cc
void BruckAllGather(ProgramBuilder& b);
Layout BruckAllToAllLayout(const ScheduleSpec& spec);
void BruckAllToAll(ProgramBuilder& b);

// binomial.cc
void BinomialBroadcast(ProgramBuilder& b);
Layout BinomialReduceLayout(const ScheduleSpec& spec);
void BinomialReduce(ProgramBuilder& b);

// double_tree.cc
Layout DoubleTreeAllReduceLayout(const ScheduleSpec& spec);
void DoubleTreeAllReduce(ProgramBuilder& b);

// hierarchical.cc
Layout HierarchicalAllReduceLayout(const ScheduleSpec& spec);
void HierarchicalAllReduce(ProgramBuilder& b);
Layout HierarchicalHalvingAllReduceLayout(const ScheduleSpec& spec);
void HierarchicalHalvingAllReduce(ProgramBuilder& b);
Layout HierarchicalTreeAllReduceLayout(const ScheduleSpec& spec);
void HierarchicalTreeAllReduce(ProgramBuilder& b);

// hierarchical_all_gather.cc
Layout HierarchicalAllGatherLayout(const ScheduleSpec& spec);
void HierarchicalAllGather(ProgramBuilder& b);

// hierarchical_all_to_all.cc
Layout HierarchicalAllToAllLayout(const ScheduleSpec& spec);
void HierarchicalAllToAll(ProgramBuilder& b);

// bucket.cc
Layout BucketAllReduceLayout(const ScheduleSpec& spec);
void BucketAllReduce(ProgramBuilder& b);
Layout BucketReduceScatterLayout(const ScheduleSpec& spec);
void BucketReduceScatter(ProgramBuilder& b);
Layout BucketAllGatherLayout(const ScheduleSpec& spec);
void BucketAllGather(ProgramBuilder& b);

// swing.cc
Status CheckSwing(const ScheduleSpec& spec);
Layout SwingAllReduceLayout(const ScheduleSpec& spec);
void SwingAllReduce(ProgramBuilder& b);
Layout SwingReduceScatterLayout(const ScheduleSpec& spec);
void SwingReduceScatter(ProgramBuilder& b);
Layout SwingAllGatherLayout(const ScheduleSpec& spec);
void SwingAllGather(ProgramBuilder& b);
Status CheckSwingLatency(const ScheduleSpec& spec);
Layout SwingLatencyAllReduceLayout(const ScheduleSpec& spec);
void SwingLatencyAllReduce(ProgramBuilder& b);

// bine.cc
void BineBroadcast(ProgramBuilder& b);
Layout BineReduceLayout(const ScheduleSpec& spec);
void BineReduce(ProgramBuilder& b);
Layout BineAllReduceLayout(const ScheduleSpec& spec);
void BineAllReduce(ProgramBuilder& b);
Layout BineLatencyAllReduceLayout(const ScheduleSpec& spec);
void BineLatencyAllReduce(ProgramBuilder& b);
Layout BineReduceScatterLayout(const ScheduleSpec& spec);
void BineReduceScatter(ProgramBuilder& b);
void BineAllGather(ProgramBuilder& b);

// pat.cc
void PatAllGather(ProgramBuilder& b);
Layout PatReduceScatterLayout(const ScheduleSpec& spec);
void PatReduceScatter(ProgramBuilder& b);

}  // namespace jaxcoll
