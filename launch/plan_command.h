// shoal plan: what a recipe holds, sends and takes on any number of ranks of any machine.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddPlanCommand(CommandLine& line);

}  // namespace shoal
