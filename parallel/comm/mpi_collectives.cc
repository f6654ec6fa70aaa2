#include "parallel/comm/mpi_collectives.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include <ATen/ops/empty.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "core/dtype.h"
#include "core/tensor_memory.h"
#include "parallel/comm/comm_queue.h"
#include "parallel/comm/host_reduce.h"
#include "parallel/comm/pending_sends.h"

namespace shoal {
namespace {

enum Tag { kSignatureTag = 1, kHeaderTag = 2, kDataTag = 3 };

// `count` bytes in a row, the next such `stride` bytes further: one slice's part of a chunk.
class StridedBytes {
 public:
  StridedBytes(int count, int64_t stride) {
    MPI_Datatype row;
    MPI_Type_contiguous(count, MPI_BYTE, &row);
    MPI_Type_create_resized(row, 0, stride, &type_);
    MPI_Type_free(&row);
    MPI_Type_commit(&type_);
  }
  ~StridedBytes() { MPI_Type_free(&type_); }
  StridedBytes(const StridedBytes&) = delete;
  StridedBytes& operator=(const StridedBytes&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_;
};

MPI_Datatype TypeOf(at::ScalarType dtype) {
  if (dtype == at::kFloat) return MPI_FLOAT;
  if (dtype == at::kDouble) return MPI_DOUBLE;
  return MPI_INT64_T;
}

std::vector<const std::byte*> Rows(const std::byte* buffer, int64_t row_bytes, int rows) {
  std::vector<const std::byte*> begins;
  for (int row = 0; row < rows; ++row) begins.push_back(buffer + row_bytes * row);
  return begins;
}

}  // namespace

MpiCommunicator::MpiCommunicator(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm,
                                 const CommOptions& options)
    : runtime_(std::move(runtime)), comm_(comm), options_(options) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiCommunicator::~MpiCommunicator() {
  const absl::Time deadline = absl::Now() + options_.timeout;
  while (broken_.empty() && !SendUnsent() && absl::Now() < deadline) sched_yield();
  PendingSends::Remove(this);
  if (broken_.empty()) MPI_Comm_free(&comm_);
}

void MpiCommunicator::Fail(const std::string& reason) {
  if (broken_.empty()) broken_ = reason;
  throw CommError(broken_);
}

void MpiCommunicator::Check(int error, const char* call) {
  if (error == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(error, text, &length);
  Fail(absl::StrCat(call, ": ", std::string(text, length)));
}

// [Note: a thread that polls] MPI moves bytes only while someone asks it to. A thread that computes
// nothing else asks all the time. The one of a CommQueue shares its cores with one that computes:
// it sleeps between askings, long enough to cost little, and shortly enough that what the sockets
// hold keeps the network busy meanwhile (10 Gbit/s bring 125 kB in 100 us; one asking moves as
// much).
constexpr int kPollsBeforeSleep = 4;
constexpr std::chrono::microseconds kSleepBetweenPolls(100);

std::vector<int> MpiCommunicator::WaitAll(std::vector<MPI_Request>& requests) {
  const absl::Time deadline = absl::Now() + options_.timeout;
  for (int64_t polls = 0;; ++polls) {
    int done = 0;
    Check(
        MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
        "MPI_Testall");
    if (done) return {};
    PendingSends::MoveOn();
    if (CommQueue::IsThisThread()) {
      if (polls % kPollsBeforeSleep == 0) std::this_thread::sleep_for(kSleepBetweenPolls);
    } else {
      if (polls < 200) continue;
      sched_yield();
    }
    if (polls % 256 == 0 && absl::Now() > deadline) break;
  }
  std::vector<int> open;
  for (size_t i = 0; i < requests.size(); ++i) {
    int done = 0;
    MPI_Test(&requests[i], &done, MPI_STATUS_IGNORE);
    if (!done) open.push_back(static_cast<int>(i));
  }
  return open;
}

void MpiCommunicator::Complete(const char* call, const std::function<int(MPI_Request*)>& begin) {
  std::vector<MPI_Request> requests(1);
  Check(begin(requests.data()), call);
  if (WaitAll(requests).empty()) return;
  Fail(absl::StrCat(call, ": rank ", rank_, " waited ", absl::FormatDuration(options_.timeout),
                    " for its end; if the ranks are only slow, raise comm.timeout_s"));
}

void MpiCommunicator::Meet(Signature signature) {
  if (!broken_.empty()) throw CommError(broken_);
  signature.sequence = sequence_++;
  std::vector<Signature> signatures(size_, signature);
  // Rank j's receive stands at place j; sends follow.
  std::vector<MPI_Request> requests(2 * size_, MPI_REQUEST_NULL);
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    MPI_Irecv(&signatures[peer], sizeof(Signature), MPI_BYTE, peer, kSignatureTag, comm_,
              &requests[peer]);
  }
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    MPI_Isend(&signature, sizeof(Signature), MPI_BYTE, peer, kSignatureTag, comm_,
              &requests[size_ + peer]);
  }
  const std::vector<int> open = [&] {
    const TraceSpan wait(TraceKind::kWait, "wait");
    return WaitAll(requests);
  }();
  if (!open.empty()) {
    std::vector<int> absent;
    for (int place : open) {
      const int peer = place % size_;
      if (absent.empty() || absent.back() != peer) absent.push_back(peer);
    }
    Fail(absl::StrCat(Describe(signature), ": rank ", rank_, " waited ",
                      absl::FormatDuration(options_.timeout), " for ",
                      absent.size() == 1 ? "rank " : "ranks ", absl::StrJoin(absent, ", "),
                      "; if they are only slow, raise comm.timeout_s"));
  }
  try {
    CheckSameSignature(signatures);
  } catch (const CommError& error) {
    Fail(error.what());
  }
}

void MpiCommunicator::ForChunks(int64_t numel, int64_t element, int64_t copies,
                                const std::function<void(int64_t begin, int count)>& body) {
  const int64_t chunk = std::clamp<int64_t>(options_.chunk_bytes / (element * copies), 1,
                                            (int64_t{1} << 30) / element);
  for (int64_t begin = 0; begin < numel; begin += chunk) {
    body(begin, static_cast<int>(std::min(chunk, numel - begin)));
  }
}

bool MpiCommunicator::UsesPieces(const Signature& signature) const {
  constexpr int64_t kLarge = int64_t{1} << 16;  // Bytes; smaller ones are latency
  return options_.deterministic || signature.numel * ElementBytes(signature.dtype) > kLarge ||
         signature.op != ReduceOp::kSum || c10::isReducedFloatingType(signature.dtype);
}

void MpiCommunicator::AllReduce(at::Tensor& tensor, ReduceOp op) {
  const Signature signature = CheckAllReduce(tensor, op);
  const TraceSpan span = Count("all-reduce", BytesSent(signature, size_, rank_));
  Meet(signature);
  if (size_ == 1) return;
  const int64_t element = tensor.element_size();
  std::byte* data = Bytes(tensor);
  ForChunks(tensor.numel(), element, 1, [&](int64_t begin, int count) {
    if (UsesPieces(signature)) return AllReducePieces(data + begin * element, count, signature);
    Check(MPI_Allreduce(MPI_IN_PLACE, data + begin * element, count, TypeOf(signature.dtype),
                        MPI_SUM, comm_),
          "MPI_Allreduce");
  });
}

void MpiCommunicator::AllReducePieces(std::byte* data, int count, const Signature& signature) {
  const int64_t element = ElementBytes(signature.dtype);
  const int piece = (count + size_ - 1) / size_;
  const int piece_bytes = static_cast<int>(piece * element);
  const int64_t padded_bytes = int64_t{piece_bytes} * size_;
  const auto pieces = std::make_unique_for_overwrite<std::byte[]>(padded_bytes);
  std::unique_ptr<std::byte[]> copy;  // Only of what does not divide over the ranks
  std::byte* padded = data;
  if (padded_bytes != count * element) {
    copy = std::make_unique_for_overwrite<std::byte[]>(padded_bytes);
    padded = copy.get();
    std::memcpy(padded, data, count * element);
    std::memset(padded + count * element, 0, padded_bytes - count * element);
  }
  Complete("MPI_Ialltoall", [&](MPI_Request* request) {
    return MPI_Ialltoall(padded, piece_bytes, MPI_BYTE, pieces.get(), piece_bytes, MPI_BYTE, comm_,
                         request);
  });
  ReduceInOrder(signature.op, signature.dtype, Rows(pieces.get(), piece_bytes, size_), pieces.get(),
                piece);
  Complete("MPI_Iallgather", [&](MPI_Request* request) {
    return MPI_Iallgather(pieces.get(), piece_bytes, MPI_BYTE, padded, piece_bytes, MPI_BYTE, comm_,
                          request);
  });
  if (copy) std::memcpy(data, padded, count * element);
}

void MpiCommunicator::ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) {
  const Signature signature = CheckReduceScatter(out, in, op, size_, rank_);
  const TraceSpan span = Count("reduce-scatter", BytesSent(signature, size_, rank_));
  Meet(signature);
  const int64_t element = in.element_size();
  const int64_t slice_bytes = out.nbytes();
  const std::byte* source = Bytes(in);
  std::byte* result = Bytes(out);
  ForChunks(out.numel(), element, size_, [&](int64_t begin, int count) {
    const int64_t bytes = count * element;
    const auto pieces = std::make_unique_for_overwrite<std::byte[]>(bytes * size_);
    const StridedBytes slices(static_cast<int>(bytes), slice_bytes);
    Complete("MPI_Ialltoall", [&](MPI_Request* request) {
      return MPI_Ialltoall(source + begin * element, 1, slices.get(), pieces.get(),
                           static_cast<int>(bytes), MPI_BYTE, comm_, request);
    });
    ReduceInOrder(op, signature.dtype, Rows(pieces.get(), bytes, size_), result + begin * element,
                  count);
  });
}

