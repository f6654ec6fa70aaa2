#include "parallel/comm/host_collectives.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "parallel/comm/host_reduce.h"

namespace shoal {
namespace {

// Up to here a second barrier costs more than a copy.
constexpr int64_t kSmallBytes = 32 << 10;
constexpr int64_t kCacheLine = 64;

}  // namespace

struct HostCommunicator::Call {
  Signature signature;
  const std::byte* source = nullptr;
  Slot::Source mode = Slot::Source::kNone;
  bool met = false;
  bool any_direct = false;
  bool any_staged = false;
  std::vector<const std::byte*>
      direct;  // Every rank's source in this address space; nullptr: staged or none
};

HostCommunicator::HostCommunicator(std::shared_ptr<HostBackend> backend,
                                   std::shared_ptr<std::byte> region, int size, int rank,
                                   const CommOptions& options)
    : backend_(std::move(backend)),
      options_(options),
      group_(std::move(region), size, rank, options.timeout) {}

HostCommunicator::Call HostCommunicator::Begin(Signature signature, const void* source,
                                               int64_t source_bytes) {
  signature.sequence = sequence_++;
  Call call;
  call.signature = signature;
  call.source = static_cast<const std::byte*>(source);
  if (size() == 1) return call;
  Slot slot;
  slot.signature = signature;
  if (source != nullptr) {
    if (source_bytes > kSmallBytes) slot.location = backend_->Locate(call.source);
    slot.source = slot.location.segment != 0 ? Slot::Source::kDirect : Slot::Source::kStaged;
  }
  call.mode = slot.source;
  group_.slot(signature.sequence & 1, rank()) = slot;
  return call;
}

void HostCommunicator::Meet(Call& call) {
  call.met = true;
  std::vector<Signature> signatures;
  for (int peer = 0; peer < size(); ++peer) {
    signatures.push_back(group_.slot(call.signature.sequence & 1, peer).signature);
  }
  try {
    CheckSameSignature(signatures);
    call.direct.assign(size(), nullptr);
    for (int peer = 0; peer < size(); ++peer) {
      const Slot& slot = group_.slot(call.signature.sequence & 1, peer);
      call.any_staged |= slot.source == Slot::Source::kStaged;
      call.any_direct |= slot.source == Slot::Source::kDirect;
      if (peer == rank()) {
        call.direct[peer] = call.source;
      } else if (slot.source == Slot::Source::kDirect) {
        call.direct[peer] = backend_->Resolve(slot.location);
      }
    }
  } catch (const CommError& error) {
    group_.Break(error.what());
    throw;
  }
}

void HostCommunicator::Stage(const Call& call, CutBy cut, std::span<const Window> windows,
                             int64_t offset, int64_t chunk) {
  std::byte* staging = group_.staging(rank(), half_);
  auto copy = [&](const Window& window, std::byte* to) {
    const int64_t bytes = std::min(chunk, window.bytes - offset);
    if (bytes > 0) std::memcpy(to, call.source + window.begin + offset, bytes);
  };
  if (cut == CutBy::kSource) return copy(windows[rank()], staging);
  for (int reader = 0; reader < size(); ++reader) {
    if (reader != rank()) copy(windows[reader], staging + reader * chunk);
  }
}

void HostCommunicator::Pull(Call& call, CutBy cut, std::span<const Window> windows,
                            const Consume& consume) {
  int64_t longest = 0;
  for (const Window& window : windows) longest = std::max(longest, window.bytes);
  const bool by_reader = cut == CutBy::kReader;
  const int64_t staged_chunk = by_reader
                                   ? HostGroup::kStagingBytes / size() / kCacheLine * kCacheLine
                                   : HostGroup::kStagingBytes;
  std::vector<const std::byte*> sources(size());
  int64_t offset = 0;
  do {
    if (call.mode == Slot::Source::kStaged) Stage(call, cut, windows, offset, staged_chunk);
    group_.Barrier(call.signature);
    if (!call.met) Meet(call);
    const int64_t chunk = call.any_staged ? staged_chunk : longest;
    for (int peer = 0; peer < size(); ++peer) {
      sources[peer] = call.direct[peer] != nullptr
                          ? call.direct[peer] + windows[by_reader ? rank() : peer].begin + offset
                          : group_.staging(peer, half_) + (by_reader ? rank() * chunk : 0);
    }
    consume(offset, std::min(chunk, longest - offset), sources);
    half_ ^= 1;
    offset += chunk;
  } while (offset < longest);
}

void HostCommunicator::Gather(Call& call, std::span<const Window> windows,
                              std::span<std::byte* const> destinations) {
  Pull(call, CutBy::kSource, windows,
       [&](int64_t offset, int64_t chunk, std::span<const std::byte* const> sources) {
         for (int step = 0; step < size(); ++step) {
           const int peer = (rank() + step) % size();  // Ranks start at different sources
           const int64_t bytes = std::min(chunk, windows[peer].bytes - offset);
           std::byte* to = destinations[peer] + offset;
           if (bytes > 0 && to != sources[peer]) std::memcpy(to, sources[peer], bytes);
         }
       });
}

void HostCommunicator::End(const Call& call) {
  if (call.any_direct) group_.Barrier(call.signature);
}

void HostCommunicator::AllReduce(at::Tensor& tensor, ReduceOp op) {
  const Signature signature = CheckAllReduce(tensor, op);
  const TraceSpan span = Count("all-reduce", BytesSent(signature, size(), rank()));
  const int64_t bytes = tensor.nbytes();
  Call call = Begin(signature, tensor.const_data_ptr(), bytes);
  if (size() == 1) return;
  const int64_t element = tensor.element_size();
  std::byte* data = Bytes(tensor);
  if (bytes <= kSmallBytes) {
    const std::vector<Window> whole(size(), Window{0, bytes});
    Pull(call, CutBy::kSource, whole,
         [&](int64_t, int64_t, std::span<const std::byte* const> sources) {
           ReduceInOrder(op, signature.dtype, sources, data, tensor.numel());
         });
    return End(call);
  }
  const int64_t lines = (bytes + kCacheLine - 1) / kCacheLine;
  std::vector<Window> slices(size());
  std::vector<std::byte*> destinations(size());
  for (int64_t slice = 0; slice < size(); ++slice) {
    const int64_t begin = lines * slice / size() * kCacheLine;
    const int64_t end = std::min(bytes, lines * (slice + 1) / size() * kCacheLine);
    slices[slice] = {begin, end - begin};
    destinations[slice] = data + begin;
  }
  Pull(call, CutBy::kReader, slices,
       [&](int64_t offset, int64_t chunk, std::span<const std::byte* const> sources) {
         const int64_t mine = std::min(chunk, slices[rank()].bytes - offset);
         if (mine <= 0) return;
         ReduceInOrder(op, signature.dtype, sources, destinations[rank()] + offset, mine / element);
       });
  Gather(call, slices, destinations);
  End(call);
}

void HostCommunicator::ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) {
  const Signature signature = CheckReduceScatter(out, in, op, size(), rank());
  const TraceSpan span = Count("reduce-scatter", BytesSent(signature, size(), rank()));
  Call call = Begin(signature, in.const_data_ptr(), in.nbytes());
  std::byte* result = Bytes(out);
  if (size() == 1) {
    if (result != Bytes(in)) std::memcpy(result, Bytes(in), in.nbytes());
    return;
  }
  const int64_t element = in.element_size();
  const int64_t slice_bytes = out.nbytes();
  std::vector<Window> slices(size());
  for (int64_t slice = 0; slice < size(); ++slice)
    slices[slice] = {slice * slice_bytes, slice_bytes};
  Pull(call, CutBy::kReader, slices,
       [&](int64_t offset, int64_t chunk, std::span<const std::byte* const> sources) {
         ReduceInOrder(op, signature.dtype, sources, result + offset, chunk / element);
       });
  End(call);
}

