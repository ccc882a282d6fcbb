#include "testing/harness.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "gpu/device/kernels.h"
#include "gpu/host/runtime_cuda.h"

namespace jaxcoll::cuda {
namespace {

constexpr int kPoison = 0xa5;  // what outputs hold before a call

size_t Bytes(const CallShape::Array& array) {
  return static_cast<size_t>(array.elements()) * ItemBytes(array.dtype);
}

cudaStream_t StreamOf(void* stream) { return static_cast<cudaStream_t>(stream); }

// Bytes below 0x40, at random: numbers of moderate size in every dtype. Zeros, or one byte
// throughout, would run cooler and faster.
Status FillWithNoise(void* memory, size_t bytes) {
  static const std::string& noise = *new std::string([] {
    std::string made(1 << 20, '\0');
    uint64_t state = 0x9e3779b97f4a7c15;
    for (char& c : made) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      c = static_cast<char>((state >> 56) & 0x3f);
    }
    return made;
  }());
  auto* const to = static_cast<unsigned char*>(memory);
  size_t filled = std::min(noise.size(), bytes);
  cudaError_t error = cudaMemcpy(to, noise.data(), filled, cudaMemcpyHostToDevice);
  while (error == cudaSuccess && filled < bytes) {  // doubling: a copy per MiB would take seconds
    const size_t more = std::min(filled, bytes - filled);
    error = cudaMemcpy(to + filled, to, more, cudaMemcpyDeviceToDevice);
    filled += more;
  }
  return ToStatus(error, "filling a buffer");
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Two events around what is enqueued between them.
class Stopwatch {
 public:
  Stopwatch() {
    status_ = ToStatus(cudaEventCreate(&begin_), "creating an event");
    if (status_.ok()) status_ = ToStatus(cudaEventCreate(&end_), "creating an event");
  }
  ~Stopwatch() {
    if (begin_ != nullptr) (void)cudaEventDestroy(begin_);
    if (end_ != nullptr) (void)cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // Seconds that `enqueue` takes on the device.
  template <typename F>
  StatusOr<double> Time(cudaStream_t stream, F enqueue) {
    if (!status_.ok()) return status_;
    float ms = 0;
    cudaError_t error = cudaEventRecord(begin_, stream);
    if (error == cudaSuccess) error = enqueue();
    if (error == cudaSuccess) error = cudaEventRecord(end_, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(end_);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin_, end_);
    if (error != cudaSuccess) return ToStatus(error, "timing");
    return ms / 1e3;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  Status status_;
};

}  // namespace

DeviceBuffers::~DeviceBuffers() {
  for (void* pointer : pointers_) (void)cudaFree(pointer);
}

StatusOr<void*> DeviceBuffers::Allocate(size_t bytes) {
  void* pointer = nullptr;
  const cudaError_t error = cudaMalloc(&pointer, std::max<size_t>(bytes, 16));
  if (error != cudaSuccess) return ToStatus(error, "allocating " + std::to_string(bytes) + " B");
  pointers_.push_back(pointer);
  return pointer;
}

Harness::Harness(CallSpec spec, CallShape shape, const HarnessOptions& options)
    : spec_(std::move(spec)), shape_(std::move(shape)), options_(options) {}

Harness::~Harness() {
  const DeviceScope scope(options_.ordinal);
  for (void* stream : streams_) (void)cudaStreamDestroy(StreamOf(stream));
}

StatusOr<std::unique_ptr<Harness>> Harness::Create(CallSpec spec, const CallShape& shape,
                                                   const HarnessOptions& options) {
  std::unique_ptr<Harness> harness(new Harness(std::move(spec), shape, options));
  if (Status status = harness->Init(); !status.ok()) return status;
  return harness;
}

Status Harness::Init() {
  const DeviceScope scope(options_.ordinal);
  const int world_size = static_cast<int>(spec_.group_size);
  if (world_size < 1 || world_size > kMaxTableRanks) return InvalidArgument("1 to 256 ranks");
  int sm_count = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, options_.ordinal);
  if (error != cudaSuccess) return ToStatus(error, "counting multiprocessors");
  // All blocks of all ranks must be resident together. Every kernel fits an SM once.
  const int most = std::max(1, sm_count / world_size);
  GpuCommunicatorOptions options;
  options.staged = options_.staged;
  options.max_blocks = options_.max_blocks == 0 ? most : std::min(options_.max_blocks, most);
  options.workspace_bytes = options_.workspace_bytes;
  options.timeout_s = options_.timeout_s;
  std::vector<Member> members;
  for (int rank = 0; rank < world_size; ++rank) members.push_back({rank, 0, options_.ordinal});
  StatusOr<std::unique_ptr<GpuCommunicator>> communicator =
      GpuCommunicator::Create(members, 0, options, nullptr, CudaRuntime());
  if (!communicator.ok()) return communicator.status();
  communicator_ = std::move(*communicator);
  StatusOr<std::unique_ptr<GroupCall>> call =
      GroupCall::Create(*communicator_, spec_, shape_, "", spec_.collective, options_.interpret);
  if (!call.ok()) return call.status();
  call_ = std::move(*call);
  const int streams = options_.mode == HarnessMode::kStreams ? world_size : 1;
  for (int i = 0; i < streams; ++i) {
    cudaStream_t stream = nullptr;
    error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) return ToStatus(error, "creating a stream");
    streams_.push_back(stream);
  }
  return Status();
}

StatusOr<Harness::Set> Harness::MakeSet(DeviceBuffers& buffers) const {
  Set set;
  for (int rank = 0; rank < ranks(); ++rank) {
    set.inputs.emplace_back();
    set.outputs.emplace_back();
    for (const CallShape::Array& array : shape_.inputs) {
      StatusOr<void*> pointer = buffers.Allocate(Bytes(array));
      if (!pointer.ok()) return pointer.status();
      set.inputs.back().push_back(*pointer);
    }
    for (const CallShape::Array& array : shape_.outputs) {
      StatusOr<void*> pointer = buffers.Allocate(Bytes(array));
      if (!pointer.ok()) return pointer.status();
      set.outputs.back().push_back(*pointer);
    }
  }
  for (int launch = 0; launch < call_->launches(); ++launch) {
    std::string parameters;  // one rank's behind the other's
    for (int rank = 0; rank < ranks(); ++rank) {
      StatusOr<Launch> bound = call_->Bind(rank, launch, OperandsOf(set, rank));
      if (!bound.ok()) return bound.status();
      parameters.append(static_cast<const char*>(bound->data()), bound->bytes());
    }
    StatusOr<void*> pointer = buffers.Allocate(parameters.size());
    if (!pointer.ok()) return pointer.status();
    const cudaError_t error =
        cudaMemcpy(*pointer, parameters.data(), parameters.size(), cudaMemcpyHostToDevice);
    if (error != cudaSuccess) return ToStatus(error, "copying parameters");
    set.parameters.push_back(*pointer);
  }
  return set;
}

Operands Harness::OperandsOf(const Set& set, int rank) const {
  return {set.inputs[rank].data(), set.outputs[rank].data()};
}

Status Harness::Start(const Set& set, int leave_out) {
  if (options_.mode == HarnessMode::kGrid) return StartAll(set);
  for (int rank = 0; rank < ranks(); ++rank) {
    if (rank == leave_out) continue;
    Status status = call_->Enqueue(rank, streams_[rank], OperandsOf(set, rank));
    if (!status.ok()) return status;
  }
  return Status();
}

// All ranks in one launch, on a device that has room for all blocks together: refused otherwise.
Status Harness::StartAll(const Set& set) {
  for (int launch = 0; launch < call_->launches(); ++launch) {
    StatusOr<Launch> bound = call_->Bind(0, launch, OperandsOf(set, 0));
    if (!bound.ok()) return bound.status();
    void* all = set.parameters[launch];
    void* arguments[] = {const_cast<void*>(bound->data()), &all};
    const cudaError_t error = cudaLaunchCooperativeKernel(
        FunctionOf(bound->kernel), dim3(bound->blocks, ranks()), dim3(ThreadsOf(bound->kernel)),
        arguments, 0, StreamOf(streams_[0]));
    if (error != cudaSuccess) return ToStatus(error, "starting a kernel for all ranks at once");
  }
  return Status();
}

StatusOr<std::vector<std::vector<std::string>>> Harness::Run(
    const std::vector<std::vector<std::string>>& inputs, int calls, int leave_out) {
  const DeviceScope scope(options_.ordinal);
  if (static_cast<int>(inputs.size()) != ranks()) {
    return InvalidArgument("inputs of " + std::to_string(inputs.size()) + " ranks");
  }
  DeviceBuffers buffers;
  StatusOr<Set> set = MakeSet(buffers);
  if (!set.ok()) return set.status();
  for (int rank = 0; rank < ranks(); ++rank) {
    if (inputs[rank].size() != shape_.inputs.size()) {
      return InvalidArgument("more inputs than the shape has");
    }
    for (size_t i = 0; i < shape_.inputs.size(); ++i) {
      if (inputs[rank][i].size() != Bytes(shape_.inputs[i])) {
        return InvalidArgument("the size of an input does not match its shape");
      }
      const cudaError_t error = cudaMemcpy(set->inputs[rank][i], inputs[rank][i].data(),
                                           inputs[rank][i].size(), cudaMemcpyHostToDevice);
      if (error != cudaSuccess) return ToStatus(error, "copying an input");
    }
  }
  for (int call = 0; call < calls; ++call) {
    for (int rank = 0; rank < ranks(); ++rank) {
      for (size_t i = 0; i < shape_.outputs.size(); ++i) {
        const cudaError_t error =
            cudaMemset(set->outputs[rank][i], kPoison, Bytes(shape_.outputs[i]));
        if (error != cudaSuccess) return ToStatus(error, "poisoning an output");
      }
    }
    cudaError_t error = cudaDeviceSynchronize();  // memset returns before it has ended
    if (error != cudaSuccess) return ToStatus(error, "poisoning the outputs");
    if (Status status = Start(*set, leave_out); !status.ok()) return status;
    error = cudaDeviceSynchronize();
    if (error != cudaSuccess) return ToStatus(error, "running a collective");
  }
  std::vector<std::vector<std::string>> outputs(ranks());
  for (int rank = 0; rank < ranks(); ++rank) {
    for (size_t i = 0; i < shape_.outputs.size(); ++i) {
      std::string bytes(Bytes(shape_.outputs[i]), '\0');
      const cudaError_t error =
          cudaMemcpy(bytes.data(), set->outputs[rank][i], bytes.size(), cudaMemcpyDeviceToHost);
      if (error != cudaSuccess) return ToStatus(error, "copying an output");
      outputs[rank].push_back(std::move(bytes));
    }
  }
  return outputs;
}

StatusOr<std::vector<double>> Harness::Time(int chain, int samples, int sets) {
  if (options_.mode != HarnessMode::kGrid) return InvalidArgument("only a grid can be timed");
  if (sets < 1 || chain < 1 || chain % sets != 0) {
    return InvalidArgument("a chain of calls takes all sets of operands equally often");
  }
  const DeviceScope scope(options_.ordinal);
  DeviceBuffers buffers;
  std::vector<Set> all;
  for (int i = 0; i < sets; ++i) {
    StatusOr<Set> set = MakeSet(buffers);
    if (!set.ok()) return set.status();
    for (int rank = 0; rank < ranks(); ++rank) {
      for (size_t v = 0; v < shape_.inputs.size(); ++v) {
        Status status = FillWithNoise(set->inputs[rank][v], Bytes(shape_.inputs[v]));
        if (!status.ok()) return status;
      }
    }
    all.push_back(std::move(*set));
  }
  cudaError_t error = cudaDeviceSynchronize();  // the stream below does not wait for the fills
  if (error != cudaSuccess) return ToStatus(error, "filling the inputs");
  const cudaStream_t stream = StreamOf(streams_[0]);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (error != cudaSuccess) return ToStatus(error, "capturing a graph");
  Status started;
  for (int i = 0; i < chain && started.ok(); ++i) started = Start(all[i % sets], -1);
  error = cudaStreamEndCapture(stream, &graph);
  if (!started.ok()) return started;
  if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  if (error != cudaSuccess) return ToStatus(error, "capturing a graph");
  std::vector<double> seconds;
  Status status;
  {
    Stopwatch stopwatch;
    for (int i = -2; i < samples && status.ok(); ++i) {  // two to warm up
      StatusOr<double> took = stopwatch.Time(stream, [&] { return cudaGraphLaunch(exec, stream); });
      if (!took.ok()) status = took.status();
      if (took.ok() && i >= 0) seconds.push_back(*took / chain);
    }
  }
  (void)cudaGraphExecDestroy(exec);
  if (!status.ok()) return status;
  return seconds;
}

std::vector<std::string> Harness::Causes() const {
  const std::optional<std::string> cause = communicator_->Cause();
  return cause ? std::vector<std::string>{*cause} : std::vector<std::string>{};
}

StatusOr<double> CopyBandwidth(int ordinal, uint64_t bytes, int samples) {
  const DeviceScope scope(ordinal);
  DeviceBuffers buffers;
  StatusOr<void*> from = buffers.Allocate(bytes);
  if (!from.ok()) return from.status();
  StatusOr<void*> to = buffers.Allocate(bytes);
  if (!to.ok()) return to.status();
  if (Status status = FillWithNoise(*from, bytes); !status.ok()) return status;
  Stopwatch stopwatch;
  std::vector<double> rates;
  for (int i = -2; i < samples; ++i) {
    StatusOr<double> took = stopwatch.Time(nullptr, [&] {
      return cudaMemcpyAsync(*to, *from, bytes, cudaMemcpyDeviceToDevice, nullptr);
    });
    if (!took.ok()) return took.status();
    if (i >= 0) rates.push_back(2.0 * static_cast<double>(bytes) / *took);
  }
  return Median(std::move(rates));
}

StatusOr<DeviceInfo> GetDeviceInfo(int ordinal) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal);
  if (error != cudaSuccess) return ToStatus(error, "reading a device's properties");
  return DeviceInfo{properties.name, properties.multiProcessorCount, properties.l2CacheSize,
                    properties.major * 10 + properties.minor, properties.totalGlobalMem};
}

}  // namespace jaxcoll::cuda
