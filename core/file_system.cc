#include "core/file_system.h"

namespace shoal {
namespace {

// Without slashes at the end, except of "/" itself.
std::string Trim(const std::string& path) {
  const size_t last = path.find_last_not_of('/');
  if (last == std::string::npos) return path.empty() ? "" : "/";
  return path.substr(0, last + 1);
}

}  // namespace

std::string JoinPath(const std::string& folder, const std::string& name) {
  if (folder.empty()) return name;
  return folder.back() == '/' ? folder + name : absl::StrCat(folder, "/", name);
}

std::string ParentPath(const std::string& path) {
  const std::string trimmed = Trim(path);
  const size_t slash = trimmed.rfind('/');
  if (slash == std::string::npos) return ".";
  const std::string parent = Trim(trimmed.substr(0, slash));
  return parent.empty() ? "/" : parent;
}

std::string BaseName(const std::string& path) {
  const std::string trimmed = Trim(path);
  return trimmed.substr(trimmed.rfind('/') + 1);
}

absl::StatusOr<bool> Exists(FileSystem& files, const std::string& path) {
  const auto info = files.Stat(path);
  if (info.ok()) return true;
  if (absl::IsNotFound(info.status())) return false;
  return info.status();
}

absl::StatusOr<std::string> ReadFile(FileSystem& files, const std::string& path,
                                     int64_t max_bytes) {
  SHOAL_ASSIGN_OR_RETURN(const auto file, files.OpenForRead(path));
  SHOAL_ASSIGN_OR_RETURN(const int64_t bytes, file->Size());
  if (bytes > max_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " has ", bytes, " bytes, more than the ", max_bytes, " allowed here"));
  }
  std::string data(bytes, '\0');
  SHOAL_RETURN_IF_ERROR(file->ReadAt(0, absl::MakeSpan(data)));
  return data;
}

absl::Status CreateDirectories(FileSystem& files, const std::string& path) {
  const auto info = files.Stat(path);
  if (info.ok() && info->is_directory) return absl::OkStatus();
  if (info.ok())
    return absl::FailedPreconditionError(absl::StrCat(path, " is a file, not a folder"));
  if (!absl::IsNotFound(info.status())) return info.status();
  const std::string parent = ParentPath(path);
  if (parent != path) SHOAL_RETURN_IF_ERROR(CreateDirectories(files, parent));
  // Another rank may have been faster.
  const absl::Status made = files.CreateDirectory(path);
  if (!made.ok() && !absl::IsAlreadyExists(made)) return made;
  return files.SyncDirectory(parent);
}

absl::Status WriteFileAtomically(FileSystem& files, const std::string& path,
                                 absl::string_view data) {
  const std::string temporary = path + ".tmp";
  SHOAL_ASSIGN_OR_RETURN(const auto file, files.OpenForWrite(temporary, OpenMode::kTruncate));
  SHOAL_RETURN_IF_ERROR(file->Append(data));
  SHOAL_RETURN_IF_ERROR(file->Sync());
  SHOAL_RETURN_IF_ERROR(file->Close());
  SHOAL_RETURN_IF_ERROR(files.Rename(temporary, path));
  return files.SyncDirectory(ParentPath(path));
}

absl::Status RemoveRecursively(FileSystem& files, const std::string& path) {
  // Remove first: it takes files and links without following them, and tells an empty folder apart.
  const absl::Status removed = files.Remove(path);
  if (removed.ok() || absl::IsNotFound(removed)) return absl::OkStatus();
  const auto names = files.List(path);
  if (!names.ok()) return removed;
  for (const std::string& name : *names)
    SHOAL_RETURN_IF_ERROR(RemoveRecursively(files, JoinPath(path, name)));
  return files.Remove(path);
}

}  // namespace shoal