void HostCommunicator::AllGather(at::Tensor& out, const at::Tensor& in) {
  const Signature signature = CheckAllGather(out, in, size(), rank());
  const TraceSpan span = Count("all-gather", BytesSent(signature, size(), rank()));
  const int64_t bytes = in.nbytes();
  Call call = Begin(signature, in.const_data_ptr(), bytes);
  std::byte* result = Bytes(out);
  if (size() == 1) {
    if (result != Bytes(in)) std::memcpy(result, Bytes(in), bytes);
    return;
  }
  const std::vector<Window> windows(size(), Window{0, bytes});
  std::vector<std::byte*> destinations(size());
  for (int64_t peer = 0; peer < size(); ++peer) destinations[peer] = result + peer * bytes;
  Gather(call, windows, destinations);
  End(call);
}

void HostCommunicator::Broadcast(at::Tensor& tensor, int root) {
  const Signature signature = CheckBroadcast(tensor, root, size());
  const TraceSpan span = Count("broadcast", BytesSent(signature, size(), rank()));
  const int64_t bytes = tensor.nbytes();
  const void* source = rank() == root ? tensor.const_data_ptr() : nullptr;
  Call call = Begin(signature, source, bytes);
  if (size() == 1) return;
  std::vector<Window> windows(size());
  windows[root].bytes = bytes;
  const std::vector<std::byte*> destinations(size(), Bytes(tensor));
  Gather(call, windows, destinations);
  End(call);
}

