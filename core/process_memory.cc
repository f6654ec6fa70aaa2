#include "core/process_memory.h"

#include <fstream>
#include <string>

namespace shoal {
namespace {

// The value, in bytes, of a line "key:   123 kB".
int64_t StatusBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key)) return std::strtoll(line.c_str() + key.size(), nullptr, 10) * 1024;
  }
  return 0;
}

}  // namespace

int64_t CurrentRssBytes() { return StatusBytes("VmRSS:"); }
int64_t PeakRssBytes() { return StatusBytes("VmHWM:"); }

}  // namespace shoal
