// `shoal parity`: do two layouts train the same? The first step and tensor that differ.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddParityCommand(CommandLine& line);

}  // namespace shoal
