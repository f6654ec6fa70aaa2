#include "parallel/comm/signature.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"

namespace shoal {
namespace {

const char* Name(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::kBarrier:
      return "Barrier";
    case CollectiveKind::kAllReduce:
      return "AllReduce";
    case CollectiveKind::kAllGather:
      return "AllGather";
    case CollectiveKind::kReduceScatter:
      return "ReduceScatter";
    case CollectiveKind::kBroadcast:
      return "Broadcast";
    case CollectiveKind::kAllToAll:
      return "AllToAll";
    case CollectiveKind::kSplit:
      return "Split";
    case CollectiveKind::kSend:
      return "Send";
    case CollectiveKind::kRecv:
      return "Recv";
  }
  return "unknown";
}

const char* Name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kMax:
      return "max";
    case ReduceOp::kMin:
      return "min";
  }
  return "unknown";
}

[[noreturn]] void Refuse(const char* call, const std::string& why) {
  throw CommError(absl::StrCat(call, ": ", why));
}

void CheckMovable(const char* call, const at::Tensor& tensor, at::Device device) {
  if (!tensor.defined()) Refuse(call, "tensor is undefined");
  if (tensor.device() != device) {
    Refuse(call, absl::StrCat("tensor is on ", tensor.device().str(),
                              "; this call moves memory of ", device.str()));
  }
  if (!tensor.is_contiguous()) Refuse(call, "tensor is not contiguous; pass a contiguous one");
}

void CheckReducible(const char* call, at::ScalarType dtype) {
  if (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf ||
      dtype == at::kLong)
    return;
  Refuse(call, absl::StrCat("cannot reduce ", DtypeName(dtype),
                            "; use float32, float64, bfloat16, float16 or int64"));
}

void CheckPair(const char* call, const at::Tensor& out, int64_t out_numel, const at::Tensor& in,
               int64_t in_numel, at::Device device) {
  CheckMovable(call, out, device);
  CheckMovable(call, in, device);
  if (out.scalar_type() != in.scalar_type()) {
    Refuse(call, absl::StrCat("out is ", DtypeName(out.scalar_type()), ", in is ",
                              DtypeName(in.scalar_type())));
  }
  if (out.numel() != out_numel || in.numel() != in_numel) {
    Refuse(call, absl::StrCat("out has ", out.numel(), " elements and in has ", in.numel(),
                              ", expected ", out_numel, " and ", in_numel));
  }
}

const char* Begin(const at::Tensor& tensor) {
  return static_cast<const char*>(tensor.const_data_ptr());
}

bool Overlap(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  return Begin(a) < Begin(b) + b.nbytes() && Begin(b) < Begin(a) + a.nbytes();
}

void CheckInPlace(const char* call, const at::Tensor& whole, const at::Tensor& slice, int rank) {
  if (Overlap(whole, slice) && Begin(slice) != Begin(whole) + rank * slice.nbytes()) {
    Refuse(call, absl::StrCat("in and out overlap, but not as slice ", rank, " of the larger one"));
  }
}

void CheckRoot(const char* call, const char* what, int root, int size) {
  if (root < 0 || root >= size) {
    Refuse(call, absl::StrCat(what, " ", root, " is not a rank of this group of ", size));
  }
}

}  // namespace

std::string Describe(const Signature& s) {
  std::string text = absl::StrCat(Name(s.kind), "(");
  const bool reduces =
      s.kind == CollectiveKind::kAllReduce || s.kind == CollectiveKind::kReduceScatter;
  if (reduces) absl::StrAppend(&text, Name(s.op), ", ");
  if (s.kind != CollectiveKind::kBarrier && s.kind != CollectiveKind::kSplit) {
    absl::StrAppend(&text, DtypeName(s.dtype), ", ", s.numel, " elements");
  }
  if (s.kind == CollectiveKind::kBroadcast) absl::StrAppend(&text, ", root ", s.root);
  if (s.kind == CollectiveKind::kSend) absl::StrAppend(&text, ", to rank ", s.root);
  if (s.kind == CollectiveKind::kRecv) absl::StrAppend(&text, ", from rank ", s.root);
  return absl::StrCat(text, "), call ", s.sequence);
}

