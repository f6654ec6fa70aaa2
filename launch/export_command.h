// shoal export: from a checkpoint to a Hugging Face folder.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddExportCommand(CommandLine& line);

}  // namespace shoal
