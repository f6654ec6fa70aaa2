#include "core/tensorboard_writer.h"

#include <unistd.h>

#include <cstring>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

#include "core/crc32c.h"
#include "core/tensorboard.pb.h"

namespace shoal {
namespace {

constexpr int kDtString = 7;      // DataType.DT_STRING
constexpr int kSessionStart = 1;  // SessionLog.START

// TFRecord's guard against checksums of data that holds checksums.
uint32_t Masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

template <typename T>
void AppendLittleEndian(std::string* out, T value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out->append(bytes, sizeof value);
}

double Now() { return absl::ToUnixMicros(absl::Now()) * 1e-6; }

std::string Tag(const std::string& name) {
  if (name == "eval_loss") return "eval/loss";
  if (name == "tokens_per_second" || name == "step_seconds") return "speed/" + name;
  if (name.ends_with("_bytes") || name == "bytes_sent") return "bytes/" + name;
  if (name.find('/') != std::string::npos) return name;
  return "train/" + name;
}

class TensorboardSink : public MetricsSink {
 public:
  explicit TensorboardSink(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}

  absl::Status WriteEvent(const tensorboard::Event& event) {
    return file_->Append(TfRecord(event.SerializeAsString()));
  }

  absl::Status Write(const MetricsRow& row) override {
    tensorboard::Event event;
    event.set_wall_time(Now());
    event.set_step(row.step);
    for (const NamedMetric& metric : NamedMetrics(row)) {
      tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
      value->set_tag(Tag(metric.name));
      value->set_simple_value(static_cast<float>(metric.real));
    }
    return WriteEvent(event);
  }

  absl::Status Close() override {
    SHOAL_RETURN_IF_ERROR(file_->Sync());
    return file_->Close();
  }

 private:
  std::unique_ptr<WritableFile> file_;
};

tensorboard::Event VersionEvent() {
  tensorboard::Event event;
  event.set_wall_time(Now());
  event.set_file_version("brain.Event:2");
  return event;
}

tensorboard::Event RestartEvent(int64_t last_step) {
  tensorboard::Event event;
  event.set_wall_time(Now());
  event.set_step(last_step + 1);
  event.mutable_session_log()->set_status(kSessionStart);
  return event;
}

// Shown by the Text plugin, as Markdown: four spaces make a code block.
tensorboard::Event RecipeEvent(const std::string& yaml) {
  tensorboard::Event event;
  event.set_wall_time(Now());
  event.set_step(0);
  tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
  value->set_tag("recipe/text_summary");
  value->mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  value->mutable_tensor()->set_dtype(kDtString);
  std::string text = "    ";
  for (const char c : yaml) text += c == '\n' ? std::string("\n    ") : std::string(1, c);
  value->mutable_tensor()->mutable_tensor_shape()->add_dim()->set_size(1);
  value->mutable_tensor()->add_string_val(text);
  return event;
}

// A name that TensorBoard looks for ("tfevents"), later ones sorting after earlier ones.
absl::StatusOr<std::unique_ptr<WritableFile>> CreateEventFile(FileSystem& files,
                                                              const std::string& directory) {
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  const int64_t seconds = absl::ToUnixSeconds(absl::Now());
  for (int attempt = 0;; ++attempt) {
    const std::string name =
        absl::StrFormat("events.out.tfevents.%010d.%s.%d.%d", seconds, host, ::getpid(), attempt);
    auto file = files.OpenForWrite(JoinPath(directory, name), OpenMode::kCreateNew);
    if (file.ok() || !absl::IsAlreadyExists(file.status())) return file;
  }
}

}  // namespace

std::string TfRecord(absl::string_view data) {
  std::string record;
  AppendLittleEndian<uint64_t>(&record, data.size());
  AppendLittleEndian<uint32_t>(&record, Masked(Crc32c(record)));
  record.append(data.data(), data.size());
  AppendLittleEndian<uint32_t>(&record, Masked(Crc32c(data)));
  return record;
}

absl::StatusOr<std::unique_ptr<MetricsSink>> OpenTensorboardSink(FileSystem& files,
                                                                 const std::string& directory,
                                                                 int64_t last_step,
                                                                 const std::string& recipe_yaml) {
  SHOAL_RETURN_IF_ERROR(CreateDirectories(files, directory));
  SHOAL_ASSIGN_OR_RETURN(auto file, CreateEventFile(files, directory));
  auto sink = std::make_unique<TensorboardSink>(std::move(file));
  SHOAL_RETURN_IF_ERROR(sink->WriteEvent(VersionEvent()));
  if (last_step > 0) SHOAL_RETURN_IF_ERROR(sink->WriteEvent(RestartEvent(last_step)));
  if (!recipe_yaml.empty()) SHOAL_RETURN_IF_ERROR(sink->WriteEvent(RecipeEvent(recipe_yaml)));
  return sink;
}

}  // namespace shoal
