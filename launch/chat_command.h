// shoal chat: a conversation in a terminal.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddChatCommand(CommandLine& line);

}  // namespace shoal
