// shoal run: does what a recipe asks, on as many ranks as are asked for or were started.
#pragma once

#include "launch/command.h"

namespace shoal {

// `argc`, `argv` are the program's own: ranks that this process starts get the same.
void AddRunCommand(CommandLine& line, int argc, const char* const* argv);

}  // namespace shoal
