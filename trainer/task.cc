#include "trainer/task.h"

#include <c10/util/Exception.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "core/offload.h"
#include "parallel/comm/communicator.h"

namespace shoal {

RunPaths::RunPaths(const std::string& output_dir)
    : root(output_dir),
      metrics(JoinPath(output_dir, "metrics.jsonl")),
      resolved_recipe(JoinPath(output_dir, "recipe.resolved.yaml")),
      tensorboard(JoinPath(output_dir, "tensorboard")),
      checkpoints(JoinPath(output_dir, "checkpoints")),
      exported(JoinPath(output_dir, "export")),
      report(JoinPath(output_dir, "report.html")),
      samples(JoinPath(output_dir, "samples.txt")) {}

absl::Status Caught(const std::function<absl::Status()>& task) {
  try {
    return task();
  } catch (const CommError& error) {
    return absl::UnavailableError(error.what());
  } catch (const OffloadError& error) {
    return error.status();
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "out of memory on the device: lower training.per_device_train_batch_size, raise zero.stage "
        "or use more ranks (",
        absl::StripAsciiWhitespace(error.what_without_backtrace()), ")"));
  } catch (const c10::Error& error) {
    return absl::InternalError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "out of memory: lower training.per_device_train_batch_size, raise zero.stage or use more "
        "ranks");
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace shoal
