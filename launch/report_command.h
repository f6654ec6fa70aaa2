// shoal report: one page with the curves of one run or several.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddReportCommand(CommandLine& line);

}  // namespace shoal
