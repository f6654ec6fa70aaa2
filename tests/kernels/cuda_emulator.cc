#include "tests/kernels/cuda_emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace cuda_emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kFenceBytes = 64;  // Behind shared memory
constexpr unsigned char kFence = 0xA5;

[[noreturn]] void Stop(const char* what, const char* file = "", int line = 0) {
  std::fprintf(stderr, "CUDA emulator: block (%u, %u), thread %u: %s %s:%d\n", blockIdx.x,
               blockIdx.y, threadIdx.x, what, file, line);
  std::abort();
}

std::mutex guard_mutex;
std::function<void(bool)> memory_guard;

std::function<void(bool)> MemoryGuard() {
  const std::lock_guard lock(guard_mutex);
  return memory_guard;
}

struct Fiber {
  enum State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };
  State state = kDone;
  bool started = false;
  ucontext_t first;  // Enters the fiber once; later switches are long jumps: no system calls
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  const char* file = nullptr;  // Of the barrier that it waits at
  int line = 0;
  uint64_t lanes[2];  // What it gives to its warp, by turns: a reader may be one exchange behind
  int turn = 0;
};

// A block's threads. Fibers are kept from block to block.
class Block {
 public:
  void Run(unsigned threads, const std::function<void()>& body, size_t shared_bytes) {
    if (threads % kWarp != 0) Stop("blocks must be whole warps");
    while (fibers_.size() < threads) fibers_.push_back(NewFiber());
    threads_ = threads;
    body_ = &body;
    shared_.resize((shared_bytes + kFenceBytes + sizeof(float) - 1) / sizeof(float));
    auto* bytes = reinterpret_cast<unsigned char*>(shared_.data());
    std::memset(bytes, 0xFF, shared_bytes);  // NaN
    std::memset(bytes + shared_bytes, kFence, kFenceBytes);
    for (unsigned i = 0; i < threads; ++i) {
      fibers_[i]->state = Fiber::kReady;
      fibers_[i]->turn = 0;
    }
    // Warps run ahead of each other, by turns from both ends, so that a missing barrier shows.
    for (bool forward = true; Pass(forward); forward = !forward) {
    }
    for (size_t i = 0; i < kFenceBytes; ++i) {
      if (bytes[shared_bytes + i] != kFence) Stop("shared memory was written past its end");
    }
  }

  void Wait(Fiber::State state, const char* file, int line) {
    Fiber& fiber = *fibers_[threadIdx.x];
    fiber.state = state;
    fiber.file = file;
    fiber.line = line;
    LeaveFiber(fiber);
  }

  Fiber& Current() { return *fibers_[threadIdx.x]; }
  Fiber& Lane(unsigned lane) { return *fibers_[threadIdx.x / kWarp * kWarp + lane]; }
  float* shared() { return shared_.data(); }

 private:
  static std::unique_ptr<Fiber> NewFiber() {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = std::make_unique<char[]>(kStackBytes);
    return fiber;
  }

  static void Main();

  // Between the scheduler and a fiber.
  void Enter(unsigned thread) {
    Fiber& fiber = *fibers_[thread];
    threadIdx = dim3(thread, 0, 0);
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStackBytes};
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, &Block::Main, 0);
    setcontext(&fiber.first);
  }
  void LeaveFiber(Fiber& fiber) {
    if (_setjmp(fiber.here) == 0) _longjmp(scheduler_, 1);
  }

  // Runs each warp as far as it comes without the others; false once all threads have ended.
  bool Pass(bool forward) {
    const unsigned warps = threads_ / kWarp;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned warp = (forward ? i : warps - 1 - i) * kWarp;
      while (RunWarp(warp, forward)) {
      }
    }
    const Fiber* waiting = nullptr;
    unsigned at_barrier = 0, live = 0;
    for (unsigned i = 0; i < threads_; ++i) {
      const Fiber& fiber = *fibers_[i];
      if (fiber.state == Fiber::kDone) continue;
      ++live;
      if (fiber.state != Fiber::kAtBlockBarrier) continue;
      ++at_barrier;
      if (waiting && (waiting->file != fiber.file || waiting->line != fiber.line))
        Stop("threads wait at different barriers, one at", fiber.file, fiber.line);
      waiting = &fiber;
    }
    if (live == 0) return false;
    if (at_barrier != live) Stop("threads wait for others that do not come");
    Release(0, threads_);
    return true;
  }

  // Runs a warp's ready lanes; true if all of them then could go on from an exchange.
  bool RunWarp(unsigned warp, bool forward) {
    for (unsigned i = 0; i < kWarp; ++i) {
      const unsigned thread = warp + (forward ? i : kWarp - 1 - i);
      if (fibers_[thread]->state == Fiber::kReady) Enter(thread);
    }
    for (unsigned i = warp; i < warp + kWarp; ++i) {
      if (fibers_[i]->state != Fiber::kAtWarpBarrier) return false;
    }
    Release(warp, warp + kWarp);
    return true;
  }

  void Release(unsigned begin, unsigned end) {
    for (unsigned i = begin; i < end; ++i) {
      if (fibers_[i]->state != Fiber::kDone) fibers_[i]->state = Fiber::kReady;
    }
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  unsigned threads_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::vector<float> shared_;
  jmp_buf scheduler_;
};

thread_local Block block;

void Block::Main() {
  for (;;) {
    (*block.body_)();
    block.Current().state = Fiber::kDone;
    block.LeaveFiber(block.Current());
  }
}

}  // namespace

void SetMemoryGuard(std::function<void(bool)> guard) {
  const std::lock_guard lock(guard_mutex);
  memory_guard = std::move(guard);
}

void BlockBarrier(const char* file, int line) { block.Wait(Fiber::kAtBlockBarrier, file, line); }

void ExchangeInWarp(const void* value, void* other, size_t bytes, unsigned lane) {
  Fiber& fiber = block.Current();
  const int turn = fiber.turn;
  fiber.turn = 1 - turn;
  std::memcpy(&fiber.lanes[turn], value, bytes);
  block.Wait(Fiber::kAtWarpBarrier, "", 0);
  std::memcpy(other, &block.Lane(lane).lanes[turn], bytes);
}

float* DynamicShared() { return block.shared(); }

void RunGrid(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  const std::function<void(bool)> guard = MemoryGuard();
  if (guard) guard(true);
  for (unsigned z = grid.z; z-- > 0;) {
    for (unsigned y = grid.y; y-- > 0;) {
      for (unsigned x = grid.x; x-- > 0;) {
        blockIdx = dim3(x, y, z);
        block.Run(static_cast<unsigned>(threads), body, shared_bytes);
      }
    }
  }
  if (guard) guard(false);
}

uint16_t Bfloat16Bits(float x) { return c10::BFloat16(x).x; }
uint16_t HalfBits(float x) { return c10::Half(x).x; }
float FloatOfHalf(uint16_t bits) { return c10::Half(bits, c10::Half::from_bits()); }

}  // namespace cuda_emulator
