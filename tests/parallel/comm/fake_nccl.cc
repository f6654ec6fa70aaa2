#include "tests/parallel/comm/fake_nccl.h"

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "tests/fake_device/fake_device.h"

namespace {

enum class Kind { kAllReduce, kAllGather, kReduceScatter, kBroadcast, kPairs, kSplit };

struct Pair {
  bool sends;
  void* data;
  size_t bytes;
  int peer;
};

struct Call {
  Kind kind;
  const void* in = nullptr;
  void* out = nullptr;
  size_t count = 0;
  ncclDataType_t type = ncclInt8;
  int root = 0;
  std::vector<Pair> pairs = {};
  int color = 0, key = 0;
  ncclComm_t* part = nullptr;
};

// All ranks' calls; call k of each belongs together.
struct Group {
  explicit Group(int size) : calls(size) {}
  std::vector<std::vector<Call>> calls;  // By rank
  size_t done = 0;
  int joined = 0;
};

std::mutex mutex;                                // For all groups
std::map<int64_t, std::weak_ptr<Group>> groups;  // By unique id
std::atomic<bool> broken = false;

}  // namespace

struct ncclComm {
  std::shared_ptr<Group> group;
  int rank;

  int size() const { return static_cast<int>(group->calls.size()); }
  bool in_progress() const {
    return group->joined < size() || group->calls[rank].size() > group->done;
  }
};

namespace {

size_t Bytes(ncclDataType_t type) {
  return type == ncclInt8 ? 1 : type == ncclFloat32 ? 4 : 8;  // What shoal asks for
}

template <typename T>
void AddAll(const std::vector<Call*>& calls, size_t begin, size_t count, std::vector<char>& sums) {
  sums.resize(count * sizeof(T));
  T* sum = reinterpret_cast<T*>(sums.data());
  for (size_t i = 0; i < count; ++i) {
    sum[i] = 0;  // From the last rank to the first: an order that is not Shoal's own
    for (auto call = calls.rbegin(); call != calls.rend(); ++call)
      sum[i] += static_cast<const T*>((*call)->in)[begin + i];
  }
}

std::vector<char> Sum(const std::vector<Call*>& calls, size_t begin, size_t count) {
  std::vector<char> sums;
  if (calls[0]->type == ncclFloat32) AddAll<float>(calls, begin, count, sums);
  if (calls[0]->type == ncclFloat64) AddAll<double>(calls, begin, count, sums);
  if (calls[0]->type == ncclInt64) AddAll<int64_t>(calls, begin, count, sums);
  return sums;
}

void MovePairs(const std::vector<Call*>& calls) {
  for (size_t sender = 0; sender < calls.size(); ++sender) {
    std::map<int, size_t> next;  // Of the receiver's receives from this sender
    for (const Pair& send : calls[sender]->pairs) {
      if (!send.sends) continue;
      size_t skip = next[send.peer]++;
      for (const Pair& receive : calls[send.peer]->pairs) {
        if (receive.sends || receive.peer != static_cast<int>(sender) || skip-- > 0) continue;
        std::memcpy(receive.data, send.data, std::min(send.bytes, receive.bytes));
        break;
      }
    }
  }
}

void SplitAll(const std::vector<Call*>& calls) {
  std::map<int, std::vector<std::pair<int, int>>> parts;  // Colour: (key, rank)
  for (size_t rank = 0; rank < calls.size(); ++rank) {
    if (calls[rank]->color != NCCL_SPLIT_NOCOLOR)
      parts[calls[rank]->color].push_back({calls[rank]->key, static_cast<int>(rank)});
  }
  for (auto& [color, members] : parts) {
    std::sort(members.begin(), members.end());
    auto group = std::make_shared<Group>(static_cast<int>(members.size()));
    group->joined = static_cast<int>(members.size());
    for (size_t rank = 0; rank < members.size(); ++rank)
      *calls[members[rank].second]->part = new ncclComm{group, static_cast<int>(rank)};
  }
}

void Do(const std::vector<Call*>& calls) {
  const shoal::FakeMemoryOpen open;
  const Call& first = *calls[0];
  const size_t bytes = first.count * Bytes(first.type);
  switch (first.kind) {
    case Kind::kAllReduce: {
      const std::vector<char> sums = Sum(calls, 0, first.count);
      for (Call* call : calls) std::memcpy(call->out, sums.data(), bytes);
      return;
    }
    case Kind::kReduceScatter: {
      std::vector<std::vector<char>> slices;
      for (size_t rank = 0; rank < calls.size(); ++rank)
        slices.push_back(Sum(calls, rank * first.count, first.count));
      for (size_t rank = 0; rank < calls.size(); ++rank)
        std::memcpy(calls[rank]->out, slices[rank].data(), bytes);
      return;
    }
    case Kind::kAllGather:
      for (Call* reader : calls) {
        for (size_t rank = 0; rank < calls.size(); ++rank)
          std::memmove(static_cast<char*>(reader->out) + rank * bytes, calls[rank]->in, bytes);
      }
      return;
    case Kind::kBroadcast:
      for (Call* call : calls) std::memmove(call->out, calls[first.root]->in, bytes);
      return;
    case Kind::kPairs:
      return MovePairs(calls);
    case Kind::kSplit:
      return SplitAll(calls);
  }
}

ncclResult_t Post(ncclComm_t comm, Call call) {
  const std::lock_guard lock(mutex);
  if (comm == nullptr || comm->in_progress()) return ncclInvalidUsage;
  Group& group = *comm->group;
  group.calls[comm->rank].push_back(call);
  const size_t index = group.calls[comm->rank].size() - 1;
  std::vector<Call*> together;
  for (std::vector<Call>& of_rank : group.calls) {
    if (of_rank.size() <= index) return ncclInProgress;
    together.push_back(&of_rank[index]);
  }
  for (Call* other : together) {
    if (other->kind != call.kind) return ncclInProgress;  // For ever
    call.count = std::min(call.count, other->count);
  }
  for (Call* other : together) other->count = call.count;
  Do(together);
  ++group.done;
  return ncclSuccess;
}

thread_local int grouped = 0;
thread_local ncclComm_t grouped_comm = nullptr;
thread_local std::vector<Pair> pairs;

ncclResult_t AddPair(ncclComm_t comm, Pair pair) {
  if (grouped == 0) return Post(comm, {.kind = Kind::kPairs, .pairs = {pair}});
  grouped_comm = comm;
  pairs.push_back(pair);
  return ncclSuccess;
}

}  // namespace

