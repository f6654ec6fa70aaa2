#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include <nlohmann/json.hpp>

#include "models/safetensors.h"

namespace shoal {
namespace {

constexpr int64_t kMaxTensors = 1'000'000;
constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxDimensions = 16;

struct DtypeInfo {
  const char* name;
  int bits;
  std::optional<at::ScalarType> dtype;  // nullopt: in the format, not in this program
};

// In the reference writer's order, narrowest first.
const std::vector<DtypeInfo>& Dtypes() {
  static const auto& dtypes = *new std::vector<DtypeInfo>{
      {"BOOL", 8, at::kBool},
      {"F4", 4, std::nullopt},
      {"F6_E2M3", 6, std::nullopt},
      {"F6_E3M2", 6, std::nullopt},
      {"U8", 8, at::kByte},
      {"I8", 8, at::kChar},
      {"F8_E5M2", 8, at::ScalarType::Float8_e5m2},
      {"F8_E4M3", 8, at::ScalarType::Float8_e4m3fn},
      {"F8_E8M0", 8, std::nullopt},
      {"I16", 16, at::kShort},
      {"U16", 16, std::nullopt},
      {"F16", 16, at::kHalf},
      {"BF16", 16, at::kBFloat16},
      {"I32", 32, at::kInt},
      {"U32", 32, std::nullopt},
      {"F32", 32, at::kFloat},
      {"C64", 64, std::nullopt},
      {"F64", 64, at::kDouble},
      {"I64", 64, at::kLong},
      {"U64", 64, std::nullopt},
  };
  return dtypes;
}

int DtypeRank(absl::string_view name) {
  for (size_t i = 0; i < Dtypes().size(); ++i) {
    if (name == Dtypes()[i].name) return static_cast<int>(i);
  }
  return -1;
}

struct BadHeader : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void Refuse(const Parts&... parts) {
  throw BadHeader(absl::StrCat(parts...));
}

// The name as a message may carry it.
std::string Quote(const std::string& name) {
  return nlohmann::json(name.substr(0, kMaxNameBytes))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Follows the header's few shapes while it is parsed; builds no tree, so a header of 100 MB costs
// its entries. Levels: 1 the header, 2 a tensor or __metadata__, 3 shape or data_offsets.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;

  bool null() override { Refuse("unexpected null", Where()); }
  bool boolean(bool) override { Refuse("unexpected true or false", Where()); }
  bool number_integer(number_integer_t) override { Refuse("negative number", Where()); }
  bool number_float(number_float_t, const string_t&) override {
    Refuse("number that is not whole", Where());
  }
  bool binary(binary_t&) override { Refuse("binary value", Where()); }

  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != 3) Refuse("unexpected number", Where());
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      Refuse("number beyond 64 bits", Where());
    if (list_.size() >= kMaxDimensions) Refuse("more than ", kMaxDimensions, " numbers", Where());
    list_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (level_ == 2 && in_metadata_) {
      metadata[field_] = value;
    } else if (level_ == 2 && field_ == "dtype") {
      if (DtypeRank(value) < 0) Refuse("dtype ", Quote(value), " is not known", Where());
      tensors.back().dtype = value;
    } else {
      Refuse("unexpected text", Where());
    }
    return true;
  }

  bool start_object(size_t) override {
    if (level_ > 1) Refuse("unexpected {", Where());
    if (++level_ == 2) {
      fields_.clear();
      if (!in_metadata_) tensors.push_back({.name = name_, .dtype = "", .shape = {}});
    }
    return true;
  }

  bool key(string_t& value) override {
    if (level_ == 1) {
      StartMember(value);
    } else if (in_metadata_ ? metadata.contains(value) : !fields_.insert(value).second) {
      Refuse("key ", Quote(value), " is given twice", Where());
    } else if (!in_metadata_ && value != "dtype" && value != "shape" && value != "data_offsets") {
      Refuse("key ", Quote(value), " is not known", Where());
    }
    field_ = value;
    return true;
  }

