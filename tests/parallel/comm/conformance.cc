#include "tests/parallel/comm/conformance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <iterator>
#include <span>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>

#include "absl/strings/str_cat.h"
#include "parallel/comm/exchange_rows.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

constexpr at::ScalarType kReducible[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf,
                                         at::kLong};
constexpr at::ScalarType kMovable[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kLong,
                                       at::kByte};
// Zero, odd, beside the cache line and the small-message limit, and larger than a staging buffer
// (1 MiB a rank) with a remainder.
constexpr int64_t kSizes[] = {0, 1, 5, 63, 4099, 16385, 150001};

constexpr int kMaxRanks = 4;

// Any rank can compute any rank's values, which have many bits so that the order of sums shows.
at::Tensor Values(int64_t numel, int rank, at::ScalarType dtype) {
  static const std::vector<at::Tensor> streams = [] {
    std::vector<at::Tensor> streams;
    for (int rank = 0; rank < kMaxRanks; ++rank) {
      const at::Tensor index = at::arange(kMaxRanks * kSizes[std::size(kSizes) - 1] + 1, at::kLong);
      streams.push_back((index * 7919 + rank * 104729).remainder(1000003).to(at::kDouble) / 997.0 -
                        500.0);
    }
    return streams;
  }();
  const at::Tensor values = streams[rank].narrow(0, 0, numel);
  return dtype == at::kByte ? values.to(at::kLong).to(at::kByte) : values.to(dtype);
}

// (((r0 + r1) + r2) + ...) by ATen, in the dtype the header promises.
at::Tensor SerialReduce(int64_t numel, int size, at::ScalarType dtype, ReduceOp op) {
  const at::ScalarType accumulate = at::isReducedFloatingType(dtype) ? at::kFloat : dtype;
  at::Tensor result = Values(numel, 0, dtype).to(accumulate);
  for (int rank = 1; rank < size; ++rank) {
    const at::Tensor next = Values(numel, rank, dtype).to(accumulate);
    if (op == ReduceOp::kSum) result = result + next;
    if (op == ReduceOp::kMax) result = at::maximum(result, next);
    if (op == ReduceOp::kMin) result = at::minimum(result, next);
  }
  return result.to(dtype);
}

::testing::AssertionResult Same(const at::Tensor& on_device, const at::Tensor& other) {
  const at::Tensor got = on_device.cpu(), want = other.cpu();
  if (got.equal(want)) return ::testing::AssertionSuccess();
  const at::Tensor places = got.ne(want).nonzero();
  const int64_t place = places.numel() == 0 ? 0 : places.flatten()[0].item<int64_t>();
  return ::testing::AssertionFailure()
         << "element " << place << " of " << want.numel() << ": got " << got[place].item<double>()
         << ", want " << want[place].item<double>();
}

class Suite {
 public:
  // `device`: of the tensors.
  Suite(Communicator& comm, at::Device device)
      : comm_(comm), device_(device), size_(comm.size()), rank_(comm.rank()) {}

  // Every dtype and size, in ordinary memory, in registered memory, and in both by turns of the
  // rank.
  void ForEach(std::span<const at::ScalarType> dtypes,
               const std::function<void(at::ScalarType, int64_t)>& body) {
    for (at::ScalarType dtype : dtypes) {
      for (int64_t numel : kSizes) {
        for (bool registered : {false, true, rank_ % 2 == 0}) {
          SCOPED_TRACE(absl::StrCat(comm_.name(), " rank ", rank_, "/", size_, " ", device_.str(),
                                    " ", c10::toString(dtype), " ", numel,
                                    registered ? " registered" : ""));
          registered_ = registered;
          body(dtype, numel);
        }
      }
    }
  }

