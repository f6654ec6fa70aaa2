// --device, of the commands that compute with a model.
#pragma once

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/comm/device_communicator.h"

namespace shoal {

// Adds --device auto|cpu|cuda, which sets `device` (DeviceRequest::kAuto to begin with).
void AddDeviceOption(CLI::App* command, DeviceRequest& device);

// FailedPrecondition, in terms of --device: kCuda in a build without CUDA, or where this process
// sees no GPU.
absl::Status CheckDeviceOption(DeviceRequest device);

// CheckDeviceOption, and the device for a command of one process, made the calling thread's current
// one.
absl::StatusOr<at::Device> DeviceOfOption(DeviceRequest device);

}  // namespace shoal
