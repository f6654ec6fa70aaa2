#include "trainer/offload_setup.h"

#include "checkpoint/agreement.h"
#include "core/file_system.h"
#include "core/status.h"

namespace shoal {
namespace {

bool OffloadsTo(Offload place, const Recipe& recipe) {
  return recipe.zero().offload_optimizer() == place ||
         recipe.zero().offload_parameters() == place ||
         recipe.training().offload_activations() == place;
}

absl::Status Blame(const LoadedRecipe& recipe, Communicator& ranks, const absl::Status& status) {
  const absl::Status all = Agree(ranks, status);
  return all.ok() ? all : recipe.ErrorAt("zero.offload_dir", all.message());
}

}  // namespace

bool OffloadsToHost(const Recipe& recipe) { return OffloadsTo(host_memory, recipe); }

std::string OffloadFolder(const Recipe& recipe) {
  return recipe.zero().has_offload_dir() ? recipe.zero().offload_dir()
                                         : JoinPath(recipe.run().output_dir(), "offload");
}

absl::StatusOr<std::unique_ptr<OffloadSpace>> OpenOffloadSpace(const LoadedRecipe& recipe,
                                                               Communicator& ranks) {
  std::unique_ptr<OffloadSpace> space;
  if (!OffloadsTo(disk, recipe.proto)) return space;
  const std::string folder = OffloadFolder(recipe.proto);
  SHOAL_RETURN_IF_ERROR(Blame(recipe, ranks, Guarded([&]() -> absl::Status {
                                PosixFileSystem files;
                                SHOAL_RETURN_IF_ERROR(CreateDirectories(files, folder));
                                SHOAL_ASSIGN_OR_RETURN(space, OffloadSpace::Open(folder));
                                return absl::OkStatus();
                              })));
  return space;
}

absl::Status ReserveOffload(const LoadedRecipe& recipe, OffloadSpace& space, Communicator& ranks) {
  return Blame(recipe, ranks, space.Reserve());
}

void RemoveOffloadFolder(const Recipe& recipe) {
  if (!OffloadsTo(disk, recipe) || recipe.zero().has_offload_dir()) return;
  PosixFileSystem files;
  (void)files.Remove(OffloadFolder(recipe));  // Somebody's file keeps it: theirs to remove
}

}  // namespace shoal
