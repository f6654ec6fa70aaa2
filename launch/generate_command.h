// shoal generate: continues a text with a model.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddGenerateCommand(CommandLine& line);

}  // namespace shoal
