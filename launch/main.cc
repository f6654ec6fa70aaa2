#include "core/tensor_memory.h"
#include "launch/chat_command.h"
#include "launch/check_command.h"
#include "launch/command.h"
#include "launch/doctor_command.h"
#include "launch/export_command.h"
#include "launch/generate_command.h"
#include "launch/inspect_command.h"
#include "launch/parity_command.h"
#include "launch/plan_command.h"
#include "launch/report_command.h"
#include "launch/run_command.h"
#include "launch/schema_command.h"
#include "launch/score_command.h"
#include "launch/tokenize_command.h"

int main(int argc, char** argv) {
  shoal::CountTensorMemory();
  shoal::CommandLine line(SHOAL_VERSION);
  shoal::AddRunCommand(line, argc, argv);
  shoal::AddCheckCommand(line);
  shoal::AddPlanCommand(line);
  shoal::AddSchemaCommand(line);
  shoal::AddParityCommand(line);
  shoal::AddGenerateCommand(line, argc, argv);
  shoal::AddChatCommand(line);
  shoal::AddScoreCommand(line);
  shoal::AddTokenizeCommand(line);
  shoal::AddExportCommand(line);
  shoal::AddInspectCommand(line);
  shoal::AddReportCommand(line);
  shoal::AddDoctorCommand(line);
  return line.Run(argc, argv);
}
