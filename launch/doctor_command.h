// shoal doctor: versions, rates and a test of every collective.
#pragma once

#include "launch/command.h"

namespace shoal {

void AddDoctorCommand(CommandLine& line);

}  // namespace shoal