  void AllReduce() {
    for (ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin}) {
      ForEach(kReducible, [&](at::ScalarType dtype, int64_t numel) {
        at::Tensor x = Copy(Values(numel, rank_, dtype));
        comm_.AllReduce(x, op);
        EXPECT_TRUE(Same(x, SerialReduce(numel, size_, dtype, op)));
      });
    }
  }

  void ReduceScatter() {
    ForEach(kReducible, [&](at::ScalarType dtype, int64_t numel) {
      const at::Tensor want = SerialReduce(size_ * numel, size_, dtype, ReduceOp::kSum);
      at::Tensor in = Copy(Values(size_ * numel, rank_, dtype));
      at::Tensor out = Copy(at::full({numel}, 1, dtype));
      comm_.ReduceScatter(out, in);
      EXPECT_TRUE(Same(out, want.narrow(0, rank_ * numel, numel)));
      EXPECT_TRUE(Same(in, Values(size_ * numel, rank_, dtype))) << "the input was changed";
      at::Tensor slice = in.narrow(0, rank_ * numel, numel);
      comm_.ReduceScatter(slice, in);
      EXPECT_TRUE(Same(slice, out)) << "in place";
    });
  }

  void AllGather() {
    ForEach(kMovable, [&](at::ScalarType dtype, int64_t numel) {
      std::vector<at::Tensor> parts;
      for (int rank = 0; rank < size_; ++rank) parts.push_back(Values(numel, rank, dtype));
      const at::Tensor want = at::cat(parts);
      at::Tensor in = Copy(parts[rank_]);
      at::Tensor out = Copy(at::full({size_ * numel}, 1, dtype));
      comm_.AllGather(out, in);
      EXPECT_TRUE(Same(out, want));
      at::Tensor again = Copy(at::full({size_ * numel}, 1, dtype));
      at::Tensor slice = again.narrow(0, rank_ * numel, numel);
      slice.copy_(parts[rank_]);
      comm_.AllGather(again, slice);
      EXPECT_TRUE(Same(again, want)) << "in place";
    });
  }

  void AllReduceIsReduceScatterThenAllGather() {
    ForEach(kReducible, [&](at::ScalarType dtype, int64_t numel) {
      at::Tensor whole = Copy(Values(size_ * numel, rank_, dtype));
      at::Tensor in = Copy(whole);
      at::Tensor slice = in.narrow(0, rank_ * numel, numel);
      comm_.ReduceScatter(slice, in);
      comm_.AllGather(in, slice);
      comm_.AllReduce(whole);
      EXPECT_TRUE(Same(in, whole));
    });
  }

  void Broadcast() {
    for (int root = 0; root < size_; ++root) {
      ForEach(kMovable, [&](at::ScalarType dtype, int64_t numel) {
        at::Tensor x = Copy(Values(numel, rank_, dtype));
        comm_.Broadcast(x, root);
        EXPECT_TRUE(Same(x, Values(numel, root, dtype)));
      });
    }
  }

  void AllToAll() {
    ForEach(kMovable, [&](at::ScalarType dtype, int64_t numel) {
      at::Tensor in = Copy(Values(size_ * numel, rank_, dtype));
      at::Tensor out = Copy(at::full({size_ * numel}, 1, dtype));
      comm_.AllToAll(out, in);
      for (int peer = 0; peer < size_; ++peer) {
        EXPECT_TRUE(Same(out.narrow(0, peer * numel, numel),
                         Values(size_ * numel, peer, dtype).narrow(0, rank_ * numel, numel)));
      }
    });
  }

  // Rank i sends rank j (3 i + j) % 4 rows: none, too.
  void ExchangeRows() {
    const auto rows = [](int from, int to) { return int64_t{(3 * from + to) % 4}; };
    for (at::ScalarType dtype : kMovable) {
      for (int64_t columns : {1, 5, 3000}) {
        std::vector<int64_t> sent, received;
        std::vector<at::Tensor> want;
        const auto part = [&](int from, int to) {
          const int64_t numel = rows(from, to) * columns;
          return Values(numel + to, from, dtype)
              .narrow(0, to, numel)
              .view({rows(from, to), columns});
        };
        std::vector<at::Tensor> in;
        for (int peer = 0; peer < size_; ++peer) {
          sent.push_back(rows(rank_, peer));
          received.push_back(rows(peer, rank_));
          in.push_back(part(rank_, peer));
          want.push_back(part(peer, rank_));
        }
        const int64_t before = comm_.counters().bytes_sent;
        const at::Tensor got = shoal::ExchangeRows(comm_, at::cat(in).to(device_), sent, received);
        EXPECT_TRUE(Same(got.flatten(), at::cat(want).flatten()));
        int64_t bytes = 0;
        for (int peer = 0; peer < size_; ++peer)
          bytes += peer == rank_ ? 0 : sent[peer] * columns * got.element_size();
        EXPECT_EQ(comm_.counters().bytes_sent - before, bytes);
      }
    }
  }

  // Around the ring, twice in a row, so that order per pair shows.
  void SendRecv() {
    if (size_ == 1) return;
    ForEach(kMovable, [&](at::ScalarType dtype, int64_t numel) {
      const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
      const at::Tensor first = Copy(Values(numel, rank_, dtype));
      const at::Tensor second = Copy(Values(numel + 1, rank_, dtype));
      at::Tensor a = Copy(at::full({numel}, 1, dtype)), b = Copy(at::full({numel + 1}, 1, dtype));
      auto send = [&] { comm_.Send(first, next), comm_.Send(second, next); };
      auto receive = [&] { comm_.Recv(a, previous), comm_.Recv(b, previous); };
      if (rank_ == 0)
        receive(), send();
      else
        send(), receive();
      EXPECT_TRUE(Same(a, Values(numel, previous, dtype)));
      EXPECT_TRUE(Same(b, Values(numel + 1, previous, dtype)));
    });
  }

  // Everyone sends more than any channel holds before anyone receives, and meets in a collective of
  // another group meanwhile.
  void SendsDoNotWait() {
    if (size_ == 1) return;
    const std::unique_ptr<Communicator> other = comm_.Split(0, rank_);
    const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
    const int64_t numel = (5 << 20) / 4 + 1;
    for (int message = 0; message < 2; ++message)
      comm_.Send(Full({numel}, static_cast<float>(10 * rank_ + message)), next);
    other->Barrier();
    for (int message = 0; message < 2; ++message) {
      at::Tensor got = Full({numel}, 0.0f);
      comm_.Recv(got, previous);
      EXPECT_TRUE(Same(got, at::full({numel}, static_cast<float>(10 * previous + message))));
    }
  }

  void CountersAreExact() {
    const int64_t n = size_, m = 24;
    at::Tensor x = Full({m}, 1.0f), whole = Full({m * n}, 1.0f), other = Full({m * n}, 1.0f);
    ExpectSent(2 * (4 * m - 4 * m / n), [&] { comm_.AllReduce(x); });
    ExpectSent(4 * m * (n - 1), [&] { comm_.AllGather(whole, x); });
    ExpectSent(4 * m * (n - 1), [&] { comm_.ReduceScatter(x, whole); });
    ExpectSent(rank_ == n - 1 && n > 1 ? 4 * m : 0, [&] { comm_.Broadcast(x, size_ - 1); });
    ExpectSent(4 * m * (n - 1), [&] { comm_.AllToAll(other, whole); });
    ExpectSent(0, [&] { comm_.Barrier(); });
    at::Tensor odd = Full({7}, 1, at::kLong);
    ExpectSent(2 * (56 - 56 / n), [&] { comm_.AllReduce(odd); });
    if (n == 1) return;
    if (rank_ == 0) ExpectSent(4 * m, [&] { comm_.Send(x, 1); });
    if (rank_ == 1) ExpectSent(0, [&] { comm_.Recv(x, 0); });
  }

  void SplitIntoHalvesAndBack() {
    std::unique_ptr<Communicator> half = comm_.Split(rank_ % 2, -rank_);
    const int of_my_colour = (size_ + 1 - rank_ % 2) / 2;
    ASSERT_EQ(half->size(), of_my_colour);
    EXPECT_EQ(half->rank(), of_my_colour - 1 - rank_ / 2) << "ordered by key";
    EXPECT_EQ(half->name(), comm_.name());
    at::Tensor x = Full({50000}, static_cast<double>(rank_), at::kDouble);
    half->AllReduce(x);
    double want = 0;
    for (int rank = rank_ % 2; rank < size_; rank += 2) want += rank;
    EXPECT_EQ(x[49999].item<double>(), want);
    std::unique_ptr<Communicator> first = comm_.Split(rank_ == 0 ? 0 : -1, 0);
    EXPECT_EQ(first != nullptr, rank_ == 0);
    at::Tensor registered = half->AllocateRegistered(30001, at::kFloat).fill_(1);
    half.reset();
    comm_.AllReduce(registered);
    EXPECT_EQ(registered[30000].item<float>(), size_) << "memory outlives its group";
  }

  void RegisteredMemoryComesAndGoes() {
    for (int round = 0; round < 20; ++round) {
      at::Tensor x = comm_.AllocateRegistered(20000 + round, at::kFloat);
      ASSERT_EQ(x.numel(), 20000 + round);
      x.fill_(static_cast<float>(rank_ + round));
      comm_.AllReduce(x);
      EXPECT_EQ(x[round].item<float>(), size_ * round + size_ * (size_ - 1) / 2);
    }
    EXPECT_EQ(comm_.AllocateRegistered(0, at::kDouble).numel(), 0);
  }

  void Strings() {
    const std::vector<std::string> all =
        AllGatherStrings(comm_, std::string(1000 * rank_, 'a' + rank_));
    ASSERT_EQ(static_cast<int>(all.size()), size_);
    for (int rank = 0; rank < size_; ++rank)
      EXPECT_EQ(all[rank], std::string(1000 * rank, 'a' + rank));
    EXPECT_EQ(BroadcastString(comm_, rank_ == 0 ? std::string("a\0b", 3) : "?", 0),
              std::string("a\0b", 3));
    EXPECT_EQ(BroadcastString(comm_, "", 0), "");
  }

  // A rank's own mistakes are told before anything is sent, so the group stays usable.
  void RefusesNonsense() {
    at::Tensor x = Full({4}, 1.0f), wrong = Full({4 * size_ + 1}, 1.0f);
    at::Tensor bytes = Full({4}, 1, at::kByte), strided = Full({4, 4}, 1.0f).t();
    EXPECT_THROW(comm_.AllGather(wrong, x), CommError);
    EXPECT_THROW(comm_.ReduceScatter(x, wrong, ReduceOp::kSum), CommError);
    EXPECT_THROW(comm_.AllReduce(bytes), CommError);
    EXPECT_THROW(comm_.AllReduce(strided), CommError);
    EXPECT_THROW(comm_.Broadcast(x, size_), CommError);
    EXPECT_THROW(comm_.Send(x, rank_), CommError);
    EXPECT_THROW(comm_.Recv(x, -1), CommError);
    comm_.Barrier();
  }

 private:
  at::Tensor Copy(const at::Tensor& values) {
    if (registered_ && comm_.device() == device_)
      return comm_.AllocateRegistered(values.numel(), values.scalar_type()).copy_(values);
    return at::empty(values.sizes(), values.options().device(device_)).copy_(values);
  }
  at::Tensor Full(at::IntArrayRef sizes, double value, at::ScalarType dtype = at::kFloat) {
    return at::full(sizes, value, at::TensorOptions().dtype(dtype).device(device_));
  }
  void ExpectSent(int64_t bytes, const std::function<void()>& call) {
    const CommCounters before = comm_.counters();
    call();
    EXPECT_EQ(comm_.counters().bytes_sent - before.bytes_sent, bytes);
    EXPECT_EQ(comm_.counters().calls - before.calls, 1);
  }

  Communicator& comm_;
  at::Device device_;
  int size_;
  int rank_;
  bool registered_ = false;
};

