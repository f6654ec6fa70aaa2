// The families compiled into the program: every models/families/*.yaml.
#pragma once

#include <string>
#include <vector>

namespace shoal {

struct EmbeddedFamily {
  std::string model_type;  // The file's name without its ending
  std::string text;
};

// In the order of their names. The definition is generated (models/CMakeLists.txt).
const std::vector<EmbeddedFamily>& EmbeddedFamilies();

}  // namespace shoal
