// Machines to plan for: what a rank of one computes, holds and sends.
//
// A description of your own is a YAML file; every key but name and matrix_efficiency is required:
//
//   name: eight big ones
//   ranks_per_host: 8
//   memory_bytes: 80e9                       # A rank's, as all that follows
//   memory_bytes_per_second: 3.35e12
//   matrix_flops_per_second: {float32: 67e12, bfloat16: 989e12}  # float64: only if it is used
//   matrix_efficiency: 0.6                   # Share of those that whole models reach
//   inside_host: {bytes_per_second: 450e9, latency_seconds: 5e-6}   # Sent, one direction
//   between_hosts: {bytes_per_second: 50e9, latency_seconds: 10e-6}
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/file_system.h"
#include "core/parameter.h"

namespace shoal {

struct Hardware {
  struct Link {
    double bytes_per_second = 0;
    double latency_seconds = 0;  // A call and doubling of the ranks that take part
  };
  struct MatrixFlops {
    double float32 = 0, bfloat16 = 0, float64 = 0;  // 0: unknown
  };

  std::string name;
  std::string source;  // Where the figures are from
  int ranks_per_host = 1;
  double memory_bytes = 0;
  double memory_bytes_per_second = 0;  // Read or written
  MatrixFlops matrix_flops;
  double matrix_efficiency = 0.6;
  Link inside_host, between_hosts;

  double MatrixFlopsOf(at::ScalarType dtype) const;
  // Of ranks whose numbers lie less than `extent` apart, if hosts are filled one by one.
  const Link& LinkOver(int64_t extent) const;
};

// "a100", "h100", "h200"; "cpu" is measured instead.
std::vector<std::string> KnownHardware();

// A known name, or a YAML file. InvalidArgument: an unknown name, or the file's errors, each on its
// line with file:line:column. NotFound: no such file.
absl::StatusOr<Hardware> FindHardware(FileSystem& files, const std::string& name_or_path);

// The same from text; `name` stands for the path in messages.
absl::StatusOr<Hardware> ParseHardware(const std::string& text, const std::string& name);

// The machine that this runs on, shared evenly by `ranks` ranks: products of that dtype and memory
// are measured now, in about a second, on `cores` threads.
struct MeasureOptions {
  int ranks = 1;
  int cores = 1;
  at::ScalarType dtype = at::kFloat;
};
Hardware MeasureThisMachine(const MeasureOptions& options);

}  // namespace shoal