std::string MessageOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const CommError& error) {
    return error.what();
  }
  return "no error";
}

void RunSuite(Communicator& comm, at::Device device) {
  Suite suite(comm, device);
  suite.AllReduce();
  suite.ReduceScatter();
  suite.AllGather();
  suite.AllReduceIsReduceScatterThenAllGather();
  suite.Broadcast();
  suite.AllToAll();
  suite.ExchangeRows();
  suite.SendRecv();
  suite.SendsDoNotWait();
  suite.CountersAreExact();
  suite.SplitIntoHalvesAndBack();
  suite.RegisteredMemoryComesAndGoes();
  suite.Strings();
  suite.RefusesNonsense();
}

}  // namespace

void RunConformance(Communicator& comm) {
  RunSuite(comm, comm.device());
  if (!comm.device().is_cpu()) RunSuite(comm, at::kCPU);
}

void RunMismatch(Communicator& comm) {
  at::Tensor x = comm.AllocateRegistered(10 + comm.rank() / (comm.size() - 1), at::kFloat).fill_(1);
  const std::string message = MessageOf([&] { comm.AllReduce(x); });
  EXPECT_THAT(message, HasSubstr("rank 0 calls AllReduce(sum, float32, 10 elements)"));
  EXPECT_THAT(message, HasSubstr(absl::StrCat("rank ", comm.size() - 1,
                                              " calls AllReduce(sum, float32, 11 elements)")));
  EXPECT_EQ(MessageOf([&] { comm.Barrier(); }), message) << "the group stays broken";
}

void RunTimeout(Communicator& comm) {
  const int late = comm.size() - 1;
  if (comm.rank() == late) return;
  at::Tensor x = comm.AllocateRegistered(10, at::kFloat).fill_(1);
  const std::string message = MessageOf([&] { comm.AllReduce(x); });
  EXPECT_THAT(message, HasSubstr(absl::StrCat("for rank ", late)));
  EXPECT_THAT(message, HasSubstr("AllReduce(sum, float32, 10 elements)"));
}

}  // namespace shoal