std::string Disagreement(int rank, const Signature& call, int other, const Signature& others) {
  return absl::StrCat("ranks disagree: rank ", rank, " calls ", Describe(call), "; rank ", other,
                      " calls ", Describe(others));
}

void CheckSameSignature(std::span<const Signature> ranks) {
  for (size_t rank = 1; rank < ranks.size(); ++rank) {
    if (ranks[rank] != ranks[0])
      throw CommError(Disagreement(0, ranks[0], static_cast<int>(rank), ranks[rank]));
  }
}

Signature CheckAllReduce(const at::Tensor& tensor, ReduceOp op, at::Device device) {
  CheckMovable("AllReduce", tensor, device);
  CheckReducible("AllReduce", tensor.scalar_type());
  return {.kind = CollectiveKind::kAllReduce,
          .op = op,
          .dtype = tensor.scalar_type(),
          .numel = tensor.numel()};
}

Signature CheckAllGather(const at::Tensor& out, const at::Tensor& in, int size, int rank,
                         at::Device device) {
  CheckPair("AllGather", out, size * in.numel(), in, in.numel(), device);
  CheckInPlace("AllGather", out, in, rank);
  return {.kind = CollectiveKind::kAllGather, .dtype = in.scalar_type(), .numel = in.numel()};
}

Signature CheckReduceScatter(const at::Tensor& out, const at::Tensor& in, ReduceOp op, int size,
                             int rank, at::Device device) {
  CheckPair("ReduceScatter", out, out.numel(), in, size * out.numel(), device);
  CheckReducible("ReduceScatter", in.scalar_type());
  CheckInPlace("ReduceScatter", in, out, rank);
  return {.kind = CollectiveKind::kReduceScatter,
          .op = op,
          .dtype = in.scalar_type(),
          .numel = out.numel()};
}

Signature CheckBroadcast(const at::Tensor& tensor, int root, int size, at::Device device) {
  CheckMovable("Broadcast", tensor, device);
  CheckRoot("Broadcast", "root", root, size);
  return {.kind = CollectiveKind::kBroadcast,
          .dtype = tensor.scalar_type(),
          .root = root,
          .numel = tensor.numel()};
}

Signature CheckAllToAll(const at::Tensor& out, const at::Tensor& in, int size, at::Device device) {
  CheckPair("AllToAll", out, in.numel(), in, in.numel(), device);
  if (in.numel() % size != 0) {
    Refuse("AllToAll", absl::StrCat(in.numel(), " elements do not divide into ", size, " slices"));
  }
  if (Overlap(out, in)) Refuse("AllToAll", "in and out overlap");
  return {.kind = CollectiveKind::kAllToAll, .dtype = in.scalar_type(), .numel = in.numel()};
}

void CheckPointToPoint(const char* verb, const at::Tensor& tensor, int peer, int size, int rank,
                       at::Device device) {
  CheckMovable(verb, tensor, device);
  CheckRoot(verb, "peer", peer, size);
  if (peer == rank) Refuse(verb, absl::StrCat("rank ", rank, " is this rank"));
}

int64_t BytesSent(const Signature& s, int size, int rank) {
  const int64_t bytes = s.numel * ElementBytes(s.dtype);
  switch (s.kind) {
    case CollectiveKind::kAllReduce:
      return 2 * (bytes - bytes / size);
    case CollectiveKind::kAllGather:
    case CollectiveKind::kReduceScatter:
      return bytes * (size - 1);
    case CollectiveKind::kBroadcast:
      return size > 1 && rank == s.root ? bytes : 0;
    case CollectiveKind::kAllToAll:
      return bytes - bytes / size;
    default:
      return 0;
  }
}

}  // namespace shoal
