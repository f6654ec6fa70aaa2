// shoal inspect: what is in a checkpoint, a run, a safetensors file or a Hugging Face folder.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddInspectCommand(CommandLine& line);

}  // namespace shoal