namespace shoal {

void BreakFakeNccl() { broken = true; }
void MendFakeNccl() { broken = false; }

}  // namespace shoal

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<int64_t> last{0};
  const int64_t value = ++last;
  std::memcpy(id->internal, &value, sizeof(value));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidArgument;
  int64_t value;
  std::memcpy(&value, id.internal, sizeof(value));
  const std::lock_guard lock(mutex);
  std::shared_ptr<Group> group = groups[value].lock();
  if (group == nullptr) groups[value] = group = std::make_shared<Group>(size);
  ++group->joined;
  *comm = new ncclComm{group, rank};
  return ncclInProgress;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part, ncclConfig_t*) {
  *part = nullptr;
  return Post(comm, {.kind = Kind::kSplit, .color = color, .key = key, .part = part});
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard lock(mutex);
  *state = broken ? ncclRemoteError : comm->in_progress() ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard lock(mutex);
  return comm->in_progress() ? ncclInvalidUsage : ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
  if (op != ncclSum) return ncclInvalidArgument;
  return Post(comm, {.kind = Kind::kAllReduce, .in = in, .out = out, .count = count, .type = type});
}

ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
  if (op != ncclSum) return ncclInvalidArgument;
  return Post(comm,
              {.kind = Kind::kReduceScatter, .in = in, .out = out, .count = count, .type = type});
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t) {
  return Post(comm, {.kind = Kind::kAllGather, .in = in, .out = out, .count = count, .type = type});
}

ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t) {
  return Post(
      comm,
      {.kind = Kind::kBroadcast, .in = in, .out = out, .count = count, .type = type, .root = root});
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t) {
  return AddPair(comm, {true, const_cast<void*>(data), count * Bytes(type), peer});
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
  return AddPair(comm, {false, data, count * Bytes(type), peer});
}

ncclResult_t ncclGroupStart() {
  ++grouped;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--grouped > 0) return ncclSuccess;
  return Post(std::exchange(grouped_comm, nullptr),
              {.kind = Kind::kPairs, .pairs = std::exchange(pairs, {})});
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited" : "invalid call";
}

const char* ncclGetLastError(ncclComm_t) { return "fake"; }

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

}  // extern "C"
