// The keys of PartitionByKey, one an example, out of files with a column that names the client.
#pragma once

#include <string>
#include <vector>

#include "core/file_system.h"
#include "core/status.h"

namespace shoal {

// The value of column `column` (a name of the first line) in each further line of a CSV file
// (RFC 4180: quoted fields may hold commas, line ends and doubled quotes). InvalidArgument names
// path:line of a record with another number of fields, an open quote, or, with the nearest name, a
// column that is not there.
absl::StatusOr<std::vector<std::string>> ReadCsvColumn(FileSystem& files, const std::string& path,
                                                       const std::string& column);

}  // namespace shoal