void MpiCommunicator::AllGather(at::Tensor& out, const at::Tensor& in) {
  const Signature signature = CheckAllGather(out, in, size_, rank_);
  const TraceSpan span = Count("all-gather", BytesSent(signature, size_, rank_));
  Meet(signature);
  const int64_t slice_bytes = in.nbytes();
  const bool in_place = Bytes(out) + rank_ * slice_bytes == Bytes(in);
  ForChunks(slice_bytes, 1, 1, [&](int64_t begin, int count) {
    const StridedBytes slices(count, slice_bytes);
    const void* source = in_place ? MPI_IN_PLACE : Bytes(in) + begin;
    Complete("MPI_Iallgather", [&](MPI_Request* request) {
      return MPI_Iallgather(source, count, MPI_BYTE, Bytes(out) + begin, 1, slices.get(), comm_,
                            request);
    });
  });
}

void MpiCommunicator::Broadcast(at::Tensor& tensor, int root) {
  const Signature signature = CheckBroadcast(tensor, root, size_);
  const TraceSpan span = Count("broadcast", BytesSent(signature, size_, rank_));
  Meet(signature);
  ForChunks(tensor.nbytes(), 1, 1, [&](int64_t begin, int count) {
    Complete("MPI_Ibcast", [&](MPI_Request* request) {
      return MPI_Ibcast(Bytes(tensor) + begin, count, MPI_BYTE, root, comm_, request);
    });
  });
}

