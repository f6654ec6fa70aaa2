#include "core/memory_file_system.h"

#include <algorithm>

#include "absl/strings/str_split.h"

namespace shoal {

struct MemoryFileSystem::Node {
  bool is_directory = false;
  std::string data{}, durable_data{};
  Entries entries{}, durable_entries{};
};

namespace {

using Node = MemoryFileSystem::Node;

class MemoryWritableFile : public WritableFile {
 public:
  MemoryWritableFile(std::shared_ptr<std::mutex> mutex, std::shared_ptr<Node> node)
      : mutex_(std::move(mutex)), node_(std::move(node)) {}

  absl::Status Append(absl::string_view data) override {
    const std::lock_guard lock(*mutex_);
    node_->data.append(data.data(), data.size());
    return absl::OkStatus();
  }
  absl::Status WriteAt(int64_t offset, absl::string_view data) override {
    const std::lock_guard lock(*mutex_);
    if (node_->data.size() < offset + data.size()) node_->data.resize(offset + data.size());
    std::copy_n(data.data(), data.size(), node_->data.data() + offset);
    return absl::OkStatus();
  }
  absl::Status Sync() override {
    const std::lock_guard lock(*mutex_);
    node_->durable_data = node_->data;
    return absl::OkStatus();
  }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  std::shared_ptr<std::mutex> mutex_;
  std::shared_ptr<Node> node_;
};

class MemoryReadableFile : public ReadableFile {
 public:
  MemoryReadableFile(std::string path, std::shared_ptr<std::mutex> mutex,
                     std::shared_ptr<Node> node)
      : path_(std::move(path)), mutex_(std::move(mutex)), node_(std::move(node)) {}

  absl::Status ReadAt(int64_t offset, absl::Span<char> out) const override {
    const std::lock_guard lock(*mutex_);
    const int64_t size = node_->data.size();
    if (offset < 0 || offset > size || static_cast<int64_t>(out.size()) > size - offset) {
      return absl::OutOfRangeError(
          absl::StrCat(path_, " has ", size, " bytes, not ", out.size(), " at ", offset));
    }
    std::copy_n(node_->data.data() + offset, out.size(), out.data());
    return absl::OkStatus();
  }
  absl::StatusOr<int64_t> Size() const override {
    const std::lock_guard lock(*mutex_);
    return node_->data.size();
  }

 private:
  std::string path_;
  std::shared_ptr<std::mutex> mutex_;
  std::shared_ptr<Node> node_;
};

std::vector<std::string> Names(const std::string& path) {
  std::vector<std::string> names;
  for (absl::string_view name : absl::StrSplit(path, '/')) {
    if (!name.empty() && name != ".") names.emplace_back(name);
  }
  return names;
}

absl::Status NotFound(const std::string& path) {
  return absl::NotFoundError(absl::StrCat("no such path: ", path));
}

void Revert(Node& node) {
  node.data = node.durable_data;
  node.entries = node.durable_entries;
  for (auto& [name, child] : node.entries) Revert(*child);
}

}  // namespace

MemoryFileSystem::MemoryFileSystem()
    : mutex_(std::make_shared<std::mutex>()),
      root_(std::make_shared<Node>(Node{.is_directory = true})) {}

void MemoryFileSystem::DropUnsynced() {
  const std::lock_guard lock(*mutex_);
  Revert(*root_);
}

absl::StatusOr<std::shared_ptr<MemoryFileSystem::Node>> MemoryFileSystem::Find(
    const std::string& path) const {
  std::shared_ptr<Node> node = root_;
  for (const std::string& name : Names(path)) {
    const auto entry = node->entries.find(name);
    if (entry == node->entries.end()) return NotFound(path);
    node = entry->second;
  }
  return node;
}

absl::StatusOr<MemoryFileSystem::Place> MemoryFileSystem::FindPlace(const std::string& path) const {
  SHOAL_ASSIGN_OR_RETURN(auto folder, Find(ParentPath(path)));
  if (!folder->is_directory)
    return absl::FailedPreconditionError(absl::StrCat(ParentPath(path), " is not a folder"));
  return Place{.folder = std::move(folder), .name = BaseName(path)};
}

absl::StatusOr<std::unique_ptr<WritableFile>> MemoryFileSystem::OpenForWrite(
    const std::string& path, OpenMode mode) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(const Place place, FindPlace(path));
  if (mode == OpenMode::kUpdate && !place.folder->entries.contains(place.name))
    return NotFound(path);
  std::shared_ptr<Node>& node = place.folder->entries[place.name];
  if (node && mode == OpenMode::kCreateNew)
    return absl::AlreadyExistsError(absl::StrCat(path, " exists"));
  if (node && node->is_directory)
    return absl::FailedPreconditionError(absl::StrCat(path, " is a folder"));
  if (!node) node = std::make_shared<Node>();
  if (mode == OpenMode::kTruncate) node->data.clear();
  return std::make_unique<MemoryWritableFile>(mutex_, node);
}

