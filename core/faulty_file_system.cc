#include "core/faulty_file_system.h"

namespace shoal {
namespace {

using Action = FaultyFileSystem::Action;

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// Makes one call of `files`: `work`, unless a fault is due.
template <typename Work>
auto Call(FaultyFileSystem& files, absl::string_view operation, const Work& work)
    -> decltype(work()) {
  const Action action = files.NextAction();
  if (action == Action::kFail || action == Action::kTear) return files.Failure(operation);
  auto result = work();
  if (action == Action::kWorkThenFail && StatusOf(result).ok()) return files.Failure(operation);
  return result;
}

class FaultyWritableFile : public WritableFile {
 public:
  FaultyWritableFile(FaultyFileSystem& files, std::unique_ptr<WritableFile> base, std::string path)
      : files_(files), base_(std::move(base)), path_(std::move(path)) {}

  absl::Status Append(absl::string_view data) override {
    return Write(data, [this](absl::string_view part) { return base_->Append(part); });
  }
  absl::Status WriteAt(int64_t offset, absl::string_view data) override {
    return Write(data,
                 [this, offset](absl::string_view part) { return base_->WriteAt(offset, part); });
  }
  absl::Status Sync() override {
    return Call(files_, absl::StrCat("sync ", path_), [this] { return base_->Sync(); });
  }
  absl::Status Close() override {
    return Call(files_, absl::StrCat("close ", path_), [this] { return base_->Close(); });
  }

 private:
  template <typename Work>
  absl::Status Write(absl::string_view data, const Work& work) {
    const std::string operation = absl::StrCat("write ", data.size(), " bytes to ", path_);
    switch (files_.NextAction()) {
      case Action::kWork:
        return work(data);
      case Action::kFail:
        return files_.Failure(operation);
      case Action::kTear:
        SHOAL_RETURN_IF_ERROR(work(data.substr(0, data.size() / 2)));
        return files_.Failure(operation);
      case Action::kWorkThenFail:
        SHOAL_RETURN_IF_ERROR(work(data));
        return files_.Failure(operation);
    }
    return absl::InternalError("unknown action");
  }

  FaultyFileSystem& files_;
  std::unique_ptr<WritableFile> base_;
  std::string path_;
};

class FaultyReadableFile : public ReadableFile {
 public:
  FaultyReadableFile(FaultyFileSystem& files, std::unique_ptr<ReadableFile> base, std::string path)
      : files_(files), base_(std::move(base)), path_(std::move(path)) {}

  absl::Status ReadAt(int64_t offset, absl::Span<char> out) const override {
    return Call(files_, absl::StrCat("read ", path_), [&] { return base_->ReadAt(offset, out); });
  }
  absl::StatusOr<int64_t> Size() const override {
    return Call(files_, absl::StrCat("stat ", path_), [&] { return base_->Size(); });
  }

 private:
  FaultyFileSystem& files_;
  std::unique_ptr<ReadableFile> base_;
  std::string path_;
};

}  // namespace

FaultyFileSystem::Action FaultyFileSystem::NextAction() {
  const int64_t call = ++calls_;
  if (fault_.call == 0 || call < fault_.call) return Action::kWork;
  const bool due = call == fault_.call;
  switch (fault_.kind) {
    case Fault::Kind::kFail:
      return due ? Action::kFail : Action::kWork;
    case Fault::Kind::kShortWrite:
      return due ? Action::kTear : Action::kWork;
    case Fault::Kind::kCrashBefore:
      return Action::kFail;
    case Fault::Kind::kCrashTorn:
      return due ? Action::kTear : Action::kFail;
    case Fault::Kind::kCrashAfter:
      return due ? Action::kWorkThenFail : Action::kFail;
  }
  return Action::kFail;
}

absl::Status FaultyFileSystem::Failure(absl::string_view operation) const {
  return absl::ErrnoToStatus(fault_.error, absl::StrCat("injected fault: cannot ", operation));
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultyFileSystem::OpenForWrite(
    const std::string& path, OpenMode mode) {
  SHOAL_ASSIGN_OR_RETURN(auto file, Call(*this, absl::StrCat("open for writing ", path),
                                         [&] { return base_.OpenForWrite(path, mode); }));
  return std::make_unique<FaultyWritableFile>(*this, std::move(file), path);
}

absl::StatusOr<std::unique_ptr<ReadableFile>> FaultyFileSystem::OpenForRead(
    const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(
      auto file, Call(*this, absl::StrCat("open ", path), [&] { return base_.OpenForRead(path); }));
  return std::make_unique<FaultyReadableFile>(*this, std::move(file), path);
}

absl::StatusOr<FileInfo> FaultyFileSystem::Stat(const std::string& path) {
  return Call(*this, absl::StrCat("stat ", path), [&] { return base_.Stat(path); });
}

absl::StatusOr<std::vector<std::string>> FaultyFileSystem::List(const std::string& directory) {
  return Call(*this, absl::StrCat("list ", directory), [&] { return base_.List(directory); });
}

absl::Status FaultyFileSystem::CreateDirectory(const std::string& path) {
  return Call(*this, absl::StrCat("make folder ", path),
              [&] { return base_.CreateDirectory(path); });
}

absl::Status FaultyFileSystem::Rename(const std::string& from, const std::string& to) {
  return Call(*this, absl::StrCat("rename ", from, " to ", to),
              [&] { return base_.Rename(from, to); });
}

absl::Status FaultyFileSystem::Exchange(const std::string& a, const std::string& b) {
  return Call(*this, absl::StrCat("swap ", a, " and ", b), [&] { return base_.Exchange(a, b); });
}

absl::Status FaultyFileSystem::Remove(const std::string& path) {
  return Call(*this, absl::StrCat("remove ", path), [&] { return base_.Remove(path); });
}

absl::Status FaultyFileSystem::SyncDirectory(const std::string& path) {
  return Call(*this, absl::StrCat("sync folder ", path), [&] { return base_.SyncDirectory(path); });
}

}  // namespace shoal
