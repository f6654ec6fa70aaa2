// What a rank calls: checked for sense when it is called, and compared between ranks before any
// data moves, so that a program whose ranks disagree gets an error naming both calls instead of
// wrong numbers.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <ATen/core/Tensor.h>

#include "parallel/comm/communicator.h"

namespace shoal {

enum class CollectiveKind : int32_t {
  kBarrier,
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast,
  kAllToAll,
  kSplit,
  kSend,
  kRecv,
};

// Plain data: it is written into memory that other processes read.
struct Signature {
  CollectiveKind kind = CollectiveKind::kBarrier;
  ReduceOp op = ReduceOp::kSum;
  at::ScalarType dtype = at::kByte;
  int32_t root = 0;       // The other rank of a Send or Recv
  int64_t numel = 0;      // Of the tensor of size (n) in communicator.h; of `in` for AllToAll
  uint64_t sequence = 0;  // How many collectives came before on this communicator

  bool operator==(const Signature&) const = default;
};

// "AllReduce(sum, float32, 1000 elements), call 12"
std::string Describe(const Signature& signature);

// "ranks disagree: rank 0 calls AllReduce(...), call 3; rank 1 calls Broadcast(...), call 3"
std::string Disagreement(int rank, const Signature& call, int other, const Signature& others);

// One signature a rank. Throws CommError naming the first rank that differs from rank 0, and both
// calls.
void CheckSameSignature(std::span<const Signature> ranks);

// These check one rank's arguments (dtype, device, contiguity, sizes, overlap), throw CommError
// saying what is wrong with them, and return the signature without its sequence number. `device` is
// where tensors must lie.
Signature CheckAllReduce(const at::Tensor& tensor, ReduceOp op, at::Device device = at::kCPU);
Signature CheckAllGather(const at::Tensor& out, const at::Tensor& in, int size, int rank,
                         at::Device device = at::kCPU);
Signature CheckReduceScatter(const at::Tensor& out, const at::Tensor& in, ReduceOp op, int size,
                             int rank, at::Device device = at::kCPU);
Signature CheckBroadcast(const at::Tensor& tensor, int root, int size,
                         at::Device device = at::kCPU);
Signature CheckAllToAll(const at::Tensor& out, const at::Tensor& in, int size,
                        at::Device device = at::kCPU);
// `verb` is "Send" or "Recv".
void CheckPointToPoint(const char* verb, const at::Tensor& tensor, int peer, int size, int rank,
                       at::Device device = at::kCPU);

// Bytes that one rank sends in a call, by the count of CommCounters.
int64_t BytesSent(const Signature& signature, int size, int rank);

}  // namespace shoal
