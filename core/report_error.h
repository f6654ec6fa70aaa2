// How the parts of a recipe's validation tell what is wrong.
#pragma once

#include <functional>
#include <string>

namespace shoal {

// `key` is the path of the key to blame: "optimizer.groups.0.pattern".
using ReportError = std::function<void(const std::string& key, std::string message)>;

}  // namespace shoal
