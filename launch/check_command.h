// shoal check: a recipe's errors without starting anything.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddCheckCommand(CommandLine& line);

}  // namespace shoal
