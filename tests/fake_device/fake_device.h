// A device without hardware: libtorch's PrivateUse1 under the name "fake", so that tests on any
// machine show that nothing mixes host and device memory, as on a GPU nothing may.
//
//   at::Tensor x = at::randn({2, 3}).to(FakeDevice());
//   at::Tensor y = x.matmul(x.t()) + 1;  // Any ATen operator, by its CPU kernel
//   y.add_(at::ones({2, 2}));            // Throws: a host tensor beside device tensors
//   *y.data_ptr<float>();                // The process dies and says where
//
// To use it link the object library fake_device (CMake: DEPS ... fake_device). There are
// kFakeDevices devices; give rank r of a test FakeDevice(r), since autograd runs the backward pass
// of everything on a device on one thread (as with CUDA), where a rank that waits for another would
// block it. As with CUDA, thread_local state of the caller is not there in a backward pass.
//
// How it works. Device memory is an object without a name (memfd) that is mapped twice: at the
// addresses that tensors hold, where nobody may read or write, and at others, known to the device's
// operators only. Those see host tensors with the same sizes and strides over the second mapping
// and call the CPU kernel; so in-place operators, views and out= arguments write through, and host
// code that touches device memory crashes whatever other threads do. Fresh memory holds NaNs (all
// bits set, of large blocks the beginning) and ends in a canary that is checked when it is freed.
//
// As strict as CUDA and a little more: every tensor with dimensions (indices, out= and lists too)
// lies on one and the same device; 0-dim host tensors pass where CUDA takes them (element-wise
// operators). Copies, and only they, go between host and device or two devices. Streams and events
// exist and are recorded, but everything has happened when a call returns, but for LazyFakeStreams.
#pragma once

#include <cstddef>

#include <c10/core/Device.h>

namespace shoal {

inline constexpr int kFakeDevices = 8;

inline c10::Device FakeDevice(int index = 0) {
  return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index)};
}

// From now on host code that touches device memory says so on stderr, with the calls that led
// there, before it dies of SIGSEGV. Called when the device is registered; again by who has set a
// handler.
void ReportTouchedDeviceMemory();

// From the first Open to the last Close, on any thread, device addresses can be read and written by
// all: for kernels that get raw device pointers and run on the host.
void OpenFakeMemory();
void CloseFakeMemory();
struct FakeMemoryOpen {
  FakeMemoryOpen() { OpenFakeMemory(); }
  ~FakeMemoryOpen() { CloseFakeMemory(); }
  FakeMemoryOpen(const FakeMemoryOpen&) = delete;
  FakeMemoryOpen& operator=(const FakeMemoryOpen&) = delete;
};

// Bytes that tensors hold on a device now.
size_t FakeBytesInUse(int index = 0);

// Whether `address` lies in the memory of a fake device.
bool IsFakeAddress(const void* address);

// Operators run by the device, in all, since the program began: a test that compares device and
// host can see that it did not compare the host with itself.
size_t FakeOperatorCalls();

// How often, in all, the host has waited for a device: numbers read, shapes that depend on values,
// copies between host and device that are not asked to be non-blocking, streams awaited.
size_t FakeDeviceWaits();

// While it lives, non-blocking copies between page-locked memory and a device, on other streams
// than the one that a thread begins with, happen as late as they may: when another stream or the
// host waits for an event behind them, or the stream is given something else. So who reads what
// they bring, or gives away what they read, without waiting for them, finds or sends something
// else.
class LazyFakeStreams {
 public:
  LazyFakeStreams();
  ~LazyFakeStreams();
  LazyFakeStreams(const LazyFakeStreams&) = delete;
  LazyFakeStreams& operator=(const LazyFakeStreams&) = delete;
};

}  // namespace shoal
