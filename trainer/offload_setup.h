// Where a recipe's offloaded memory goes (core/offload.h).
#pragma once

#include <memory>
#include <string>

#include "core/offload.h"
#include "core/recipe.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// A space of this rank's in zero.offload_dir, which is made if it is missing; null: the recipe
// offloads nothing. What fails on one rank fails on all, at that key. Collective.
absl::StatusOr<std::unique_ptr<OffloadSpace>> OpenOffloadSpace(const LoadedRecipe& recipe,
                                                               Communicator& ranks);

// Room on disk for all that is offloaded but activations. The same of errors. Collective.
absl::Status ReserveOffload(const LoadedRecipe& recipe, OffloadSpace& space, Communicator& ranks);

// Whether the recipe wants anything in host memory that a device would hold.
bool OffloadsToHost(const Recipe& recipe);

// zero.offload_dir, or its default.
std::string OffloadFolder(const Recipe& recipe);

// At the end of a run, on one rank: the folder, if it has the default's name and nothing in it.
void RemoveOffloadFolder(const Recipe& recipe);

}  // namespace shoal
