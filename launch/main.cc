#include "launch/command.h"

int main(int argc, char** argv) {
  shoal::CommandLine line(SHOAL_VERSION);
  return line.Run(argc, argv);
}
