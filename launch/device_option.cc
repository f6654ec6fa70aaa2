#include "launch/device_option.h"

#include <map>
#include <memory>
#include <string>

#include "core/status.h"
#include "parallel/comm/local_communicator.h"

namespace shoal {

void AddDeviceOption(CLI::App* command, DeviceRequest& device) {
  static const std::map<std::string, DeviceRequest> kDevices = {
      {"auto", DeviceRequest::kAuto}, {"cpu", DeviceRequest::kCpu}, {"cuda", DeviceRequest::kCuda}};
  command
      ->add_option("--device", device,
                   "What computes. auto: a GPU if there is one, else the CPU; cpu; cuda: a GPU, an "
                   "error without one")
      ->transform(CLI::CheckedTransformer(kDevices).description(""))
      ->default_str("auto");
}

absl::Status CheckDeviceOption(DeviceRequest device) {
  if (!CheckBuiltFor(device).ok()) {
    return absl::FailedPreconditionError(
        "--device cuda, but this build has no CUDA: build with the `cuda` preset, or give --device "
        "cpu");
  }
  if (device == DeviceRequest::kCuda && NumDevices() == 0) {
    return absl::FailedPreconditionError(
        "--device cuda, but this machine has no GPU that this process sees (nvidia-smi lists them; "
        "CUDA_VISIBLE_DEVICES hides some): give --device cpu");
  }
  return absl::OkStatus();
}

absl::StatusOr<at::Device> DeviceOfOption(DeviceRequest device) {
  SHOAL_RETURN_IF_ERROR(CheckDeviceOption(device));
  SHOAL_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> self,
                         MakeDeviceCommunicator(MakeSingleRankCommunicator(), device, {}));
  return self->device();
}

}  // namespace shoal
