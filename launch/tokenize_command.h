#pragma once

#include "launch/command.h"

namespace shoal {

// `shoal tokenize`: text to token ids, printed or as a shard.
void AddTokenizeCommand(CommandLine& line);

}  // namespace shoal
