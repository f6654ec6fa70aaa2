// shoal score: log-probabilities of given tokens.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddScoreCommand(CommandLine& line);

}  // namespace shoal
