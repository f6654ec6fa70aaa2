#include "core/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <tuple>

#include "core/faulty_file_system.h"
#include "core/memory_file_system.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A folder that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = ::testing::TempDir() + "/shoal-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    PosixFileSystem files;
    EXPECT_EQ(RemoveRecursively(files, path_), absl::OkStatus());
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

absl::Status Write(FileSystem& files, const std::string& path, OpenMode mode,
                   absl::string_view data, bool sync) {
  SHOAL_ASSIGN_OR_RETURN(const auto file, files.OpenForWrite(path, mode));
  SHOAL_RETURN_IF_ERROR(file->Append(data));
  if (sync) SHOAL_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

std::string Content(FileSystem& files, const std::string& path) {
  const auto content = ReadFile(files, path, 1 << 20);
  return content.ok() ? *content : content.status().ToString();
}

// What all file systems have in common.
void Conforms(FileSystem& files, const std::string& root) {
  const std::string folder = JoinPath(root, "a/b"), path = JoinPath(folder, "file");
  ASSERT_EQ(CreateDirectories(files, folder), absl::OkStatus());
  ASSERT_EQ(CreateDirectories(files, folder), absl::OkStatus());
  EXPECT_EQ(files.CreateDirectory(folder).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(files.OpenForRead(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(*Exists(files, path));

  ASSERT_EQ(Write(files, path, OpenMode::kCreateNew, "one", true), absl::OkStatus());
  EXPECT_EQ(Write(files, path, OpenMode::kCreateNew, "two", true).code(),
            absl::StatusCode::kAlreadyExists);
  ASSERT_EQ(Write(files, path, OpenMode::kAppend, "two", true), absl::OkStatus());
  EXPECT_EQ(Content(files, path), "onetwo");
  ASSERT_EQ(Write(files, path, OpenMode::kTruncate, "three", true), absl::OkStatus());
  EXPECT_EQ(Content(files, path), "three");
  EXPECT_EQ(files.Stat(path)->bytes, 5);
  EXPECT_TRUE(files.Stat(folder)->is_directory);
  {
    const auto file = *files.OpenForWrite(path, OpenMode::kTruncate);
    ASSERT_EQ(file->WriteAt(2, "cd"), absl::OkStatus());
    ASSERT_EQ(file->WriteAt(0, "ab"), absl::OkStatus());
    ASSERT_EQ(file->Close(), absl::OkStatus());
  }
  EXPECT_EQ(Content(files, path), "abcd");
  char buffer[4];
  const auto readable = *files.OpenForRead(path);
  EXPECT_EQ(*readable->Size(), 4);
  ASSERT_EQ(readable->ReadAt(1, absl::MakeSpan(buffer, 3)), absl::OkStatus());
  EXPECT_EQ(std::string(buffer, 3), "bcd");
  EXPECT_EQ(readable->ReadAt(1, absl::MakeSpan(buffer, 4)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(ReadFile(files, path, 3).status().message()),
              HasSubstr("has 4 bytes, more than the 3"));
  EXPECT_FALSE(files.OpenForRead(folder).ok());

  ASSERT_EQ(WriteFileAtomically(files, JoinPath(folder, "other"), "x"), absl::OkStatus());
  EXPECT_THAT(*files.List(folder), ElementsAre("file", "other"));
  ASSERT_EQ(files.Exchange(path, JoinPath(folder, "other")), absl::OkStatus());
  EXPECT_EQ(Content(files, path), "x");
  ASSERT_EQ(files.Rename(JoinPath(folder, "other"), path), absl::OkStatus());
  EXPECT_EQ(Content(files, path), "abcd");
  EXPECT_FALSE(files.Remove(folder).ok());
  ASSERT_EQ(files.SyncDirectory(folder), absl::OkStatus());
  ASSERT_EQ(RemoveRecursively(files, JoinPath(root, "a")), absl::OkStatus());
  ASSERT_EQ(RemoveRecursively(files, JoinPath(root, "a")), absl::OkStatus());
  EXPECT_FALSE(*Exists(files, folder));
}

TEST(FileSystem, PosixConforms) {
  TemporaryFolder folder;
  PosixFileSystem files;
  Conforms(files, folder.path());
}

TEST(FileSystem, MemoryConforms) {
  MemoryFileSystem files;
  Conforms(files, "/");
}

TEST(FileSystem, FaultyWithoutFaultConforms) {
  MemoryFileSystem memory;
  FaultyFileSystem files(memory, Fault{});
  Conforms(files, "/");
  EXPECT_GT(files.calls(), 50);
}

TEST(FileSystem, PosixRefusesPipesInsteadOfWaiting) {
  TemporaryFolder folder;
  PosixFileSystem files;
  const std::string pipe = JoinPath(folder.path(), "pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(std::string(files.OpenForRead(pipe).status().message()),
              HasSubstr("is not a regular file"));
}

TEST(FileSystem, PosixErrorsNamePathAndReason) {
  PosixFileSystem files;
  const absl::Status status = files.OpenForWrite("/nowhere/file", OpenMode::kTruncate).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot open for writing /nowhere/file"));
}

TEST(FileSystem, RemovingDoesNotFollowLinks) {
  TemporaryFolder folder;
  PosixFileSystem files;
  const std::string kept = JoinPath(folder.path(), "kept"),
                    swept = JoinPath(folder.path(), "swept");
  ASSERT_EQ(CreateDirectories(files, kept), absl::OkStatus());
  ASSERT_EQ(CreateDirectories(files, swept), absl::OkStatus());
  ASSERT_EQ(Write(files, JoinPath(kept, "file"), OpenMode::kCreateNew, "x", false),
            absl::OkStatus());
  ASSERT_EQ(::symlink(kept.c_str(), JoinPath(swept, "link").c_str()), 0);
  ASSERT_EQ(RemoveRecursively(files, swept), absl::OkStatus());
  EXPECT_EQ(Content(files, JoinPath(kept, "file")), "x");
}

TEST(FileSystem, Paths) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  for (const auto& [path, parent, name] :
       std::vector<std::array<std::string, 3>>{{"a/b", "a", "b"},
                                               {"a/b//", "a", "b"},
                                               {"b", ".", "b"},
                                               {"/b", "/", "b"},
                                               {"a//b", "a", "b"}}) {
    EXPECT_EQ(ParentPath(path), parent) << path;
    EXPECT_EQ(BaseName(path), name) << path;
  }
  EXPECT_EQ(ParentPath("/"), "/");
}

TEST(MemoryFileSystem, PowerLossTakesWhatWasNotSynced) {
  MemoryFileSystem files;
  ASSERT_EQ(CreateDirectories(files, "/run"), absl::OkStatus());
  // Synced bytes under a name that is not durable are gone; a durable name with unsynced bytes is
  // empty.
  ASSERT_EQ(Write(files, "/run/named", OpenMode::kCreateNew, "lost", false), absl::OkStatus());
  ASSERT_EQ(files.SyncDirectory("/run"), absl::OkStatus());
  ASSERT_EQ(Write(files, "/run/unnamed", OpenMode::kCreateNew, "x", true), absl::OkStatus());
  files.DropUnsynced();
  EXPECT_THAT(*files.List("/run"), ElementsAre("named"));
  EXPECT_EQ(Content(files, "/run/named"), "");
  // A rename is undone until its folder is synced.
  ASSERT_EQ(WriteFileAtomically(files, "/run/kept", "kept"), absl::OkStatus());
  ASSERT_EQ(files.Rename("/run/kept", "/run/moved"), absl::OkStatus());
  files.DropUnsynced();
  EXPECT_EQ(Content(files, "/run/kept"), "kept");
  ASSERT_EQ(files.Rename("/run/kept", "/run/moved"), absl::OkStatus());
  ASSERT_EQ(files.SyncDirectory("/run"), absl::OkStatus());
  files.DropUnsynced();
  EXPECT_EQ(Content(files, "/run/moved"), "kept");
}

TEST(FaultyFileSystem, FaultsComeWhenDue) {
  for (const auto& [kind, content, later_works] :
       std::vector<std::tuple<Fault::Kind, std::string, bool>>{
           {Fault::Kind::kFail, "", true},
           {Fault::Kind::kShortWrite, "abc", true},
           {Fault::Kind::kCrashBefore, "", false},
           {Fault::Kind::kCrashTorn, "abc", false},
           {Fault::Kind::kCrashAfter, "abcdef", false}}) {
    MemoryFileSystem memory;
    FaultyFileSystem files(memory, {.kind = kind, .call = 2, .error = ENOSPC});
    const auto file = *files.OpenForWrite("/file", OpenMode::kCreateNew);
    const absl::Status status = file->Append("abcdef");
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("write 6 bytes to /file"));
    EXPECT_EQ(Content(memory, "/file"), content);
    EXPECT_EQ(file->Sync().ok(), later_works);
    EXPECT_EQ(files.Stat("/file").ok(), later_works);
  }
}

// Whatever call of an atomic write fails, and even if the power goes then, a reader finds old or
// new.
TEST(FaultyFileSystem, AtomicWriteIsAtomic) {
  for (const auto kind : {Fault::Kind::kFail, Fault::Kind::kShortWrite, Fault::Kind::kCrashBefore,
                          Fault::Kind::kCrashTorn, Fault::Kind::kCrashAfter}) {
    for (int64_t call = 1;; ++call) {
      MemoryFileSystem memory;
      ASSERT_EQ(WriteFileAtomically(memory, "/file", "old"), absl::OkStatus());
      FaultyFileSystem files(memory, {.kind = kind, .call = call});
      const absl::Status status = WriteFileAtomically(files, "/file", "new");
      const std::string before = Content(memory, "/file");
      memory.DropUnsynced();
      const std::string after = Content(memory, "/file");
      EXPECT_TRUE((before == "old" || before == "new") && (after == "old" || after == "new"))
          << before << after;
      if (!status.ok()) continue;
      EXPECT_EQ(after, "new");
      EXPECT_EQ(call, 7);  // six calls, and then the fault is never due
      break;
    }
  }
}

}  // namespace
}  // namespace shoal
