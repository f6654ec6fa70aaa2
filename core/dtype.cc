#include "core/dtype.h"

namespace shoal {
namespace {

struct Entry {
  at::ScalarType dtype;
  const char* name;
};
constexpr Entry kDtypes[] = {
    {at::kFloat, "float32"}, {at::kDouble, "float64"}, {at::kBFloat16, "bfloat16"},
    {at::kHalf, "float16"},  {at::kLong, "int64"},     {at::kInt, "int32"},
    {at::kByte, "uint8"},
};

}  // namespace

const char* DtypeName(at::ScalarType dtype) {
  for (const Entry& entry : kDtypes) {
    if (entry.dtype == dtype) return entry.name;
  }
  return c10::toString(dtype);
}

std::optional<at::ScalarType> DtypeFromName(absl::string_view name) {
  for (const Entry& entry : kDtypes) {
    if (name == entry.name) return entry.dtype;
  }
  return std::nullopt;
}

}  // namespace shoal
