#include "launch/check_command.h"
#include "launch/command.h"
#include "launch/schema_command.h"

int main(int argc, char** argv) {
  shoal::CommandLine line(SHOAL_VERSION);
  shoal::AddCheckCommand(line);
  shoal::AddSchemaCommand(line);
  return line.Run(argc, argv);
}
