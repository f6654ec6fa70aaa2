// shoal schema: the reference of the recipe.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddSchemaCommand(CommandLine& line);

}  // namespace shoal