void MpiCommunicator::AllToAll(at::Tensor& out, const at::Tensor& in) {
  const Signature signature = CheckAllToAll(out, in, size_);
  const TraceSpan span = Count("all-to-all", BytesSent(signature, size_, rank_));
  Meet(signature);
  const int64_t slice_bytes = in.nbytes() / size_;
  ForChunks(slice_bytes, 1, size_, [&](int64_t begin, int count) {
    const StridedBytes slices(count, slice_bytes);
    Complete("MPI_Ialltoall", [&](MPI_Request* request) {
      return MPI_Ialltoall(Bytes(in) + begin, 1, slices.get(), Bytes(out) + begin, 1, slices.get(),
                           comm_, request);
    });
  });
}

void MpiCommunicator::Send(const at::Tensor& tensor, int destination) {
  CheckPointToPoint("Send", tensor, destination, size_, rank_);
  if (!broken_.empty()) throw CommError(broken_);
  const TraceSpan span = Count("send", tensor.nbytes());
  Unsent& message = unsent_.emplace_back();
  message.header = {static_cast<int64_t>(tensor.nbytes()),
                    static_cast<int64_t>(tensor.scalar_type())};
  {
    const TensorMemoryScope memory(nullptr);  // It outlives the pass that sends it
    message.data = tensor.clone();
  }
  const auto post = [&](const void* data, int count, int tag) {
    message.requests.emplace_back();
    Check(MPI_Isend(data, count, MPI_BYTE, destination, tag, comm_, &message.requests.back()),
          "MPI_Isend");
  };
  post(message.header.data(), sizeof(message.header), kHeaderTag);
  ForChunks(tensor.nbytes(), 1, 1,
            [&](int64_t begin, int count) { post(Bytes(message.data) + begin, count, kDataTag); });
  if (!SendUnsent()) PendingSends::Add(this, [this] { return SendUnsent(); });
}

