// shoal generate: continues a text with a model.
#pragma once

#include "launch/command.h"

namespace shoal {

// `argc`, `argv`: the program's own, which it is started with again on several ranks.
void AddGenerateCommand(CommandLine& line, int argc, const char* const* argv);

}  // namespace shoal