  bool end_object() override {
    if (level_-- == 2) {
      if (!in_metadata_ && fields_.size() != 3)
        Refuse("needs dtype, shape and data_offsets", Where());
      in_metadata_ = false;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (level_ != 2 || in_metadata_ || field_ == "dtype") Refuse("unexpected [", Where());
    ++level_;
    list_.clear();
    return true;
  }

  bool end_array() override {
    --level_;
    SafetensorsEntry& tensor = tensors.back();
    if (field_ == "shape") {
      tensor.shape = list_;
    } else if (list_.size() != 2) {
      Refuse("data_offsets must be two numbers", Where());
    } else {
      tensor.begin = list_[0];
      tensor.end = list_[1];
    }
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) override {
    Refuse("not valid JSON: ", error.what());
  }

 private:
  void StartMember(const std::string& name) {
    name_ = name;
    in_metadata_ = name == "__metadata__";
    if (name.size() > kMaxNameBytes)
      Refuse("a tensor's name has ", name.size(), " bytes, the limit is ", kMaxNameBytes);
    const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
    if (std::any_of(name.begin(), name.end(), control))
      Refuse("control character in the name ", Quote(name));
    if (!names_.insert(name).second) Refuse("tensor ", Quote(name), " is given twice");
    if (static_cast<int64_t>(names_.size()) > kMaxTensors)
      Refuse("more than ", kMaxTensors, " tensors");
  }

  std::string Where() const {
    return level_ >= 1 && !name_.empty() ? absl::StrCat(" at ", Quote(name_)) : "";
  }

  int level_ = 0;
  bool in_metadata_ = false;
  std::string name_;
  std::string field_;
  std::set<std::string> names_;
  std::set<std::string> fields_;
  std::vector<int64_t> list_;
};

// Bytes that a tensor of this dtype and shape takes.
int64_t BytesOf(const SafetensorsEntry& tensor) {
  int64_t bits = Dtypes()[DtypeRank(tensor.dtype)].bits;
  for (int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bits, size, &bits))
      Refuse("shape of ", Quote(tensor.name), " overflows 64 bits");
  }
  if (bits % 8 != 0) Refuse("shape of ", Quote(tensor.name), " does not fill whole bytes");
  return bits / 8;
}

// The tensors' bytes must follow each other from 0 to the end, each as long as its shape says.
void CheckSpans(std::vector<SafetensorsEntry>& tensors, int64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  int64_t place = 0;
  for (const SafetensorsEntry& tensor : tensors) {
    if (tensor.end < tensor.begin || tensor.end > data_bytes) {
      Refuse("bytes ", tensor.begin, " to ", tensor.end, " of ", Quote(tensor.name),
             " are not in the file's ", data_bytes, " bytes of data");
    }
    if (tensor.begin != place) {
      Refuse(Quote(tensor.name), " starts at byte ", tensor.begin, ", the one before ends at ",
             place);
    }
    if (tensor.end - tensor.begin != BytesOf(tensor)) {
      Refuse(Quote(tensor.name), " has ", tensor.end - tensor.begin,
             " bytes, its dtype and shape need ", BytesOf(tensor));
    }
    place = tensor.end;
  }
  if (place != data_bytes)
    Refuse("the tensors end at byte ", place, " of ", data_bytes, " bytes of data");
}

}  // namespace

int64_t SafetensorsEntry::numel() const {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

std::string SafetensorsDtype(at::ScalarType dtype) {
  for (const DtypeInfo& info : Dtypes()) {
    if (info.dtype == dtype) return info.name;
  }
  return "";
}

std::optional<at::ScalarType> DtypeOfSafetensors(absl::string_view dtype) {
  const int rank = DtypeRank(dtype);
  return rank < 0 ? std::nullopt : Dtypes()[rank].dtype;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& json,
                                                         int64_t data_bytes,
                                                         const std::string& file) {
  HeaderHandler handler;
  try {
    if (json.empty() || json[0] != '{') Refuse("the header does not start with {");
    nlohmann::json::sax_parse(json, &handler);
    CheckSpans(handler.tensors, data_bytes);
  } catch (const BadHeader& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": bad safetensors header: ", error.what()));
  }
  return SafetensorsHeader{.tensors = std::move(handler.tensors),
                           .metadata = std::move(handler.metadata)};
}

SafetensorsLayout LayOutSafetensors(std::vector<SafetensorsEntry> tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::make_pair(-DtypeRank(a.dtype), a.name) <
           std::make_pair(-DtypeRank(b.dtype), b.name);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t place = 0;
  for (SafetensorsEntry& tensor : tensors) {
    SHOAL_CHECK(DtypeRank(tensor.dtype) >= 0) << tensor.name << " has dtype " << tensor.dtype;
    tensor.begin = place;
    tensor.end = place += BytesOf(tensor);
    header.push_back({tensor.name,
                      {{"dtype", tensor.dtype},
                       {"shape", tensor.shape},
                       {"data_offsets", {tensor.begin, tensor.end}}}});
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string head(8, '\0');
  for (int i = 0; i < 8; ++i) head[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  head += text;
  const int64_t file_bytes = static_cast<int64_t>(head.size()) + place;
  return {.head = std::move(head), .tensors = std::move(tensors), .file_bytes = file_bytes};
}

}  // namespace shoal
