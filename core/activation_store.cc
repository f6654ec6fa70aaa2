#include "core/activation_store.h"

#include "core/device_activations.h"
#include "core/offload.h"

namespace shoal {
namespace {

class FileActivations final : public ActivationStore {
 public:
  explicit FileActivations(OffloadSpace& disk) : disk_(disk) {}
  std::unique_ptr<KeptTensors> Make() override { return std::make_unique<OffloadedTensors>(disk_); }

 private:
  OffloadSpace& disk_;
};

}  // namespace

std::unique_ptr<ActivationStore> ActivationStore::Of(at::Device device, OffloadSpace* disk) {
  if (!device.is_cpu()) return std::make_unique<DeviceActivations>(device, disk);
  if (disk != nullptr) return std::make_unique<FileActivations>(*disk);
  return nullptr;
}

}  // namespace shoal