absl::StatusOr<std::unique_ptr<ReadableFile>> MemoryFileSystem::OpenForRead(
    const std::string& path) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(auto node, Find(path));
  if (node->is_directory)
    return absl::FailedPreconditionError(absl::StrCat(path, " is not a regular file"));
  return std::make_unique<MemoryReadableFile>(path, mutex_, std::move(node));
}

absl::StatusOr<FileInfo> MemoryFileSystem::Stat(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(const auto node, Find(path));
  return FileInfo{.is_directory = node->is_directory,
                  .bytes = static_cast<int64_t>(node->data.size())};
}

absl::StatusOr<std::vector<std::string>> MemoryFileSystem::List(const std::string& directory) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(const auto node, Find(directory));
  if (!node->is_directory)
    return absl::FailedPreconditionError(absl::StrCat(directory, " is not a folder"));
  std::vector<std::string> names;
  for (const auto& [name, child] : node->entries) names.push_back(name);
  return names;
}

absl::Status MemoryFileSystem::CreateDirectory(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(const Place place, FindPlace(path));
  std::shared_ptr<Node>& node = place.folder->entries[place.name];
  if (node) return absl::AlreadyExistsError(absl::StrCat(path, " exists"));
  node = std::make_shared<Node>(Node{.is_directory = true});
  return absl::OkStatus();
}

absl::Status MemoryFileSystem::Rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(auto node, Find(from));
  SHOAL_ASSIGN_OR_RETURN(const Place source, FindPlace(from));
  SHOAL_ASSIGN_OR_RETURN(const Place target, FindPlace(to));
  const auto old = target.folder->entries.find(target.name);
  if (old != target.folder->entries.end() &&
      (old->second->is_directory != node->is_directory || !old->second->entries.empty())) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot rename ", from, " to ", to, ": it is in the way"));
  }
  source.folder->entries.erase(source.name);
  target.folder->entries[target.name] = std::move(node);
  return absl::OkStatus();
}

absl::Status MemoryFileSystem::Exchange(const std::string& a, const std::string& b) {
  const std::lock_guard lock(*mutex_);
  SHOAL_RETURN_IF_ERROR(Find(a).status());
  SHOAL_RETURN_IF_ERROR(Find(b).status());
  SHOAL_ASSIGN_OR_RETURN(const Place place_a, FindPlace(a));
  SHOAL_ASSIGN_OR_RETURN(const Place place_b, FindPlace(b));
  std::swap(place_a.folder->entries[place_a.name], place_b.folder->entries[place_b.name]);
  return absl::OkStatus();
}

absl::Status MemoryFileSystem::Remove(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(const auto node, Find(path));
  if (!node->entries.empty())
    return absl::FailedPreconditionError(absl::StrCat(path, " is not empty"));
  SHOAL_ASSIGN_OR_RETURN(const Place place, FindPlace(path));
  place.folder->entries.erase(place.name);
  return absl::OkStatus();
}

absl::Status MemoryFileSystem::SyncDirectory(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  SHOAL_ASSIGN_OR_RETURN(const auto node, Find(path));
  if (!node->is_directory)
    return absl::FailedPreconditionError(absl::StrCat(path, " is not a folder"));
  node->durable_entries = node->entries;
  return absl::OkStatus();
}

}  // namespace shoal