bool MpiCommunicator::SendUnsent() {
  unsent_.remove_if([](Unsent& message) {
    int done = 0;
    MPI_Testall(static_cast<int>(message.requests.size()), message.requests.data(), &done,
                MPI_STATUSES_IGNORE);
    return done != 0;
  });
  return unsent_.empty();
}

void MpiCommunicator::Recv(at::Tensor& tensor, int source) {
  CheckPointToPoint("Recv", tensor, source, size_, rank_);
  if (!broken_.empty()) throw CommError(broken_);
  const TraceSpan span = Count("receive", 0, tensor.nbytes());
  const int64_t bytes = tensor.nbytes();
  const std::string late =
      absl::StrCat("Recv of ", bytes, " bytes: rank ", rank_, " waited ",
                   absl::FormatDuration(options_.timeout), " for rank ", source, " to send");
  std::array<int64_t, 2> header{};  // As Unsent::header
  std::vector<MPI_Request> requests(1);
  MPI_Irecv(header.data(), sizeof(header), MPI_BYTE, source, kHeaderTag, comm_, &requests[0]);
  {
    const TraceSpan wait(TraceKind::kWait, "wait");
    if (!WaitAll(requests).empty()) Fail(late);
  }
  if (header[0] != bytes || header[1] != static_cast<int64_t>(tensor.scalar_type())) {
    Fail(absl::StrCat("ranks disagree: rank ", source, " sends ", header[0], " bytes of ",
                      DtypeName(static_cast<at::ScalarType>(header[1])), "; rank ", rank_,
                      " receives ", bytes, " bytes of ", c10::toString(tensor.scalar_type())));
  }
  requests.clear();
  ForChunks(bytes, 1, 1, [&](int64_t begin, int count) {
    requests.emplace_back();
    MPI_Irecv(Bytes(tensor) + begin, count, MPI_BYTE, source, kDataTag, comm_, &requests.back());
  });
  if (!WaitAll(requests).empty()) Fail(late);
}

void MpiCommunicator::Barrier() {
  const TraceSpan span = Count("barrier", 0);
  Meet({.kind = CollectiveKind::kBarrier});
}

std::unique_ptr<Communicator> MpiCommunicator::Split(int color, int key) {
  Meet({.kind = CollectiveKind::kSplit});
  MPI_Comm part;
  Check(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, key, &part), "MPI_Comm_split");
  if (part == MPI_COMM_NULL) return nullptr;
  return std::make_unique<MpiCommunicator>(runtime_, part, options_);
}

at::Tensor MpiCommunicator::AllocateRegistered(int64_t numel, at::ScalarType dtype) {
  return at::empty({numel}, dtype);
}

void MpiCommunicator::Abort(int exit_code, const std::string& reason) {
  runtime_->Abort(exit_code, reason);
}

}  // namespace shoal