void HostCommunicator::AllToAll(at::Tensor& out, const at::Tensor& in) {
  const Signature signature = CheckAllToAll(out, in, size());
  const TraceSpan span = Count("all-to-all", BytesSent(signature, size(), rank()));
  Call call = Begin(signature, in.const_data_ptr(), in.nbytes());
  std::byte* result = Bytes(out);
  if (size() == 1) {
    if (in.nbytes() > 0) std::memcpy(result, Bytes(in), in.nbytes());
    return;
  }
  const int64_t slice_bytes = in.nbytes() / size();
  std::vector<Window> slices(size());
  for (int64_t slice = 0; slice < size(); ++slice)
    slices[slice] = {slice * slice_bytes, slice_bytes};
  Pull(call, CutBy::kReader, slices,
       [&](int64_t offset, int64_t chunk, std::span<const std::byte* const> sources) {
         if (chunk == 0) return;
         for (int64_t step = 0; step < size(); ++step) {
           const int64_t peer = (rank() + step) % size();
           std::memcpy(result + peer * slice_bytes + offset, sources[peer], chunk);
         }
       });
  End(call);
}

void HostCommunicator::Send(const at::Tensor& tensor, int destination) {
  CheckPointToPoint("Send", tensor, destination, size(), rank());
  const TraceSpan span = Count("send", tensor.nbytes());
  group_.Send(Bytes(tensor), tensor.nbytes(), static_cast<int32_t>(tensor.scalar_type()),
              destination);
}

void HostCommunicator::Recv(at::Tensor& tensor, int source) {
  CheckPointToPoint("Recv", tensor, source, size(), rank());
  const TraceSpan span = Count("receive", 0, tensor.nbytes());
  group_.Recv(Bytes(tensor), tensor.nbytes(), static_cast<int32_t>(tensor.scalar_type()), source);
}

void HostCommunicator::Barrier() {
  const TraceSpan span = Count("barrier", 0);
  Call call = Begin({.kind = CollectiveKind::kBarrier}, nullptr, 0);
  if (size() == 1) return;
  group_.Barrier(call.signature);
  Meet(call);
}

template <typename T>
std::vector<T> HostCommunicator::Exchange(const T& mine) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kSmallBytes);
  Call call = Begin({.kind = CollectiveKind::kSplit}, &mine, sizeof(T));
  std::vector<T> all(size(), mine);
  if (size() == 1) return all;
  const std::vector<Window> windows(size(), Window{0, sizeof(T)});
  std::vector<std::byte*> destinations(size());
  for (int peer = 0; peer < size(); ++peer)
    destinations[peer] = reinterpret_cast<std::byte*>(&all[peer]);
  Gather(call, windows, destinations);
  return all;
}

std::unique_ptr<Communicator> HostCommunicator::Split(int color, int key) {
  struct Choice {
    int color, key;
  };
  const std::vector<Choice> choices = Exchange(Choice{color, key});
  std::vector<int> members;
  for (int peer = 0; peer < size(); ++peer) {
    if (color >= 0 && choices[peer].color == color) members.push_back(peer);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](int a, int b) { return choices[a].key < choices[b].key; });
  const int new_size = static_cast<int>(members.size());
  const bool leads = new_size > 0 && members[0] == rank();
  std::pair<std::shared_ptr<std::byte>, Location> created;
  std::shared_ptr<std::byte> region;
  try {
    if (leads) created = backend_->CreateRegion(new_size);
    const std::vector<Location> locations = Exchange(created.second);
    if (leads)
      region = std::move(created.first);
    else if (new_size > 0)
      region = backend_->OpenRegion(locations[members[0]], new_size);
    Exchange(0);  // All have opened what their leader holds
  } catch (const CommError& error) {
    group_.Break(error.what());
    throw;
  }
  if (new_size == 0) return nullptr;
  const int new_rank =
      static_cast<int>(std::find(members.begin(), members.end(), rank()) - members.begin());
  return std::make_unique<HostCommunicator>(backend_, std::move(region), new_size, new_rank,
                                            options_);
}

at::Tensor HostCommunicator::AllocateRegistered(int64_t numel, at::ScalarType dtype) {
  return backend_->Allocate(numel, dtype);
}

void HostCommunicator::Abort(int exit_code, const std::string& reason) {
  backend_->Abort(exit_code, reason);
  __builtin_unreachable();
}

}  // namespace shoal
