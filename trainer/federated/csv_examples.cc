#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/crc32c.h"
#include "core/nearest_name.h"
#include "data/document_reader.h"
#include "trainer/federated/example_set.h"
#include "trainer/federated/partition_keys.h"

namespace shoal {
namespace {

constexpr int64_t kMaxCsvBytes = int64_t{4} << 30;

struct LabelledRows {
  int64_t pixels = 0;  // A row
  std::vector<uint8_t> values;
  std::vector<uint8_t> labels;
  std::vector<int32_t> owners;  // Of each row: a place in `names`
  std::vector<std::string> names;

  void Append(const LabelledRows& other, int64_t row) {
    pixels = other.pixels;
    const auto begin = other.values.begin() + row * pixels;
    values.insert(values.end(), begin, begin + pixels);
    labels.push_back(other.labels[row]);
    owners.push_back(other.owners[row]);
  }
};

class CsvExamples final : public ExampleSet {
 public:
  explicit CsvExamples(LabelledRows rows) : rows_(std::move(rows)) {}

  int64_t size() const override { return static_cast<int64_t>(rows_.labels.size()); }
  std::vector<int64_t> Labels() const override {
    return {rows_.labels.begin(), rows_.labels.end()};
  }
  absl::StatusOr<std::vector<std::string>> Owners() const override {
    std::vector<std::string> owners;
    for (int32_t owner : rows_.owners) owners.push_back(rows_.names[owner]);
    return owners;
  }

  absl::StatusOr<Batch> Read(std::span<const int64_t> examples) const override {
    const auto count = static_cast<int64_t>(examples.size());
    Batch batch{.tokens_BT = at::zeros({count, rows_.pixels}, at::kLong),
                .targets_BT = at::empty({count, 1}, at::kLong)};
    auto* tokens = batch.tokens_BT.mutable_data_ptr<int64_t>();
    auto* targets = batch.targets_BT.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i) {
      targets[i] = Batch::kIgnoreIndex;
      if (examples[i] < 0) continue;
      const uint8_t* row = rows_.values.data() + examples[i] * rows_.pixels;
      std::copy(row, row + rows_.pixels, tokens + i * rows_.pixels);
      targets[i] = rows_.labels[examples[i]];
      ++batch.num_targets;
    }
    return batch;
  }

 private:
  const LabelledRows rows_;
};

absl::Status ParseRow(absl::string_view line, int64_t columns, int64_t skipped,
                      const std::string& where, LabelledRows& rows) {
  const char* at = line.data();
  const char* const end = at + line.size();
  int64_t column = 0;
  for (; at <= end; ++column) {
    const char* comma = std::find(at, end, ',');
    if (column != skipped) {
      int value = -1;
      const auto [stop, error] = std::from_chars(at, comma, value);
      if (error != std::errc() || stop != comma || value < 0 || value > 255) {
        return absl::InvalidArgumentError(absl::StrCat(
            where, ": column ", column + 1, " is \"", absl::string_view(at, comma - at),
            "\", expected a whole number from 0 to 255"));
      }
      rows.values.push_back(static_cast<uint8_t>(value));
    }
    at = comma + 1;
  }
  if (column != columns) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": ", column, " columns, expected ", columns));
  }
  rows.labels.push_back(rows.values.back());
  rows.values.pop_back();
  return absl::OkStatus();
}

absl::Status ReadCsv(FileSystem& files, const std::string& path, const std::string& client_column,
                     LabelledRows& rows, uint32_t& crc) {
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path, kMaxCsvBytes));
  crc = Crc32c(text, crc);
  int64_t columns = 0, skipped = -1, number = 0;
  const size_t before = rows.labels.size();
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;
    if (columns == 0) {
      const std::vector<std::string> names = absl::StrSplit(line, ',');
      columns = static_cast<int64_t>(names.size());
      const auto found = std::find(names.begin(), names.end(), client_column);
      if (found != names.end()) skipped = found - names.begin();
      const int64_t pixels = columns - 1 - (skipped >= 0 ? 1 : 0);
      if (pixels < 1 || (rows.pixels > 0 && rows.pixels != pixels)) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ":", number, ": ", pixels, " columns of pixels, expected ",
                         rows.pixels > 0 ? absl::StrCat(rows.pixels, ", as in the files before")
                                         : std::string("one or more and the class")));
      }
      rows.pixels = pixels;
      continue;
    }
    SHOAL_RETURN_IF_ERROR(ParseRow(line, columns, skipped, absl::StrCat(path, ":", number), rows));
  }
  const size_t read = rows.labels.size() - before;
  if (client_column.empty()) {
    rows.owners.resize(rows.labels.size(), static_cast<int32_t>(rows.names.size()));
    rows.names.push_back(path);
    return absl::OkStatus();
  }
  SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> owners,
                         ReadCsvColumn(files, path, client_column));
  if (owners.size() != read) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", owners.size(), " values of ", client_column, " for ", read,
                     " rows: pixels and classes are plain numbers without quotes"));
  }
  std::map<std::string, int32_t> place;
  for (size_t i = 0; i < rows.names.size(); ++i) place[rows.names[i]] = static_cast<int32_t>(i);
  for (const std::string& owner : owners) {
    const auto [found, is_new] = place.emplace(owner, static_cast<int32_t>(rows.names.size()));
    if (is_new) rows.names.push_back(owner);
    rows.owners.push_back(found->second);
  }
  return absl::OkStatus();
}

template <typename Sources>
absl::Status ReadSources(FileSystem& files, const Sources& sources,
                         const std::string& client_column, LabelledRows& rows, uint32_t& crc) {
  for (const DataSource& source : sources) {
    SHOAL_ASSIGN_OR_RETURN(const std::vector<SourceFile> found, ListSourceFiles(source));
    for (const SourceFile& file : found)
      SHOAL_RETURN_IF_ERROR(ReadCsv(files, file.path, client_column, rows, crc));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExampleSets> ReadCsvExamples(FileSystem& files, const DataSection& data,
                                            const std::string& client_column) {
  LabelledRows all, train, eval;
  uint32_t crc = 0;
  SHOAL_RETURN_IF_ERROR(ReadSources(files, data.train(), client_column, all, crc));
  SHOAL_RETURN_IF_ERROR(ReadSources(files, data.eval(), "", eval, crc));
  const auto count = static_cast<int64_t>(all.labels.size());
  if (count == 0) return absl::InvalidArgumentError("data.train holds no rows");
  if (eval.labels.empty() && data.holdout() > 0) {
    int64_t held_out = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto due =
          static_cast<int64_t>(std::floor(static_cast<double>(i + 1) * data.holdout()));
      (due > held_out ? eval : train).Append(all, i);
      held_out = due;
    }
    train.names = std::move(all.names);
  } else {
    train = std::move(all);
  }
  ExampleSets sets;
  sets.fingerprint = absl::StrCat(train.labels.size(), " + ", eval.labels.size(), " rows of ",
                                  train.pixels, " pixels, crc32c ", crc);
  sets.train = std::make_unique<CsvExamples>(std::move(train));
  if (!eval.labels.empty()) sets.eval = std::make_unique<CsvExamples>(std::move(eval));
  return sets;
}

}  // namespace shoal
